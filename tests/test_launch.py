"""The files in configs/ that start training on many processes and machines."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from recordings import Recording, write_v2
from runs import SCRIPT, losses

from depi.files import read_json

ROOT = Path(__file__).parents[1]
ACCELERATE = ROOT / "configs" / "accelerate"
SLURM = ROOT / "configs" / "launch" / "slurm.sbatch"
RAY = ROOT / "configs" / "launch" / "ray_train.py"
LAST = "checkpoints/last/pretrained_model"


@pytest.fixture
def tiny(module_hub, tmp_path) -> list[str]:
    """What trains a tiny policy on a local dataset."""
    root = write_v2(tmp_path / "data", Recording(lengths=(9, 7)))
    sizes = ("image_resolution=[28,28]", "chunk_size=4", "n_action_steps=4", "depth=2", "vision_depth=1")
    return [
        *("--policy.type=depi_pi0", "--policy.device=cpu", *(f"--policy.{size}" for size in sizes)),
        *("--dataset.repo_id=ann/pick", f"--dataset.root={root}"),
        *("--batch_size=2", "--num_workers=0", "--log_freq=1", "--steps=2"),
    ]


def launch(*args: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *map(str, args)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("name", "machines", "processes", "kind"),
    [
        ("cpu", 1, 2, "MULTI_GPU"),
        ("gpu1", 1, 1, "NO"),
        ("gpu8_ddp", 1, 8, "MULTI_GPU"),
        ("gpu8_fsdp2", 1, 8, "MULTI_GPU"),
        ("nodes2", 2, 16, "MULTI_GPU"),
    ],
)
def test_accelerate_reads_the_files(name, machines, processes, kind):
    path = str(ACCELERATE / f"{name}.yaml")
    config = load_config_from_file(path)
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert config.distributed_type.value == kind
    args = launch_command_parser().parse_args(["--config_file", path, "depi/train.py", "--steps=1"])
    args, _, _ = _validate_launch_command(args)
    assert (args.num_processes, args.multi_gpu, args.use_fsdp) == (processes, processes > 1, False)
    assert (args.mixed_precision, args.training_script_args) == ("no", ["--steps=1"])


def test_every_file_is_tested():
    assert {path.stem for path in ACCELERATE.glob("*.yaml")} == {
        *("cpu", "gpu1", "gpu8_ddp", "gpu8_fsdp2", "nodes2"),
    }


def test_two_processes_and_what_a_users_error_looks_like(tiny, tmp_path):
    config = ("--config_file", ACCELERATE / "cpu.yaml", SCRIPT)
    good = launch(*config, *tiny, f"--output_dir={tmp_path / 'run'}")
    bad = launch(*config, *tiny, "--stepz=3")
    _, error = bad.communicate(timeout=200)
    assert bad.returncode == 1
    report = error[error.index("Root Cause (first observed failure)") :]
    assert "exitcode  : 2" in report
    assert "error: depi/train.py: unknown flag --stepz: did you mean --steps?" in report
    _, log = good.communicate(timeout=200)
    assert good.returncode == 0, log
    assert "each of 4 samples (batch size 2, processes 2, accumulation 1)" in log
    assert log.count("configuration: {") == 1
    assert list(losses(tmp_path / "run")) == [1, 2]


FAKES = {
    # One task per node, as srun starts them.
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        pids=()
        for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do SLURM_NODEID=$node "$@" & pids+=($!); done
        status=0
        for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
        exit $status
    """,
    # Every process of the step, which the fake srun leads, hears the signal.
    "scancel": """
        tree() { for child in $(pgrep -P "$1"); do echo "$child"; tree "$child"; done; }
        for pid in $(tree "$(cat "$FAKES/step")"); do kill -TERM "$pid" 2>/dev/null || true; done
    """,
    "scontrol": """
        if [[ $1 == requeue ]]; then touch "$FAKES/requeued"; else echo 127.0.0.1; fi
    """,
}


@pytest.fixture
def slurm(tmp_path):
    """Starts the sbatch script as a cluster of two "machines", both this one, would."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name, body in FAKES.items():
        prefix = 'echo $$ > "$FAKES/step"\n' if name == "srun" else ""
        (folder / name).write_text(f"#!/bin/bash\n{prefix}{body}")
        (folder / name).chmod(0o755)

    def start(run: Path, flags: list[str]) -> subprocess.Popen[str]:
        environment = {
            "FAKES": str(folder),
            "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RUN": str(run),
            "PROCESSES_PER_NODE": "1",
            "OMP_NUM_THREADS": "1",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]",
        }
        return subprocess.Popen(
            ["bash", str(SLURM), *flags],
            cwd=ROOT,
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", str(SLURM)], check=True)


@pytest.mark.slow
def test_the_slurm_script_saves_when_told_is_requeued_and_goes_on(slurm, tiny, tmp_path):
    run = tmp_path / "run"
    job = slurm(run, [*tiny, "--steps=100000", "--save_freq=0"])
    wait_for(lambda: (run / "metrics.jsonl").exists(), job)
    job.send_signal(signal.SIGUSR1)
    _, log = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "SIGTERM: finishing the step and saving" in log
    assert (tmp_path / "fakes" / "requeued").exists()
    stopped = int(os.readlink(run / "checkpoints" / "last"))
    assert max(losses(run)) == stopped
    saved = read_json(run / LAST / "train_config.json")
    assert saved["steps"] == 100000

    (tmp_path / "fakes" / "requeued").unlink()
    job = slurm(run, ["--never=read"])
    wait_for(lambda: max(losses(run)) > stopped, job)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=120)
    assert int(os.readlink(run / "checkpoints" / "last")) > stopped
    assert sorted(losses(run)) == list(range(1, max(losses(run)) + 1))


@pytest.mark.slow
def test_the_slurm_script_ends_with_the_run_and_requeues_no_failure(slurm, tiny, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "data_report.json").write_text("{}")  # of a start that never came to a checkpoint
    job = slurm(run, tiny)
    _, log = job.communicate(timeout=200)
    assert job.returncode == 0, log
    assert list(losses(run)) == [1, 2]
    assert "each of 4 samples (batch size 2, processes 2, accumulation 1)" in log
    job = slurm(tmp_path / "other", [*tiny, "--stepz=3"])
    job.communicate(timeout=200)
    assert job.returncode != 0
    assert not (tmp_path / "fakes" / "requeued").exists()


@pytest.mark.slow
def test_the_ray_script_trains_on_two_nodes_and_resumes(tiny, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        script = [sys.executable, str(RAY), "--nodes=2", "--gpus_per_node=0", "--cpus_per_node=1"]
        script += ["--processes_per_node=1", "--"]
        environment = os.environ | {"RAY_ADDRESS": cluster.address, "OMP_NUM_THREADS": "1"}
        run = tmp_path / "run"
        for steps in (2, 3):
            flags = [*tiny, f"--steps={steps}", f"--output_dir={run}"]
            subprocess.run([*script, *flags], check=True, env=environment, timeout=250)
            assert sorted(losses(run)) == list(range(1, steps + 1))
    finally:
        cluster.shutdown()


def wait_for(condition, process: subprocess.Popen, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
