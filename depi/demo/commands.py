"""What the steps of the demo share: its state, the commands that they run, and what those have written."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from depi.errors import UserError
from depi.flags import check_ranges
from depi.hub.server.serve import LocalHub
from depi.journal import read_lines

TRAIN_SCRIPT = Path(__file__).parents[1] / "train.py"


@dataclass
class DemoConfig:
    """Run the whole pipeline offline: an embedded Hub, simulated datasets, a tiny pi0."""

    # Everything the demo writes goes here; the folder of an earlier demo is replaced.
    root: Path = Path("outputs/demo")
    # Episodes of each good contributor to the community.
    episodes: int = 4
    # Training steps on the community's datasets.
    community_steps: int = 60
    # Episodes that the hobbyist records.
    own_episodes: int = 120
    # Training steps on those.
    steps: int = 1600
    # Rollouts of the hobbyist's policy.
    eval_episodes: int = 20
    # Of the hobbyist's recordings, training and rollouts, none of which share a scene.
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            episodes=(3, None),
            community_steps=(20, None),
            own_episodes=(2, 100_000),
            steps=(40, None),
            eval_episodes=(1, 100_000),
            seed=(0, 1000),
        )


@dataclass
class Demo:
    """The state of a demo: its configuration, its console, and the results so far."""

    config: DemoConfig
    console: Console
    results: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """Where everything is written."""
        return self.config.root

    @property
    def data_ids(self) -> Path:
        """The catalogue of the community's datasets."""
        return self.root / "data_ids"

    @property
    def community_run(self) -> Path:
        """The training run on the community's datasets."""
        return self.root / "train_community"

    @property
    def own_run(self) -> Path:
        """The training run on the hobbyist's recordings."""
        return self.root / "train"

    @property
    def evaluation(self) -> Path:
        """The rollouts of the hobbyist's policy."""
        return self.root / "eval"


def run(command: Sequence[str]) -> None:
    """Run a command to its end.

    Raises:
        UserError: it failed; its own message is above.
    """
    status = subprocess.run(command, check=False).returncode
    if status:
        raise UserError(f"the demo's step ended with status {status}: {' '.join(command)}")


def run_side_by_side(commands: Sequence[Sequence[str]]) -> list[str]:
    """Run commands at the same time and return the standard output of each.

    Raises:
        UserError: one failed; the message ends with its last line.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for command in commands]  # type: ignore[call-overload]
    try:
        ended = [process.communicate() for process in running]
    finally:
        for process in running:
            process.kill()
    for command, process, (_, said) in zip(commands, running, ended, strict=True):
        if process.returncode:
            raise UserError(
                f"the demo's step ended with status {process.returncode}: {' '.join(command)}: "
                f"{said.strip().rpartition('\n')[2]}"
            )
    return [output for output, _ in ended]


def environment(hub: LocalHub, root: Path) -> dict[str, str]:
    """Return the environment variables by which this process and its children use only the embedded Hub."""
    return {
        **hub.environment(),
        "HF_HOME": str((root / "hf_home").resolve()),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # A second thread gains nothing at this size, and waits for ever where other work keeps a core busy.
        "OMP_NUM_THREADS": "1",
    }


def depi(*args: str) -> list[str]:
    """Return the command line of a `depi` verb in this Python."""
    return [sys.executable, "-m", "depi.cli", *args]


def train_command(*more: str, processes: int = 1) -> list[str]:
    """Return the command that trains on the processor, with one thread in each process."""
    # By its name this launches any processes that train together.
    kind = ("--cpu",) if processes == 1 else ("--multi_gpu", "--main_process_port=0")
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet", *kind),
        *(f"--num_processes={processes}", "--num_machines=1", "--num_cpu_threads_per_process=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", str(TRAIN_SCRIPT)),
        *more,
    ]


def last_logged_step(run: Path) -> int:
    """Return the last step in the run's metrics, 0 before there is one."""
    lines = metrics(run)
    return lines[-1]["step"] if lines else 0


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the complete lines of `metrics.jsonl`."""
    return [json.loads(line) for line in read_lines(run / "metrics.jsonl")]
