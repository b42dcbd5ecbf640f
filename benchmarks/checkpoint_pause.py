"""How long training stands still for a checkpoint, and how long the checkpoint takes to be written.

    python benchmarks/checkpoint_pause.py --megabytes=300 --saves=4 --folder=/some/disk

A policy of that size is trained with random gradients; weights, average and both moments of AdamW are saved
while steps go on. The last line is JSON: for the slowest save `pause_s`, `write_s` and their `ratio`, and how
long a step takes while a checkpoint is written over what it takes otherwise.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
from accelerate import Accelerator

from depi.policies import DepiPi0Config, make_policy
from depi.training import saving
from depi.training.config import EmaConfig, TrainConfig
from depi.training.ema import MovingAverage
from depi.training.optimizer import make_optimizer
from depi.training.run_state import Run
from depi.training.saving import Saver


class NoProcessors:
    """Stands for processors, whose files are small and need a tokenizer."""

    def save_pretrained(self, folder: Path) -> None:
        """Write nothing."""


def make_run(folder: Path, megabytes: int, decay: float | None, device: str) -> SimpleNamespace:
    """What `Saver` reads of a run, with a policy of about so many megabytes of float32."""
    small = DepiPi0Config(
        device=device, depth=4, width=512, mlp_dim=2048, expert_width=256, expert_mlp_dim=1024
    )
    data = SimpleNamespace(state_dim=6, action_dim=6, camera_slots=("observation.images.0",))
    rest = sum(value.numel() for value in make_policy(small, data).parameters()) * 4 / 1e6
    wide = max(2048, int(2048 + (megabytes - rest) * 1e6 / 4 / (3 * 512 * 4)))
    small.mlp_dim = wide
    policy = make_policy(small, data)
    policy.config.action_feature_names = [f"joint_{number}" for number in range(6)]
    config = TrainConfig(policy=policy.config, ema=EmaConfig(decay), steps=1000, save_freq=1, keep_last=1)
    config.output_dir, config.job_name = folder, "pause"
    report = {"num_episodes": 0, "num_frames": 0, "datasets": [], "decode_failures": {}}
    optimizer = make_optimizer(policy)
    return SimpleNamespace(
        config=config,
        accelerator=Accelerator(cpu=device == "cpu"),
        dataset=SimpleNamespace(report=lambda: report),
        policy=policy,
        processors=(NoProcessors(), NoProcessors()),
        optimizer=optimizer,
        scheduler=policy.config.get_scheduler_preset().build(optimizer, 1000),
        average=None if decay is None else MovingAverage(policy, decay),
        global_batch=1,
        report=report,
        step=0,
    )


def take_step(run: SimpleNamespace) -> float:
    """Update the weights with the gradients that are there, and return the seconds that it took."""
    started = time.perf_counter()
    run.optimizer.step()
    if run.average is not None:
        run.average.update()
    if run.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    run.step += 1
    return time.perf_counter() - started


def measure(run: SimpleNamespace, saves: int) -> dict[str, float]:
    """Save so many times while steps go on."""
    pauses, writes = [], []
    write = saving.write_checkpoint

    def timed(*args):
        started = time.perf_counter()
        folder = write(*args)
        writes.append(time.perf_counter() - started)
        return folder

    saving.write_checkpoint = timed
    for parameter in run.policy.parameters():
        parameter.grad = torch.randn_like(parameter)
    saver = Saver(cast(Run, run))
    take_step(run)
    saver.after_step()
    alone = min(take_step(run) for _ in range(4))
    during = []
    for _ in range(saves):
        started = time.perf_counter()
        saver.save()
        pauses.append(time.perf_counter() - started)
        while saver._writing is not None and not saver._writing.done():
            during.append(take_step(run))
        saver.wait()
        print(f"pause {pauses[-1]:.3f} s, write {writes[-1]:.2f} s")
    saver.finish(stopped=False)
    saver.close()
    size = sum(
        path.stat().st_size for path in (run.config.checkpoints_dir / "last").rglob("*") if path.is_file()
    )
    slowest = max(range(saves), key=lambda number: pauses[number] / writes[number])
    return {
        "megabytes": round(size / 1e6),
        "pause_s": round(pauses[slowest], 4),
        "write_s": round(writes[slowest], 3),
        "ratio": round(pauses[slowest] / writes[slowest], 4),
        "step_during_write": round(sum(during) / len(during) / alone, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300, help="of weights")
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--decay", type=float, help="with an average of the weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if not given")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pause-", dir=args.folder))
    try:
        print(json.dumps(measure(make_run(folder, args.megabytes, args.decay, args.device), args.saves)))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
