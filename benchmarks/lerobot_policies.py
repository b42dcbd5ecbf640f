"""LeRobot's own policies trained by DePi and by `lerobot-train`, on the same data with the same settings.

    python benchmarks/lerobot_policies.py --root=outputs/lerobot_policies

Records gym-pusht with its scripted expert, and trains `act` and `diffusion` on it at reduced sizes, in turns
by `lerobot-train` and by `accelerate launch depi/train.py`, with several seeds, everything else at the
defaults of both. Both log in the same words; a line comes at the same steps. Loss is the mean since the line
before. Samples per second, and the processor time of a sample (all processes of the run together), are taken
between the first line and the last, so without start-up. Finished runs are kept in `results.jsonl`, from
which a stopped benchmark goes on. Prints a table and, last, one JSON object.
"""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import psutil
from rich.console import Console
from rich.table import Table

from depi.demo.commands import TRAIN_SCRIPT
from depi.flags import parse_flags
from depi.hub.server.serve import serve
from depi.sim.gym_tasks import GYM_TASKS, record_gym_dataset

POLICIES: dict[str, dict[str, object]] = {
    "act": {
        "chunk_size": 20,
        "n_action_steps": 20,
        "dim_model": 128,
        "n_heads": 4,
        "dim_feedforward": 256,
        "n_encoder_layers": 2,
        "n_vae_encoder_layers": 2,
        "optimizer_lr": 1e-4,
        "optimizer_lr_backbone": 1e-4,
    },
    "diffusion": {
        "down_dims": "[64,128]",
        "diffusion_step_embed_dim": 32,
        "scheduler_warmup_steps": 20,
    },
}
TRAINERS = ("lerobot-train", "depi")
REPO_ID = "sim/pusht"
LINE = re.compile(r"\bstep:(\d+) .*\bloss:([\d.]+)")


@dataclass
class ComparedConfig:
    """Train LeRobot's policies with both commands."""

    root: Path = Path("outputs/lerobot_policies")
    episodes: int = 20
    steps: int = 200
    batch_size: int = 8
    log_freq: int = 20
    num_workers: int = 1
    seeds: int = 3
    # A tiny size, to see that it works.
    smoke: bool = False

    def __post_init__(self) -> None:
        if self.smoke:
            self.episodes, self.steps, self.log_freq, self.seeds = 2, 4, 2, 1


@dataclass(frozen=True)
class Line:
    """A log line of a run: mean loss since the one before; seconds by the clock, and of all processors."""

    step: int
    loss: float
    clock: float
    processor: float


def command(config: ComparedConfig, trainer: str, kind: str, seed: int) -> list[str]:
    """The command line of one run."""
    output = config.root / "runs" / f"{kind}_{trainer}_{seed}"
    policy = {"type": kind, "device": "cpu", "push_to_hub": "false", "pretrained_backbone_weights": "null"}
    flags = [
        *(f"--policy.{name}={value}" for name, value in {**policy, **POLICIES[kind]}.items()),
        *(f"--dataset.repo_id={REPO_ID}", f"--dataset.root={config.root / 'pusht'}"),
        *(f"--output_dir={output}", f"--seed={seed}", f"--num_workers={config.num_workers}"),
        *(f"--{name}={getattr(config, name)}" for name in ("steps", "batch_size", "log_freq")),
    ]
    if trainer == "depi":
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--mixed_precision=no"]
        return [*launch, "--dynamo_backend=no", str(TRAIN_SCRIPT), *flags, "--save_freq=0"]
    return [str(Path(sys.executable).with_name(trainer)), *flags, "--save_checkpoint=false"]


def watch(arguments: list[str], log: Path) -> list[Line]:
    """Run a command, keep what it says in `log`, and return its log lines.

    Raises:
        CalledProcessError: it failed.
    """
    lines = []
    with log.open("w") as said:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for text in process.stdout:
            said.write(text)
            found = LINE.search(text)
            if found:
                now = time.perf_counter(), processor_seconds(process.pid)
                lines.append(Line(int(found[1]), float(found[2]), *now))
    if process.wait():
        print(f"failed, see {log}", file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, arguments)
    return lines


def processor_seconds(pid: int) -> float:
    """The processor time of a process, and of all that it has started."""
    root = psutil.Process(pid)
    return sum(sum(process.cpu_times()[:4]) for process in (root, *root.children(recursive=True)))


def measure(config: ComparedConfig, trainer: str, kind: str, seed: int) -> dict:
    """Train once: the losses by step, and what a sample costs."""
    arguments = command(config, trainer, kind, seed)
    lines = watch(arguments, config.root / f"{kind}_{trainer}_{seed}.log")
    first, last = lines[0], lines[-1]
    samples = (last.step - first.step) * config.batch_size
    return {
        "policy": kind,
        "trainer": trainer,
        "seed": seed,
        "losses": {line.step: line.loss for line in lines},
        "samples per second": samples / (last.clock - first.clock),
        "processor ms per sample": 1000 * (last.processor - first.processor) / samples,
    }


def main() -> int:
    """Measure what is not in the results yet, and print them."""
    config = parse_flags(ComparedConfig, sys.argv[1:], "lerobot_policies")
    os.environ["OMP_NUM_THREADS"] = "1"
    config.root.mkdir(parents=True, exist_ok=True)
    results = config.root / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(row["policy"], row["trainer"], row["seed"]) for row in rows}
    data = config.root / "pusht"
    if not data.exists():
        record_gym_dataset(GYM_TASKS["pusht"], REPO_ID, data, episodes=config.episodes, codec="h264")
    with serve(config.root / "hub") as hub:
        os.environ.update(hub.environment())
        for seed in range(config.seeds):
            for kind in POLICIES:
                # Each goes first as often as the other: what else the machine does changes with time.
                for trainer in TRAINERS if seed % 2 else reversed(TRAINERS):
                    if (kind, trainer, seed) in done:
                        continue
                    rows.append(measure(config, trainer, kind, seed))
                    with results.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    rows = json.loads(json.dumps(rows))  # steps are texts, as in the file
    show(rows)
    print(json.dumps({"config": {**asdict(config), "root": str(config.root)}, "runs": rows}))
    return 0


def show(rows: list[dict]) -> None:
    """Means over the seeds, with their standard deviations."""
    table = Table(title="LeRobot's policies on recorded pusht")
    for column in ("policy", "", *TRAINERS):
        table.add_column(column)
    for kind in POLICIES:
        runs = {
            trainer: [figures(row) for row in rows if (row["policy"], row["trainer"]) == (kind, trainer)]
            for trainer in TRAINERS
        }
        for name in next((found[0] for found in runs.values() if found), {}):
            table.add_row(kind, name, *(cell([run[name] for run in runs[trainer]]) for trainer in TRAINERS))
    Console().print(table)


def figures(row: dict) -> dict[str, float]:
    """What the table shows of a run, by name."""
    costs = {name: row[name] for name in ("samples per second", "processor ms per sample")}
    return {**{f"loss at step {step}": loss for step, loss in row["losses"].items()}, **costs}


def cell(values: list[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return "-"
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
