"""`depi annotate`: instructions and camera views for many datasets, by a model or by rules."""

import importlib
import json
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from depi.datasets.recording.addresses import check_dataset_name
from depi.engine import ENGINES, RayConfig
from depi.errors import UserError
from depi.flags import check_ranges, parse_flags

if TYPE_CHECKING:
    from depi.annotate.equipment import Recipe
    from depi.annotate.pipeline import Summary

MAX_TIMEOUT = 86_400
BACKENDS = ("openai", "transformers", "rules")
# verb: module with `main(args) -> exit status`
VERBS = {
    "review": "depi.annotate.review",
    "stats": "depi.annotate.stats",
    "export": "depi.annotate.export",
}


@dataclass
class AnnotateConfig:
    """Write an instruction and the cameras' views for every episode of the datasets of a list, as sidecars in
    --annotations, which training reads with --dataset.use_annotated_tasks=true. The datasets are not changed.

    --backend=openai asks any server that speaks OpenAI's API (vLLM, SGLang, a hosted one; key in
    OPENAI_API_KEY), --backend=transformers runs a model here, --backend=rules uses no model: it cleans the
    recorded texts and flags those that need one. A call that was stopped, or is repeated, asks only for what
    is missing; after a change of a prompt its questions are asked again.

    Also: `depi annotate review` (look, accept, edit), `depi annotate stats`, `depi annotate export`.

    Exit status: 0 when every episode has a result, 3 when some have none (the first are named, with --json
    all; the next call tries them again), 2 when the command cannot work at all, 130 or 143 when Ctrl-C or
    SIGTERM has stopped it.
    """

    # A JSON list of repo ids; a catalogue beside it gives the revisions.
    repo_ids: Path = Path("data_ids/dataset_list_valid.json")
    # One dataset instead of a list, USER/NAME or an address s3://BUCKET/FOLDER.
    repo_id: str | None = None
    # Its folder, instead of the Hub.
    root: Path | None = None
    # Its branch, tag or commit; by default the newest.
    revision: str | None = None
    # The first dataset of the list, counted from 0.
    start: int = 0
    # The dataset of the list to stop before; by default its end.
    end: int | None = None
    # The largest number of episodes of each dataset.
    max_episodes: int | None = None
    # Only episodes that an earlier call has flagged, and new ones whose recorded text is useless.
    only_flagged: bool = False
    # Where the sidecars and their journals are.
    annotations: Path = Path("so100_data/annotations")
    # What writes the texts: openai, transformers or rules.
    backend: str = "openai"
    # The server, up to and with /v1; by default OPENAI_BASE_URL, or http://127.0.0.1:8000/v1.
    base_url: str | None = None
    # The model's id; by default the server's first one, or Qwen/Qwen3-VL-8B-Instruct.
    model: str | None = None
    # Requests to the server at a time.
    concurrency: int = 32
    # Longest time in seconds for one answer of the server.
    timeout: float = 180.0
    # Batch size of a model on this machine.
    batch_size: int = 8
    # Device of a model on this machine; by default the GPU if there is one.
    device: str | None = None
    # A folder of prompts (system.txt, instruction.txt, refinement.txt, views.txt) to use instead.
    prompts: Path | None = None
    # Language of the instructions: en, de, es, fr, it, ja, ko, nl, pt or zh.
    language: str = "en"
    # How often an instruction is refined at most; it stops when the text no longer changes.
    max_refinements: int = 2
    # Below this confidence the recorded text is kept and the episode is flagged.
    min_confidence: float = 0.5
    # Frames of each camera that are shown: the first, the last, and where the gripper changes most.
    frames: int = 4
    # Largest size of a frame, in pixels.
    max_pixels: int = 150_000
    # Episodes of each dataset whose frames decide the cameras' views.
    view_episodes: int = 3
    # Cache the frames that were shown, for the next call and for the review.
    keep_frames: bool = True
    # Threads that decode frames; with --engine=ray groups of episodes at a time. 0 for one per CPU.
    workers: int = 0
    # What does the work: local, or ray, a cluster with shared folders.
    engine: str = "local"
    ray: RayConfig = field(default_factory=RayConfig)
    # Print the summary as JSON instead of a table.
    json: bool = False

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UserError(f"--backend={self.backend} is none of {', '.join(BACKENDS)}")
        if self.engine not in ENGINES:
            raise UserError(f"--engine={self.engine} is none of {', '.join(ENGINES)}")
        if self.engine == "ray" and self.backend == "transformers":
            raise UserError("--engine=ray goes with --backend=openai or rules: run the model in a server")
        if self.root is not None and self.repo_id is None:
            raise UserError("--root needs --repo_id=USER/NAME, the name that its annotations go by")
        if self.revision is not None and self.repo_id is None:
            raise UserError("--revision needs --repo_id=USER/NAME; a list's revisions are in its catalogue")
        if self.repo_id is not None:
            self.repo_id = check_dataset_name(self.repo_id)
        if self.repo_id is not None and (self.start, self.end) != (0, None):
            raise UserError("--start and --end go with a list: --repo_id names one dataset")
        at_least_1 = dict.fromkeys(("concurrency", "batch_size", "max_episodes", "end"), (1, None))
        at_least_0 = dict.fromkeys(("start", "workers", "view_episodes"), (0, None))
        check_ranges(self, **at_least_1, **at_least_0, max_refinements=(0, 10), min_confidence=(0, 1))
        check_ranges(self, frames=(2, 16), max_pixels=(1024, 4_000_000))
        if not 0 < self.timeout <= MAX_TIMEOUT:
            raise UserError(f"--timeout must be above 0, at most {MAX_TIMEOUT}, not {self.timeout}")


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def main(args: list[str]) -> int:
    """Run `depi annotate`, or one of its verbs; returns the exit status (see `AnnotateConfig`)."""
    if args and args[0] in VERBS:
        return importlib.import_module(VERBS[args[0]]).main(args[1:])
    config = parse_flags(AnnotateConfig, args, "depi annotate")
    if threading.current_thread() is threading.main_thread():
        # A scheduler's SIGTERM is handled like Ctrl-C: the sidecars of finished episodes are written.
        signal.signal(signal.SIGTERM, _stop)
    try:
        summary = annotate(config)
    except KeyboardInterrupt:
        print("Stopped. What was answered is written; the same command asks for the rest.", file=sys.stderr)
        raise
    from depi.annotate.pipeline import as_json

    if config.json:
        print(json.dumps(as_json(summary), ensure_ascii=True))
    else:
        from depi.annotate.progress import print_summary

        print_summary(summary, config.backend)
    return 3 if summary.incomplete else 0


