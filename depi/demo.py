"""`depi demo`: the whole pipeline on an embedded Hub, offline, in a few minutes on two cores.

Every step runs the command that a user types, in a process of its own, against the embedded Hub.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from depi.datasets.union.lists import read_bad_episodes
from depi.errors import UserError
from depi.files import read_json, write_json
from depi.flags import check_ranges, parse_flags
from depi.hub.server.serve import LocalHub, serve
from depi.journal import read_lines

if TYPE_CHECKING:
    from depi.sim.community import Contributor

MODEL_ID = "depi-demo/pi0-tiny"
MARKER = "demo.json"
TRAIN_SCRIPT = Path(__file__).with_name("train.py")


@dataclass
class DemoConfig:
    """Run the whole pipeline offline: an embedded Hub, simulated datasets, a tiny pi0."""

    # Everything the demo writes goes here; the folder of an earlier demo is replaced.
    root: Path = Path("outputs/demo")
    # Episodes of each good contributor.
    episodes: int = 4
    # Training steps.
    steps: int = 300
    # Rollouts of the trained policy.
    eval_episodes: int = 5

    def __post_init__(self) -> None:
        check_ranges(self, episodes=(3, None), steps=(40, None), eval_episodes=(1, None))


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
    def trained(self) -> Path:
        """The training run."""
        return self.root / "train"

    @property
    def checkpoint(self) -> Path:
        """The run's newest checkpoint."""
        return self.trained / "checkpoints" / "last" / "pretrained_model"


def run(command: Sequence[str]) -> None:
    """Run a command to its end.

    Raises:
        UserError: it failed; its own message is above.
    """
    status = subprocess.run(command, check=False).returncode
    if status:
        raise UserError(f"the demo's step ended with status {status}: {' '.join(command)}")


