"""What a process needs to run jobs, made once per process: the back end, the annotator, the frame loader."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import batched
from pathlib import Path

from depi.annotate.backend import Backend
from depi.annotate.episode_journal import RULES, Result
from depi.annotate.frames import Images, load_images
from depi.annotate.local_model import LocalConfig
from depi.annotate.openai_server import OpenAiServer, ServerConfig
from depi.annotate.pipeline import Ask, Load, Outcome, Runner, in_threads, write
from depi.annotate.rules import annotate_by_rules
from depi.annotate.stages import Annotator, Job
from depi.annotate.templates import Prompts
from depi.engine import cluster

GROUP = 32


@dataclass(frozen=True)
class Recipe:
    """The settings from which a process, on this machine or another, makes its back end and loader.

    backend: `openai`, `transformers` or RULES
    loaders, askers: numbers of threads that load frames, and that ask
    """

    backend: str
    prompts: Prompts
    server: ServerConfig = field(default_factory=ServerConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    max_refinements: int = 2
    min_confidence: float = 0.5
    max_pixels: int = 150_000
    keep_frames: bool = True
    loaders: int = 2
    askers: int = 32


def make_backend(recipe: Recipe) -> Backend | None:
    """Connect to the server, or load the model; None for RULES.

    Raises:
        UserError: there is no such server or model.
    """
    if recipe.backend == RULES:
        return None
    if recipe.backend == "openai":
        return OpenAiServer(recipe.server)
    from depi.annotate.local_model import LocalModel

    return LocalModel(recipe.local)


def make_tools(recipe: Recipe, backend: Backend | None) -> tuple[Load, Ask]:
    """The function that loads a job's frames, and the one that asks about them."""
    if backend is None:
        language = recipe.prompts.language
        return (lambda job: {}), (lambda job, images: annotate_by_rules(job, language))
    annotator = Annotator(backend, recipe.prompts, recipe.max_refinements, recipe.min_confidence)
    return partial(_load, recipe.max_pixels, recipe.keep_frames), annotator


def _load(max_pixels: int, keep: bool, job: Job) -> Images:
    assert job.clip is not None
    return load_images(job.clip, max_pixels, keep)


def here(recipe: Recipe, backend: Backend | None, folder: Path) -> Runner:
    """Run the jobs in this process; the thread that gets a result writes it."""
    load, ask = make_tools(recipe, backend)

    def ask_and_write(job: Job, images: Images) -> Result:
        return write(folder, job, ask(job, images))

    return in_threads(load, ask_and_write, recipe.loaders, recipe.askers)


def on_ray(recipe: Recipe, folder: Path, workers: int, address: str | None) -> Runner:
    """Run the jobs on a Ray cluster, in groups of GROUP; this process writes the results."""

    def run(jobs: Iterator[Job]) -> Iterator[tuple[Job, Outcome]]:
        do = partial(do_group, recipe)
        for group, outcomes in cluster.run(do, batched(jobs, GROUP), workers=workers, address=address):
            if isinstance(outcomes, Exception):
                outcomes = [outcomes] * len(group)
            for job, outcome in zip(group, outcomes, strict=True):
                yield job, write(folder, job, outcome) if isinstance(outcome, Result) else outcome

    return run


_made: dict[str, tuple[Load, Ask]] = {}


def do_group(recipe: Recipe, jobs: tuple[Job, ...]) -> list[Outcome]:
    """Run some jobs in this process, with a cached back end; the outcomes in order."""
    key = repr(recipe)
    if key not in _made:
        _made[key] = make_tools(recipe, make_backend(recipe))
    load, ask = _made[key]
    places = {(job.repo_id, job.episode): place for place, job in enumerate(jobs)}
    outcomes: list[Outcome] = [RuntimeError("it was not done")] * len(jobs)
    for job, outcome in in_threads(load, ask, recipe.loaders, recipe.askers)(iter(jobs)):
        outcomes[places[job.repo_id, job.episode]] = outcome
    return outcomes
