"""Train on the machines of a Ray cluster: one `accelerate launch` on each, in one placement group.

ray job submit --address=http://HEAD:8265 --working-dir=. -- \
    python configs/launch/ray_train.py --nodes=2 --gpus_per_node=8 -- \
    --num_datasets=1500 --policy.path=lerobot/pi0_base --output_dir=/shared/runs/pi0

The machines need DePi in their environment and a file system in common for --output_dir. What follows the
second `--` goes to depi/train.py. A run that has a checkpoint is resumed: the same command goes on after the
loss of a machine.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ROOT = Path(__file__).resolve().parents[2]


def address() -> tuple[str, int]:
    """Where the processes meet: this machine's address and a free port of it."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def launch(rank: int, nodes: int, processes: int, host: str, port: int, root: str, flags: list[str]) -> int:
    """Run this machine's launcher and return its exit status."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        f"--config_file={root}/configs/accelerate/nodes2.yaml",
        *(f"--num_machines={nodes}", f"--num_processes={processes}", f"--machine_rank={rank}"),
        *(f"--main_process_ip={host}", f"--main_process_port={port}"),
        *(f"{root}/depi/train.py", *flags),
    ]
    process = subprocess.Popen(command, cwd=root)
    try:
        return process.wait()
    finally:  # the task was cancelled
        process.send_signal(signal.SIGTERM)
        process.wait()


def resumed(flags: list[str]) -> list[str]:
    """The flags that go on with the run, if it has a checkpoint: its own, and the number of steps of now."""
    folders = [flag.partition("=")[2] for flag in flags if flag.startswith("--output_dir=")]
    last = Path(folders[-1], "checkpoints", "last", "pretrained_model") if folders else None
    if last is None or not last.exists():
        return flags
    steps = [flag for flag in flags if flag.startswith("--steps=")]
    return ["--resume=true", f"--config_path={last}", *steps]


def main() -> int:
    """Reserve the machines, launch, and wait; the exit status is the worst of theirs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--gpus_per_node", type=int, default=8)
    parser.add_argument("--cpus_per_node", type=int, default=32)
    parser.add_argument("--processes_per_node", type=int, help="by default one per GPU")
    parser.add_argument("flags", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    flags = resumed([flag for flag in args.flags if flag != "--"])

    ray.init(address=os.environ.get("RAY_ADDRESS", "auto"))
    resources = {"CPU": args.cpus_per_node} | ({"GPU": args.gpus_per_node} if args.gpus_per_node else {})
    group = placement_group([resources] * args.nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready(), timeout=600)

    def on_node(rank: int) -> dict:
        return {
            "num_cpus": args.cpus_per_node,
            "num_gpus": args.gpus_per_node,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, rank),
        }

    host, port = ray.get(ray.remote(address).options(**on_node(0)).remote())
    processes = args.nodes * (args.processes_per_node or args.gpus_per_node)
    run = ray.remote(launch)
    waiting = [
        run.options(**on_node(rank), max_retries=0).remote(
            rank, args.nodes, processes, host, port, str(ROOT), flags
        )
        for rank in range(args.nodes)
    ]
    return max(ray.get(waiting))


if __name__ == "__main__":
    sys.exit(main())
