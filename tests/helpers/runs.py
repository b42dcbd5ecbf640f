"""Training runs in tests: how they are started, and what they have written."""

import json
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "depi" / "train.py"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--mixed_precision=no", "--dynamo_backend=no"]


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics(run) if "loss" in line}


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "last" / "pretrained_model" / "model.safetensors").read_bytes()


def replaced(flags: list[str], **changes) -> list[str]:
    return [*flags, *(f"--{name}={value}" for name, value in changes.items())]