def environment(hub: LocalHub, root: Path) -> dict[str, str]:
    """Return the environment variables by which this process and its children use only the embedded Hub."""
    return {
        **hub.environment(),
        "HF_HOME": str((root / "hf_home").resolve()),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def depi(*args: str) -> list[str]:
    """Return the command line of a `depi` verb in this Python."""
    return [sys.executable, "-m", "depi.cli", *args]


def record(demo: Demo) -> str:
    """A community records datasets, each in its own way, and publishes them."""
    from depi.hub.client.api import upload_folder
    from depi.sim.community import Contributor, community, record_community

    contributors = community(demo.config.episodes)
    root = demo.root / "community"

    def recorded(contributor: Contributor, done: int, total: int) -> None:
        demo.console.print(f"{done:>3} of {total}: {contributor.repo_id} ({describe(contributor)})")
        upload_folder(
            root / contributor.repo_id,
            contributor.repo_id,
            repo_type="dataset",
            commit_message="Upload dataset",
            tag=contributor.setup.format,
        )

    record_community(root, contributors, workers=2, progress=recorded)
    return f"{len(contributors)} datasets recorded and published"


def describe(contributor: "Contributor") -> str:
    """Describe how a contributor's recordings differ from others."""
    setup = contributor.setup
    cameras = "+".join(camera.name for camera in setup.cameras)
    about = f"{setup.format}, {setup.fps} fps, {cameras} {setup.width}x{setup.height}, {setup.codec}"
    defect = f", {contributor.defect.replace('_', ' ')}" if contributor.defect else ""
    return f"{about}, {setup.convention}{defect}"


def collect(demo: Demo) -> str:
    """Find the datasets and judge them."""
    folder = demo.root / "data_ids"
    run(depi("collect-ids", f"--output_dir={folder}"))
    accepted = read_json(folder / "dataset_list_valid.json")
    rejected = read_json(folder / "bad_dataset_ids.json")
    bad = sum(len(found) for (repo_id, _), found in read_bad_episodes(folder).items() if repo_id in accepted)
    return f"{len(accepted)} accepted without {bad} bad episodes, {len(rejected)} rejected with reasons"


def annotate(demo: Demo) -> str:
    """Clean their task texts by rules; with a VLM, new ones are written."""
    folder = demo.root / "annotations"
    chosen = (f"--repo_ids={demo.root / 'data_ids' / 'dataset_list_valid.json'}", f"--annotations={folder}")
    run(depi("annotate", "--backend=rules", *chosen))
    rows = [row for path in folder.rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    cleaned = sum(row["task"] is not None for row in rows)
    return f"{cleaned} of {len(rows)} episodes have a usable text by rules alone, the others need a VLM"


def train_command(*more: str) -> list[str]:
    """Return the command that trains the tiny pi0."""
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--cpu"),
        *("--num_processes=1", "--num_machines=1", "--num_cpu_threads_per_process=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", str(TRAIN_SCRIPT)),
        *more,
    ]


def train(demo: Demo) -> str:
    """Train pi0 on the accepted ones; SIGTERM half way."""
    accepted = read_json(demo.root / "data_ids" / "dataset_list_valid.json")
    steps = demo.config.steps
    command = train_command(
        f"--num_datasets={len(accepted)}",
        f"--dataset.data_ids={demo.root / 'data_ids'}",
        *("--dataset.use_annotated_tasks=true", f"--dataset.annotations={demo.root / 'annotations'}"),
        "--dataset.action_freq=10",
        f"--output_dir={demo.trained}",
        *("--policy.type=depi_pi0", "--policy.device=cpu", "--policy.push_to_hub=false"),
        *("--policy.chunk_size=16", "--policy.n_action_steps=8"),
        *("--policy.optimizer_lr=1e-3", "--policy.scheduler_decay_lr=1e-4"),
        *(f"--steps={steps}", "--batch_size=8", "--num_workers=2", "--log_freq=20", "--save_freq=100"),
        "--job_name=pi0-tiny",
    )
    launcher = subprocess.Popen(command)
    try:
        while launcher.poll() is None and last_logged_step(demo.trained) < steps // 2:
            time.sleep(0.2)
        stop_trainer(launcher)
        launcher.wait()
    finally:
        stop_trainer(launcher)
    stopped = last_logged_step(demo.trained)
    if not demo.checkpoint.exists() or stopped >= steps:
        raise UserError(f"training was to be stopped half way and to save, but ended at step {stopped}")
    return f"stopped by SIGTERM at step {stopped} of {steps}, checkpoint saved"


def stop_trainer(launcher: subprocess.Popen) -> None:
    """Send SIGTERM to the process that `accelerate launch` has started, if it still runs."""
    if launcher.poll() is None:
        for trainer in psutil.Process(launcher.pid).children():
            trainer.terminate()


def resume(demo: Demo) -> str:
    """Continue from the checkpoint to the end."""
    run(train_command("--resume=true", f"--config_path={demo.checkpoint}"))
    losses = [line["loss"] for line in metrics(demo.trained)]
    if not losses[-1] < losses[0]:
        raise UserError(f"the loss did not fall: {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    return f"{demo.config.steps} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}"


def evaluate(demo: Demo) -> str:
    """Roll the checkpoint out in the simulator."""
    output = demo.root / "eval"
    run(
        depi(
            "eval",
            f"--policy.path={demo.checkpoint}",
            *("--policy.device=cpu", "--env.type=so101", "--env.task=touch"),
            f"--eval.n_episodes={demo.config.eval_episodes}",
            f"--output_dir={output}",
        )
    )
    result = read_json(output / "eval.json")
    rate, count = result["success_rate"], len(result["episodes"])
    return f"success rate {rate:.0%} of {count} episodes, videos in {output / 'videos'}"


def publish(demo: Demo) -> str:
    """Upload, download again, compare actions."""
    run(depi("upload", str(demo.trained), MODEL_ID))
    run([sys.executable, "-m", "depi.evaluation.same_actions", str(demo.checkpoint), MODEL_ID])
    return f"{MODEL_ID} gives the same actions after download"


# In the order in which they happen: title, what is done, what a user types against the real Hub.
STEPS: tuple[tuple[str, Callable[[Demo], str], str], ...] = (
    ("record", record, "depi sim record --task=touch --repo_id=YOU/so101_touch --episodes=50 --push"),
    ("collect", collect, "depi collect-ids"),
    ("annotate", annotate, "depi annotate --base_url=http://127.0.0.1:8000/v1"),
    ("train", train, "accelerate launch depi/train.py --num_datasets=1500 --policy.type=pi0"),
    ("resume", resume, "accelerate launch depi/train.py --resume=true --output_dir=RUN"),
    ("evaluate", evaluate, "depi eval --policy.path=RUN/checkpoints/last/pretrained_model --env.task=touch"),
    ("publish", publish, "depi upload RUN YOU/pi0-so101"),
)


def last_logged_step(run: Path) -> int:
    """Return the last step in the run's metrics, 0 before there is one."""
    lines = metrics(run)
    return lines[-1]["step"] if lines else 0


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the complete lines of `metrics.jsonl`."""
    return [json.loads(line) for line in read_lines(run / "metrics.jsonl")]


def prepare_root(root: Path) -> None:
    """Make the demo's folder, replacing that of an earlier demo and nothing else.

    Raises:
        UserError: the folder holds something that a demo has not written.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        if not (root / MARKER).exists():
            raise UserError(f"{root} holds something else: choose another folder with --root")
        shutil.rmtree(root)
    write_json(root / MARKER, {"finished": False})


def main(args: Sequence[str]) -> int:
    """Run the `depi demo` verb."""
    config = parse_flags(DemoConfig, args, "depi demo")
    console = Console(stderr=True)
    prepare_root(config.root)
    started = time.perf_counter()
    with serve(config.root / "hub") as hub:
        demo = Demo(config, console)
        os.environ.update(environment(hub, config.root))
        console.print(f"[bold]embedded Hub[/bold] at {hub.endpoint}, files in {config.root / 'hub'}")
        console.print("[dim]$ depi hub serve --root DIR --port 8080[/dim]")
        for number, (title, step, command) in enumerate(STEPS, start=1):
            console.rule(f"{number}/{len(STEPS)} {title}: {step.__doc__}", align="left")
            console.print(f"[dim]$ {command}[/dim]", highlight=False)
            step_started = time.perf_counter()
            result = step(demo)
            demo.results.append((title, result, time.perf_counter() - step_started))
    report(demo, time.perf_counter() - started)
    return 0


def report(demo: Demo, seconds: float) -> None:
    """Print the closing table and write it to `demo.json`."""
    table = Table(title=f"DePi demo, {seconds:.0f} s")
    for column in ("step", "what happened", "seconds"):
        table.add_column(column, overflow="fold", justify="right" if column == "seconds" else "left")
    for title, result, step_seconds in demo.results:
        table.add_row(title, result, f"{step_seconds:.0f}")
    Console().print(table)
    steps = [{"step": title, "result": result, "seconds": round(s, 1)} for title, result, s in demo.results]
    write_json(demo.root / MARKER, {"finished": True, "seconds": round(seconds, 1), "steps": steps})
