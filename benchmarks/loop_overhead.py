"""What the training loop costs on top of forward pass, backward pass and optimizer step of the same policy.

    python benchmarks/loop_overhead.py                  # reduced size on the CPU; about a minute
    python benchmarks/loop_overhead.py --device=cuda    # pi0 as published

One process trains one policy, in turns by `depi.training.loop.fit` and by a bare loop over the same batches:
forward, backward, optimizer step, nothing else. What `fit` does besides is what is measured: moving batches
to the device, clipping, looking for bad steps, schedule, metrics and their log lines. Reading data and
writing checkpoints are measured elsewhere. The last line is JSON; `overhead` is the share of time that the
loop takes more, from the medians over the rounds.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from lerobot_pi0 import CAMERAS, SIZES, make_batch, make_depi
from torch.utils.data._utils.pin_memory import pin_memory

from depi.policies.batches import pack_batch
from depi.training import loop
from depi.training.config import TrainConfig
from depi.training.optimizer import make_optimizer
from depi.training.run_state import Run

BATCHES = 4
DATASETS = 1500
PROMPT_TOKENS = 12


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """The flags, with defaults that depend on the device."""
    parser = argparse.ArgumentParser(description="What the training loop costs.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--log_freq", type=int, default=4)
    options = parser.parse_args(args)
    on_gpu = options.device == "cuda"
    options.size = options.size or ("full" if on_gpu else "reduced")
    options.batch_size = options.batch_size or (16 if on_gpu else 4)
    return options


def make_run(options: argparse.Namespace, folder: Path) -> tuple[Run, list[dict[str, Any]]]:
    """A run without data, and the batches to train it on, on the CPU."""
    dtype = "bfloat16" if options.device == "cuda" else "float32"
    policy = make_depi(SIZES[options.size], options.device, dtype=dtype)
    if options.device == "cuda":
        policy.model.compile_layers()
    config = TrainConfig(
        policy=policy.config, output_dir=folder, batch_size=options.batch_size, log_freq=options.log_freq
    )
    repo_ids = [f"user/{number}" for number in range(DATASETS)]
    dataset: Any = SimpleNamespace(
        repo_ids=repo_ids, num_datasets=DATASETS, num_episodes=1, num_frames=1, decode_failures=dict
    )
    stream: Any = SimpleNamespace(samples=SimpleNamespace(mixture=SimpleNamespace(num_frames=1)))
    optimizer = make_optimizer(policy)
    scheduler = policy.config.get_scheduler_preset().build(optimizer, 10_000)
    accelerator = Accelerator(cpu=options.device == "cpu")
    processors: Any = (None, None)
    run = Run(
        config=config,
        accelerator=accelerator,
        dataset=dataset,
        stream=stream,
        policy=policy,
        model=policy,
        processors=processors,
        optimizer=optimizer,
        scheduler=scheduler,
        average=None,
        report={},
    )
    return run, [training_batch(options, policy, number) for number in range(BATCHES)]


def training_batch(options: argparse.Namespace, policy: Any, seed: int) -> dict[str, Any]:
    """What a data loader hands to the loop: packed, on the CPU, page-locked for a GPU."""
    size, draw = options.batch_size, torch.Generator().manual_seed(seed)
    cameras, words = torch.full((size,), len(CAMERAS)), torch.full((size,), PROMPT_TOKENS)
    dimensions = SIZES[options.size]
    drawn = {
        "noise": torch.randn(size, dimensions.chunk_size, dimensions.action_dim, generator=draw),
        "time": torch.rand(size, generator=draw),
        "dataset_index": torch.randint(DATASETS, (size,), generator=draw),
        "index": torch.arange(size),
    }
    batch = pack_batch(policy.config, make_batch(dimensions, cameras, words, "cpu", draw) | drawn)
    return pin_memory(batch) if options.device == "cuda" else batch


def bare_steps(run: Run, batches: Iterator[dict[str, Any]], steps: int) -> None:
    """Forward, backward, optimizer."""
    run.optimizer.found_inf = run.optimizer.grad_scale = None
    for _ in range(steps):
        with run.policy.autocast():
            losses, _ = run.policy(next(batches), reduction="none")
        losses.mean().backward()
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)


def loop_steps(run: Run, batches: Iterator[dict[str, Any]], steps: int) -> None:
    """The same number of steps as a run takes them."""
    run.config.steps = run.step + steps
    with (
        patch.object(loop, "batches", lambda *_args, **_flags: batches),
        patch.object(loop, "Collate", lambda *_args, **_flags: None),
        patch.object(loop.Saver, "save", lambda _saver: None),
    ):
        loop.fit(run, [])


def seconds(device: str, work: Callable[[], None]) -> float:
    """How long `work` keeps a GPU busy, by the wall clock; or the processor, by the time that it spends."""
    on_gpu = device == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time  # other programs use processors too
    wait = torch.cuda.synchronize if on_gpu else (lambda: None)
    wait()
    started = clock()
    work()
    wait()
    return clock() - started


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time both in turns, after a round of each that does not count."""
    if options.device == "cpu":
        torch.set_num_threads(1)  # threads that wait for one another burn processor time
    with tempfile.TemporaryDirectory(prefix="loop-overhead-") as folder:
        run, on_host = make_run(options, Path(folder))
        on_device = [send_to_device(batch, options.device) for batch in on_host]
        bare, looped = itertools.cycle(on_device), itertools.cycle(on_host)
        times: dict[str, list[float]] = {"bare": [], "loop": []}
        kinds = {
            "bare": lambda: bare_steps(run, bare, options.steps),
            "loop": lambda: loop_steps(run, looped, options.steps),
        }
        for number in range(options.rounds + 1):
            # Whichever comes second finds the device warmer.
            for kind in ("bare", "loop") if number % 2 else ("loop", "bare"):
                taken = seconds(options.device, kinds[kind]) / options.steps
                if number:
                    times[kind].append(taken)
    bare_s, loop_s = median(times["bare"]), median(times["loop"])
    return {
        "overhead": round(loop_s / bare_s - 1, 4),
        "bare_step_ms": round(bare_s * 1e3, 2),
        "loop_step_ms": round(loop_s * 1e3, 2),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "size": options.size,
        "batch_size": options.batch_size,
    }


def main(args: list[str] | None = None) -> None:
    """Measure and print."""
    print(json.dumps(measure(parse(args))))


if __name__ == "__main__":
    main()
