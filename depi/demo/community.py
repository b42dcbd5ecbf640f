"""The first half of the demo: what the community publishes is collected, judged, annotated and trained on."""

import subprocess
import time
from typing import TYPE_CHECKING

import psutil
import pyarrow.parquet as pq

from depi.datasets.union.lists import read_bad_episodes
from depi.demo.commands import Demo, depi, last_logged_step, metrics, run, train_command
from depi.errors import UserError
from depi.files import read_json

if TYPE_CHECKING:
    from depi.sim.community import Contributor


def publish_community(demo: Demo) -> str:
    """Fourteen people record datasets, each in their own way."""
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
    """Find the datasets, judge them, write the report."""
    folder = demo.data_ids
    run(depi("collect-ids", f"--output_dir={folder}", "--deep"))
    run(depi("report", f"--data_ids={folder}"))
    accepted = read_json(folder / "dataset_list_valid.json")
    rejected = read_json(folder / "bad_dataset_ids.json")
    bad = sum(len(found) for (repo_id, _), found in read_bad_episodes(folder).items() if repo_id in accepted)
    return f"{len(accepted)} accepted without {bad} bad episodes, {len(rejected)} rejected with reasons"


def annotate(demo: Demo) -> str:
    """Clean their task texts by rules; a VLM would write new ones."""
    folder = demo.root / "annotations"
    chosen = (f"--repo_ids={demo.data_ids / 'dataset_list_valid.json'}", f"--annotations={folder}")
    run(depi("annotate", "--backend=rules", *chosen))
    rows = [row for path in folder.rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    cleaned = sum(row["task"] is not None for row in rows)
    return f"{cleaned} of {len(rows)} episodes have a usable text by rules alone, the others need a VLM"


def train(demo: Demo) -> str:
    """Train a tiny pi0 on the accepted ones; SIGTERM half way."""
    accepted = read_json(demo.data_ids / "dataset_list_valid.json")
    output, steps = demo.community_run, demo.config.community_steps
    command = train_command(
        f"--num_datasets={len(accepted)}",
        f"--dataset.data_ids={demo.data_ids}",
        *("--dataset.use_annotated_tasks=true", f"--dataset.annotations={demo.root / 'annotations'}"),
        "--dataset.action_freq=10",
        f"--output_dir={output}",
        *("--policy.type=depi_pi0", "--policy.device=cpu", "--policy.push_to_hub=false"),
        *("--policy.chunk_size=16", "--policy.n_action_steps=8"),
        *("--policy.optimizer_lr=1e-3", "--policy.scheduler_decay_lr=1e-4"),
        *(f"--steps={steps}", "--batch_size=8", "--num_workers=0", "--log_freq=10", "--save_freq=0"),
        "--job_name=pi0-community",
    )
    launcher = subprocess.Popen(command)
    try:
        while launcher.poll() is None and last_logged_step(output) < steps // 2:
            time.sleep(0.2)
        stop_trainer(launcher)
        launcher.wait()
    finally:
        stop_trainer(launcher)
    stopped = last_logged_step(output)
    if not (output / "checkpoints" / "last").exists() or stopped >= steps:
        raise UserError(f"training was to be stopped half way and to save, but ended at step {stopped}")
    return f"stopped by SIGTERM at step {stopped} of {steps}, checkpoint saved"


def stop_trainer(launcher: subprocess.Popen) -> None:
    """Send SIGTERM to the process that `accelerate launch` has started, if it still runs."""
    if launcher.poll() is None:
        for trainer in psutil.Process(launcher.pid).children():
            trainer.terminate()


def resume(demo: Demo) -> str:
    """Continue from the checkpoint to the end."""
    run(train_command("--resume=true", f"--output_dir={demo.community_run}"))
    losses = [line["loss"] for line in metrics(demo.community_run)]
    if not losses[-1] < losses[0]:
        raise UserError(f"the loss did not fall: {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    return f"{demo.config.community_steps} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}"
