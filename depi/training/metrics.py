"""What a run says while it trains: LeRobot's log line, `metrics.jsonl`, and Weights & Biases."""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from depi.files import write_text
from depi.training.config import TrainConfig

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class StepMetrics:
    """Averages since the last log line, over all processes and the steps that were not skipped.

    Counts are totals of the run. What is None is not known, and left out of the files.
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
    # The largest of the processes: peak of a GPU, or what is resident of a process on the CPU.
    memory_gb: float
    # Model FLOPs utilisation: operations that the mathematics asks for, as a share of the device's peak.
    mfu: float | None
    # Samples drawn in place of ones that could not be decoded, since the run was started or resumed.
    replaced: int
    # Steps that left the weights as they were; see `BadSteps`.
    skipped: int
    # What the policy says of its batches beside the loss, by name; of all steps.
    details: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        numbers = {
            "step": _short(self.step),
            "smpl": _short(self.samples),
            "ep": _short(self.episodes),
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
            numbers["skip"] = _short(self.skipped)
        return " ".join(f"{name}:{number}" for name, number in numbers.items())

    def known(self) -> dict[str, float]:
        """The values by name, but those that are not known."""
        values = {**asdict(self), **self.details}
        del values["details"]
        return {name: value for name, value in values.items() if value is not None}


def _short(number: float) -> str:
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
        _forget_lines_after(self.path, start_step)
        self.bar = tqdm(
            total=config.steps, initial=start_step, unit="step", desc="train", disable=not sys.stderr.isatty()
        )
        self.wandb = _start_wandb(config) if config.wandb.enable else None

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self.bar.update()

    def write(self, metrics: StepMetrics) -> None:
        """Write one line of metrics everywhere."""
        self.say(str(metrics))
        self._append(metrics.known())
        if self.wandb is not None:
            values = {f"train/{name}": value for name, value in metrics.known().items()}
            self.wandb.log(values, step=metrics.step)

    def write_evaluation(self, step: int, values: dict[str, float], summary: dict[str, float]) -> None:
        """Write what was measured after `step`.

        Args:
            step: optimizer steps taken.
            values: by names that begin with `eval/`; all go to `metrics.jsonl`.
            summary: those of them for W&B.
        """
        self._append({"step": step, **values})
        if self.wandb is not None:
            self.wandb.log(summary, step=step)

    def say(self, line: str) -> None:
        """Log a line, above the progress bar where there is one."""
        with self.bar.external_write_mode(file=sys.stderr):
            logger.info("%s", line)

    def _append(self, values: dict[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**values, "time": time.time()}) + "\n")

    def close(self) -> None:
        """End the progress bar and the W&B run."""
        self.bar.close()
        if self.wandb is not None:
            self.wandb.finish()


def last_metrics(config: TrainConfig, step: int) -> dict[str, Any]:
    """The newest value of everything in the run's metrics, up to `step`; empty where there is none."""
    assert config.output_dir is not None
    newest: dict[str, Any] = {}
    for line in _lines_until(config.output_dir / METRICS_NAME, step):
        newest.update(json.loads(line))
    return newest


def _forget_lines_after(path: Path, step: int) -> None:
    """Drop what a killed run logged beyond the checkpoint from which it goes on, and a torn last line."""
    kept = "".join(_lines_until(path, step))
    if path.exists() and path.stat().st_size != len(kept.encode()):
        write_text(path, kept)


def _lines_until(path: Path, step: int) -> list[str]:
    """The complete lines up to `step`; the last one of a killed run may be torn."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]


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