def annotate(config: AnnotateConfig) -> "Summary":
    """Annotate the datasets that the flags name; prints progress to stderr.

    Raises:
        UserError: a flag is not valid, or the back end cannot be used. What was answered is written.
    """
    from depi.annotate.equipment import here, make_backend, on_ray
    from depi.annotate.pipeline import Run
    from depi.annotate.progress import progress
    from depi.annotate.work import Plan, list_sources

    sources = list_sources(
        config.repo_ids, config.repo_id, config.root, config.revision, config.start, config.end
    )
    recipe = _recipe(config)
    try:
        config.annotations.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--annotations={config.annotations} cannot be a folder: {error.strerror}") from None
    backend = make_backend(recipe)
    try:
        plan = Plan(
            folder=config.annotations,
            backend=config.backend,
            model=backend.model if backend is not None else config.backend,
            versions=recipe.prompts.versions if backend is not None else {},
            frames=config.frames,
            view_episodes=config.view_episodes,
            max_episodes=config.max_episodes,
            only_flagged=config.only_flagged,
            max_refinements=config.max_refinements,
        )
        runner = here(recipe, backend, config.annotations)
        if config.engine == "ray":
            runner = on_ray(recipe, config.annotations, config.workers, config.ray.address)
        with progress() as show:
            return Run(plan, runner, show)(sources)
    finally:
        if backend is not None:
            backend.close()


def _recipe(config: AnnotateConfig) -> "Recipe":
    from depi.annotate.equipment import Recipe
    from depi.annotate.local_model import DEFAULT_MODEL, LocalConfig
    from depi.annotate.openai_server import ServerConfig
    from depi.annotate.templates import load_prompts

    askers = {"openai": config.concurrency, "transformers": 2 * config.batch_size, "rules": 1}
    cpus = os.cpu_count() or 1
    return Recipe(
        backend=config.backend,
        prompts=load_prompts(config.prompts, config.language),
        server=ServerConfig(config.base_url, config.model, config.concurrency, config.timeout),
        local=LocalConfig(config.model or DEFAULT_MODEL, config.batch_size, config.device),
        max_refinements=config.max_refinements,
        min_confidence=config.min_confidence,
        max_pixels=config.max_pixels,
        keep_frames=config.keep_frames,
        loaders=1
        if config.backend == "rules"
        else (config.workers or cpus)
        if config.engine == "local"
        else 2,
        askers=askers[config.backend],
    )
