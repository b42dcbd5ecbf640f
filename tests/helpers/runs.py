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


def small_training(data_ids: Path, output_dir: Path) -> list[str]:
    """What trains the smallest pi0 for six steps on two datasets; later flags win."""
    small = {
        "image_resolution": "[28,28]",
        "vision_width": 16,
        "vision_depth": 1,
        "vision_mlp_dim": 32,
        "width": 32,
        "mlp_dim": 32,
        "expert_width": 32,
        "expert_mlp_dim": 32,
        "depth": 2,
        "head_dim": 16,
        "chunk_size": 4,
        "n_action_steps": 4,
        "optimizer_lr": 3e-3,
        "scheduler_warmup_steps": 1,
        "scheduler_decay_steps": 3,
    }
    return [
        "--policy.type=depi_pi0",
        "--policy.device=cpu",
        *(f"--policy.{name}={value}" for name, value in small.items()),
        "--num_datasets=2",
        f"--dataset.data_ids={data_ids}",
        f"--output_dir={output_dir}",
        "--job_name=test",
        "--steps=6",
        "--batch_size=4",
        "--num_workers=0",
        "--log_freq=1",
        "--save_freq=2",
    ]
