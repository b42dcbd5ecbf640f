"""From datasets to journals and sidecars: plan, load frames, ask, write, each step in threads of its own.

    datasets -> what is missing of them -> frames of each episode -> answers -> journal -> sidecars

Each arrow is a bounded pool of threads that takes its items lazily. So the frames of the next episodes are
loaded before they are needed, one slow video does not block the others, and memory holds the JPEGs of a few
dozen episodes however long the list is. The thread that asked about an episode writes it to the journal as
soon as the last answer has arrived.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from depi import engine
from depi.annotate.backend import BackendError, HopelessError, UnreachableError
from depi.annotate.episode_journal import Failure, Result, append, now
from depi.annotate.frames import Images
from depi.annotate.sidecar import is_current, write_sidecar
from depi.annotate.stages import VIEWS_FAILED, Job
from depi.annotate.work import DatasetWork, Plan, plan_dataset
from depi.catalog.text import clean
from depi.datasets.recording.sources import DatasetSource
from depi.errors import DatasetError, UserError, machine_error

logger = logging.getLogger(__name__)

PLANNERS = 4
# After this many failures in a row that no episode caused, the server is taken to be gone.
GIVE_UP_AFTER = 16

Load = Callable[[Job], Images]
Ask = Callable[[Job, Images], Result]
Outcome = Result | Exception
# Runs jobs: jobs -> (job, result or failure) in any order; see `in_threads`.
Runner = Callable[[Iterator[Job]], Iterator[tuple[Job, Outcome]]]


@dataclass
class Summary:
    """What a call did. `datasets` and `episodes` are those that the flags name.

    asked: episodes that were asked about in this call, `done` of them with a result
    reused: episodes for which nothing was left to do
    trusted: of the done, those with a new text
    views_failed: of the done, those whose answer about the views could not be read
    failures: dataset -> episode -> reason; dataset_failures: dataset -> reason
    changed: datasets annotated before at another revision -> that revision
    stopped: why the call ended early, if it did
    """

    datasets: int = 0
    episodes: int = 0
    asked: int = 0
    done: int = 0
    reused: int = 0
    trusted: int = 0
    views_failed: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    failures: dict[str, dict[int, str]] = field(default_factory=dict)
    dataset_failures: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None

    @property
    def failed(self) -> int:
        """Episodes without a result."""
        return sum(map(len, self.failures.values()))

    @property
    def incomplete(self) -> bool:
        """Whether something that was asked for is missing."""
        return bool(self.failures or self.dataset_failures or self.stopped)


def in_threads(load: Load, ask: Ask, loaders: int, askers: int) -> Runner:
    """Run jobs in threads of this process: some load frames, others ask about the loaded frames."""

    def run(jobs: Iterator[Job]) -> Iterator[tuple[Job, Outcome]]:
        loaded = engine.run(load, jobs, workers=loaders)
        for (job, _), outcome in engine.run(partial(_ask_loaded, ask), loaded, workers=askers):
            yield job, outcome

    return run


def _ask_loaded(ask: Ask, loaded: tuple[Job, Images | Exception]) -> Result:
    job, images = loaded
    if isinstance(images, Exception):
        raise images
    return ask(job, images)


class Run:
    """One call of `depi annotate`: its plan, its progress and its results.

    Args:
        plan: what to annotate.
        runner: runs the jobs, and writes the results into the journals by `write`.
        on_progress: called with the summary after each episode.
    """

    def __init__(
        self, plan: Plan, runner: Runner, on_progress: Callable[["Run"], None] = lambda run: None
    ) -> None:
        self.plan, self.runner, self.on_progress = plan, runner, on_progress
        self.summary = Summary()
        self.planned = 0
        self._open: dict[str, DatasetWork] = {}
        self._waiting: dict[str, int] = {}
        self._in_a_row = 0
        self._who = plan.backend, plan.model

    def __call__(self, sources: Sequence[DatasetSource]) -> Summary:
        """Annotate the datasets; the sidecars are written also where this is interrupted.

        Raises:
            UserError: no question will ever be answered; what was answered is written.
            MachineError: a disk is full.
        """
        started = time.monotonic()
        self.summary.datasets = len(sources)
        jobs = self._jobs(sources)
        outcomes = self.runner(jobs)
        try:
            for job, outcome in outcomes:
                self._take(job, outcome)
                self.summary.seconds = time.monotonic() - started
                self.on_progress(self)
                if self.summary.stopped:
                    break
        finally:
            with suppress(ValueError):  # the generator is running in another thread
                outcomes.close()  # type: ignore[attr-defined]
                jobs.close()
            for work in list(self._open.values()):
                self._finish(work)
            self.summary.seconds = round(time.monotonic() - started, 3)
        return self.summary

    def _jobs(self, sources: Sequence[DatasetSource]) -> Generator[Job]:
        """All jobs, dataset by dataset; the next datasets are planned in the background."""
        planned = engine.run(partial(plan_dataset, plan=self.plan), sources, workers=PLANNERS)
        try:
            for source, outcome in planned:
                self.planned += 1
                if isinstance(outcome, Exception):
                    self._dataset_failed(source.repo_id, outcome)
                    continue
                self._add(outcome)
                if outcome.jobs:
                    yield from outcome.jobs
                else:
                    self._finish(outcome)
        finally:
            planned.close()  # type: ignore[attr-defined]

    def _add(self, work: DatasetWork) -> None:
        summary = self.summary
        summary.episodes += work.episodes
        summary.asked += len(work.jobs)
        summary.reused += work.episodes - len(work.jobs) - len(work.bad)
        if work.changed_from is not None:
            summary.changed[work.repo_id] = work.changed_from
            logger.warning(
                "%s was annotated at revision %s and is at %s now: its episodes are annotated again",
                work.repo_id,
                work.changed_from[:14],
                str(work.state)[:14],
            )
        for episode, reason in work.bad.items():
            self._failed(work.repo_id, Failure(episode, work.state, *self._who, reason, now()))
        self._open[work.repo_id], self._waiting[work.repo_id] = work, len(work.jobs)

    def _dataset_failed(self, repo_id: str, error: Exception) -> None:
        if fault := machine_error(error):
            raise fault
        if not isinstance(error, DatasetError | UserError):
            logger.error("planning %s failed", repo_id, exc_info=error)
        self.summary.dataset_failures[repo_id] = clean(error, 300)

    def _failed(self, repo_id: str, failure: Failure) -> None:
        self.summary.failures.setdefault(repo_id, {})[failure.episode] = failure.reason
        append(self.plan.folder, repo_id, failure)

    def _take(self, job: Job, outcome: Outcome) -> None:
        summary = self.summary
        if isinstance(outcome, Result):
            self._in_a_row = 0
            summary.done += 1
            summary.trusted += outcome.task is not None
            summary.views_failed += VIEWS_FAILED in outcome.flags
            summary.requests += outcome.requests
            summary.prompt_tokens += outcome.tokens.get("prompt", 0)
            summary.completion_tokens += outcome.tokens.get("completion", 0)
        elif fault := machine_error(outcome):
            raise fault
        else:
            reason = _reason(job, outcome)
            failure = Failure(job.episode, job.state, *self._who, reason, now(), job.recorded)
            self._failed(job.repo_id, failure)
            if isinstance(outcome, HopelessError):
                raise outcome
            self._in_a_row = self._in_a_row + 1 if isinstance(outcome, UnreachableError) else 0
            if self._in_a_row >= GIVE_UP_AFTER:
                summary.stopped = f"{GIVE_UP_AFTER} questions in a row got no answer: {outcome}"
        self._waiting[job.repo_id] -= 1
        if not self._waiting[job.repo_id]:
            self._finish(self._open[job.repo_id])

    def _finish(self, work: DatasetWork) -> None:
        """Write the sidecar unless it is up to date, and release the dataset."""
        self._open.pop(work.repo_id, None)
        self._waiting.pop(work.repo_id, None)
        try:
            if not is_current(self.plan.folder, work.repo_id, work.state):
                write_sidecar(self.plan.folder, work.repo_id, work.state)
        finally:
            work.close()


def _reason(job: Job, error: Exception) -> str:
    if not isinstance(error, BackendError | DatasetError | UserError):
        logger.error("episode %s of %s failed", job.episode, job.repo_id, exc_info=error)
        return clean(f"{type(error).__name__}: {error}", 300)
    return clean(error, 300)


def write(folder: Path, job: Job, result: Result) -> Result:
    """Append a result to its journal, and return it."""
    append(folder, job.repo_id, result)
    return result


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary for `--json`."""
    rate = summary.done / summary.seconds if summary.seconds else 0.0
    return {**vars(summary), "failed": summary.failed, "episodes_per_s": round(rate, 3)}
