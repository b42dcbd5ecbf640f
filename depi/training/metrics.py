"""The output of a training run: LeRobot's log line, `metrics.jsonl`, and Weights & Biases."""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from depi.errors import no_room
from depi.files import write_text
from depi.journal import append_whole, read_lines
from depi.progress import progress_bar
from depi.training.config import TrainConfig

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class StepMetrics:
    """Averages since the last log line, over all processes and the steps that were not skipped.

    Counts are totals of the run. None stands for not known, and is left out of the files.
    """

    step: int
    samples: int
    episodes: float
    epochs: float
    loss: float | None
    grad_norm: float | None
    lr: float
    update_s: float
    data_s: float
    samples_per_s: float
    # The largest over the processes: peak memory of a GPU, or resident memory of a process on the CPU.
    memory_gb: float
    # Model FLOPs utilisation: operations that the mathematics asks for, as a share of the device's peak.
    mfu: float | None
    # Samples drawn in place of ones that could not be decoded, since the run was started or resumed.
    replaced: int
    # Steps that did not change the weights; see `BadSteps`.
    skipped: int
    # Other scalars that the policy returns, by name; averages over all steps.
    details: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        numbers = {
            "step": str(self.step),
            "smpl": short_count(self.samples),
            "ep": short_count(self.episodes),
            "epch": f"{self.epochs:.2f}",
            "loss": "-" if self.loss is None else f"{self.loss:.3f}",
            "grdn": "-" if self.grad_norm is None else f"{self.grad_norm:.3f}",
            "lr": f"{self.lr:.1e}",
            "updt_s": f"{self.update_s:.3f}",
            "data_s": f"{self.data_s:.3f}",
            "smpl/s": f"{self.samples_per_s:.1f}",
            "mem_gb": f"{self.memory_gb:.1f}",
        }
        if self.mfu is not None:
            numbers["mfu"] = f"{self.mfu:.1%}"
        if self.skipped:
            numbers["skip"] = short_count(self.skipped)
        return " ".join(f"{name}:{number}" for name, number in numbers.items())

    def known(self) -> dict[str, float]:
        """The known values by name."""
        values = {**asdict(self), **self.details}
        del values["details"]
        return {name: value for name, value in values.items() if value is not None}


def short_count(number: float) -> str:
    """Return 1234567 as 1M, the way LeRobot prints counts."""
    for unit in ("", "K", "M", "B"):
        if abs(number) < 1000:
            return f"{number:.0f}{unit}"
        number /= 1000
    return f"{number:.0f}T"


class MetricsWriter:
    """Writes metrics on the main process: one line to the terminal, one to `metrics.jsonl`, one to W&B."""

    def __init__(self, config: TrainConfig, start_step: int) -> None:
        assert config.output_dir is not None
        self.path = config.output_dir / METRICS_NAME
        self._unwritten = b""
        _forget_lines_after(self.path, start_step)
        self._open = ExitStack()
        self._show = self._open.enter_context(progress_bar("Training", config.steps, done=start_step))
        self._note = ""
        self.wandb = _start_wandb(config) if config.wandb.enable else None

    def advance(self, step: int) -> None:
        """Show that `step` has been taken, with loss and speed of the last log line."""
        self._show(step, note=self._note)

    def write(self, metrics: StepMetrics, skipped_frames: list[dict[str, Any]]) -> None:
        """Write one line of metrics everywhere, and the frames of skipped steps to `metrics.jsonl`."""
        logger.info("%s", metrics)
        loss = "" if metrics.loss is None else f"loss {metrics.loss:.3f}, "
        self._note = f"{loss}{metrics.samples_per_s:.1f} samples/s"
        frames = {"skipped_frames": skipped_frames} if skipped_frames else {}
        self._append({**metrics.known(), **frames})
        if self.wandb is not None:
            values = {f"train/{name}": value for name, value in metrics.known().items()}
            self.wandb.log(values, step=metrics.step)

    def write_evaluation(self, step: int, values: dict[str, float], summary: dict[str, float]) -> None:
        """Write what was measured after `step`.

        Args:
            step: optimizer steps taken.
            values: by names that begin with `eval/`; all go to `metrics.jsonl`.
            summary: the values for W&B.
        """
        self._append({"step": step, **values})
        if self.wandb is not None:
            self.wandb.log(summary, step=step)

    def _append(self, values: Mapping[str, Any]) -> None:
        """Add a line; on a full disk it waits in memory for the next one."""
        waits = bool(self._unwritten)
        self._unwritten += json.dumps({**values, "time": time.time()}).encode() + b"\n"
        try:
            append_whole(self.path, self._unwritten)
        except OSError as error:
            if (reason := no_room(error)) is None:
                raise
            if not waits:
                logger.error("%s cannot be written, %s: make room there; training goes on", self.path, reason)
            return
        self._unwritten = b""

    def close(self) -> None:
        """End the progress bar and the W&B run; lines that still wait are tried once more, or given up."""
        self._open.close()
        if self._unwritten:
            try:
                append_whole(self.path, self._unwritten)
            except OSError as error:
                logger.error("the last lines of %s are lost: %s", self.path, error.strerror)
        if self.wandb is not None:
            self.wandb.finish()


def last_metrics(config: TrainConfig, step: int) -> dict[str, Any]:
    """The newest value of everything in the run's metrics, up to `step`; empty where there is none."""
    assert config.output_dir is not None
    newest: dict[str, Any] = {}
    for line in _lines_until(config.output_dir / METRICS_NAME, step):
        newest.update(json.loads(line))
    return newest


def is_measured(config: TrainConfig, step: int) -> bool:
    """Whether the run's metrics have the evaluation that is made after `step`."""
    assert config.output_dir is not None
    lines = map(json.loads, _lines_until(config.output_dir / METRICS_NAME, step))
    return any(line["step"] == step and any(name.startswith("eval/") for name in line) for line in lines)


def _forget_lines_after(path: Path, step: int) -> None:
    """Drop what a killed run logged after the checkpoint from which it continues, and half a last line."""
    kept = b"".join(line + b"\n" for line in _lines_until(path, step))
    if path.exists() and path.stat().st_size != len(kept):
        write_text(path, kept.decode())


def _lines_until(path: Path, step: int) -> list[bytes]:
    return [line for line in read_lines(path) if json.loads(line)["step"] <= step]


def _start_wandb(config: TrainConfig) -> Any:
    import wandb

    settings = config.wandb
    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        name=config.job_name,
        notes=settings.notes,
        id=settings.run_id,
        resume="allow",
        mode=settings.mode,
        dir=str(config.output_dir),
        config=config.to_dict(),
    )
