"""Action steps past an episode's end: left out of the loss, or learned as the last action repeated.

    python benchmarks/padded_actions.py --root=outputs/padded_actions

Records simulated SO-101 episodes of the task `touch`, and others to measure on; trains a tiny pi0 on them
with and without `--policy.do_mask_loss_for_padding`, each with several seeds; and compares the sampled chunks
with the recorded ones, and the success in the simulator. Prints a table, and writes `results.jsonl`, from
which a run that was stopped goes on. `benchmarks/README.md` keeps what was measured.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.demo.commands import TRAIN_SCRIPT, depi, run
from depi.files import read_json
from depi.flags import parse_flags
from depi.hub.server.serve import serve
from depi.policies import load_policy, load_processors, preprocess

# At 30 Hz an episode of the task has about 45 frames: a third of the chunks reach past its end.
FPS, CHUNK, PLAYED = 30, 16, 8


@dataclass
class PaddedConfig:
    """Train with and without padded action steps in the loss."""

    root: Path = Path("outputs/padded_actions")
    episodes: int = 40
    steps: int = 500
    batch_size: int = 8
    seeds: int = 3
    # Rollouts of each policy; 0: none.
    eval_episodes: int = 20


def record(config: PaddedConfig, name: str, episodes: int, seed: int) -> Path:
    """A dataset of the scripted expert, recorded unless it is there."""
    root = config.root / "datasets" / name
    if not root.exists():
        flags = ("--task=touch", f"--repo_id=sim/{name}", f"--root={root}", f"--fps={FPS}")
        run(depi("sim", "record", *flags, f"--episodes={episodes}", f"--seed={seed}"))
    return root


def train(config: PaddedConfig, data: Path, masked: bool, seed: int) -> Path:
    """The folder of a run, trained unless it is there."""
    output = config.root / f"{'masked' if masked else 'counted'}_{seed}"
    if not (output / "checkpoints" / "last").exists():
        policy = {
            "type": "depi_pi0",
            "device": "cpu",
            "chunk_size": CHUNK,
            "n_action_steps": PLAYED,
            "optimizer_lr": 1e-3,
            "scheduler_decay_lr": 1e-4,
            "scheduler_warmup_steps": 50,
            "scheduler_decay_steps": config.steps,
            "do_mask_loss_for_padding": str(masked).lower(),
        }
        flags = (
            *(f"--policy.{name}={value}" for name, value in policy.items()),
            *("--dataset.repo_id=sim/train", f"--dataset.root={data}", f"--output_dir={output}"),
            *(f"--steps={config.steps}", f"--batch_size={config.batch_size}", f"--seed={seed}"),
            *("--save_freq=0", "--eval_freq=0", "--num_workers=1", "--log_freq=50"),
        )
        run([sys.executable, str(TRAIN_SCRIPT), *flags])
    return output


@torch.no_grad()
def chunk_errors(checkpoint: Path, data: Path) -> dict[str, float]:
    """Mean absolute error of sampled chunks, in standard deviations of the actions.

    Of chunks within the episode; of those that reach past its end, their recorded steps and the steps past
    it, where a robot goes on executing; and of the last step of a chunk, whether recorded or not.
    """
    policy, (before, _) = load_policy(checkpoint), load_processors(checkpoint)
    dataset = MultiLeRobotDataset(
        [DatasetSource("sim/test", root=data)],
        chunk_size=CHUNK,
        image_size=policy.config.image_resolution[0],
    )
    torch.manual_seed(0)
    sums: dict[str, list[float]] = {}
    for batch in DataLoader(dataset, batch_size=64):
        batch = preprocess(batch, before)
        errors = (policy.predict_action_chunk(batch) - batch["action"]).abs().mean(dim=2)
        padded = batch["action_is_pad"]
        ends = padded.any(dim=1, keepdim=True).expand_as(padded)
        for name, chosen in (
            ("within", ~ends),
            ("recorded steps near the end", ends & ~padded),
            ("steps past the end", padded),
            ("played, near the end", ends & (torch.arange(CHUNK) < PLAYED)),
            ("chunk's last step", torch.arange(CHUNK).expand_as(padded) == CHUNK - 1),
        ):
            sums.setdefault(name, []).extend(errors[chosen].tolist())
    return {name: mean(values) for name, values in sums.items()}


def success(config: PaddedConfig, checkpoint: Path) -> dict[str, float]:
    """The success rate in the simulator."""
    output = checkpoint / "eval_touch"
    flags = (
        "--env.type=so101",
        "--env.task=touch",
        f"--env.fps={FPS}",
        "--eval.n_videos=0",
        "--policy.device=cpu",
    )
    count = f"--eval.n_episodes={config.eval_episodes}"
    run(depi("eval", f"--policy.path={checkpoint}", *flags, count, f"--output_dir={output}"))
    return {"success rate": read_json(output / "eval.json")["success_rate"]}


def main() -> int:
    """Measure what is not in the results yet, and print them."""
    config = parse_flags(PaddedConfig, sys.argv[1:], "padded_actions")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    config.root.mkdir(parents=True, exist_ok=True)
    results = config.root / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    with serve(config.root / "hub") as hub:
        os.environ.update(hub.environment())
        data = record(config, "train", config.episodes, 0)
        test = record(config, "test", 10, 10_000)
        for seed in range(config.seeds):
            for masked in (True, False):
                if any((line["masked"], line["seed"]) == (masked, seed) for line in lines):
                    continue
                folder = train(config, data, masked, seed)
                figures = chunk_errors(folder, test)
                if config.eval_episodes:
                    figures |= success(config, folder)
                lines.append({"masked": masked, "seed": seed, **figures})
                with results.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    show(lines)
    return 0


def show(lines: list[dict]) -> None:
    """Means over the seeds, with their standard deviations."""
    table = Table(title="padded action steps")
    for column in ("", "left out", "counted"):
        table.add_column(column)
    for name in (name for name in lines[0] if name not in ("masked", "seed")):
        cells = []
        for masked in (True, False):
            values = [line[name] for line in lines if line["masked"] == masked]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}")
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
