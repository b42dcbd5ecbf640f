"""Saving while training goes on: a copy of the state in the loop, everything else in a thread."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from safetensors import SafetensorError

from depi.errors import UserError, no_room
from depi.files import write_json
from depi.training.checkpoint import DATA_REPORT_NAME, write_checkpoint
from depi.training.folders import remove_old
from depi.training.pushing import Pusher
from depi.training.run_state import Run
from depi.training.snapshot import HostMemory, Snapshot

logger = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run, one at a time, in the background.

    Every process makes one and calls its methods at the same steps; the main process writes.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.main = run.accelerator.is_main_process
        self.memory = HostMemory(run.accelerator.device, self.main)
        self.pusher = Pusher(run.config) if self.main and run.config.pushes else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._unsaved: str | None = None
        config = run.config
        self._reserved = not 0 < config.save_freq < config.steps - run.step

    def after_step(self) -> None:
        """To be called after every step: raise the error of a write that has failed.

        The first call allocates the memory of snapshots, so that the first save pauses no longer than the
        others; the optimizer has no state before the first step.
        """
        if not self._reserved:
            take_snapshot(self.run, self.memory)
            self._reserved = True
        if self._writing is not None and self._writing.done():
            self.wait()

    def save(self) -> None:
        """Start writing a checkpoint of the present step, after waiting for a write that is still running.

        Raises:
            Exception: the error of the earlier write; a full disk is only logged.
        """
        started = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - started
        if waited > 1:
            logger.warning("waited %.1f s for the write of the checkpoint before: save less often", waited)
        started = time.perf_counter()
        snapshot = take_snapshot(self.run, self.memory)
        pause = time.perf_counter() - started
        if self.main:
            self._writing = self._thread.submit(self._write, snapshot, pause)

    def publish_again(self, pretrained: Path) -> None:
        """Publish a checkpoint that is there, as a run that pushes does after saving it."""
        if self.pusher:
            self.pusher.push(pretrained)

    def wait(self) -> None:
        """Wait until nothing is being written, and raise the error of the write."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def finish(self, *, stopped: bool) -> None:
        """Wait for the last checkpoint; and for its upload, unless the run was `stopped`.

        Raises:
            UserError: there was no room for it.
        """
        self.wait()
        if self._unsaved:
            raise UserError(self._unsaved)
        if self.pusher and not stopped:
            self.pusher.wait()
        self.run.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Wait for a write that is still running, and log its error."""
        self._thread.shutdown()
        if self._writing is not None and (error := self._writing.exception()):
            logger.error("the last checkpoint was not saved: %s", error)

    def _write(self, snapshot: Snapshot, pause: float) -> None:
        started, config = time.perf_counter(), self.run.config
        self.memory.wait()
        try:
            assert config.output_dir is not None
            write_json(config.output_dir / DATA_REPORT_NAME, snapshot.report)
            folder = write_checkpoint(config, snapshot, self.run.policy, self.run.processors)
        except (OSError, SafetensorError) as error:
            reason = no_room(error)
            if reason is None:
                raise
            self._unsaved = (
                f"the checkpoint of step {snapshot.step} was not saved, {reason} "
                f"in {config.checkpoints_dir}: make room there, or keep fewer checkpoints with --keep_last"
            )
            logger.error("%s; training goes on and saves again at the next time", self._unsaved)
            return
        self._unsaved = None
        seconds = time.perf_counter() - started
        logger.info("saved %s (written in %.1f s, training paused %.2f s)", folder, seconds, pause)
        if self.pusher:
            self.pusher.push(folder / PRETRAINED_MODEL_DIR)
        busy = self.pusher.busy if self.pusher else set()
        try:
            remove_old(folder, config.keep_last, config.keep_every, busy)
        except OSError as error:  # such as of a network file system while another process reads them
            logger.warning("an old checkpoint could not be removed: %s", error)


def take_snapshot(run: Run, memory: HostMemory) -> Snapshot:
    """Copy the content of a checkpoint of this step; collective, only the main process uses it."""
    policy = run.policy
    frozen = {name for name, parameter in policy.named_parameters() if not parameter.requires_grad}
    weights = memory.copy(policy.state_dict(), "weights", shared=frozen)
    average = None
    if run.average is not None:
        average = {**weights, **memory.copy(run.average.average, "average")}
    optimizer = memory.copy(run.optimizer.state_dict(), "optimizer")
    return Snapshot(
        step=run.step,
        global_batch=run.global_batch,
        weights=weights,
        average=average,
        optimizer=optimizer,
        scheduler=memory.copy(run.scheduler.state_dict(), "scheduler"),
        report=data_report(run),
    )


def data_report(run: Run) -> dict[str, Any]:
    """The run's data report, up to date with the samples that could not be decoded; collective.

    They are those of all processes, and of the run before it was resumed.
    """
    failures = gather_object([run.dataset.report()["decode_failures"]])
    if not run.accelerator.is_main_process:
        return {}
    return {**run.report, "decode_failures": added_up([run.report["decode_failures"], *failures])}


def added_up(failures: Sequence[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Counts by dataset and episode, summed over all reports."""
    counts: dict[str, Counter[str]] = {}
    for report in failures:
        for repo_id, episodes in report.items():
            counts.setdefault(repo_id, Counter()).update(episodes)
    return {repo_id: dict(episodes) for repo_id, episodes in counts.items()}
