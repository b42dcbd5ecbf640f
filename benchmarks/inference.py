"""How long pi0 takes for an action chunk: DePi's, and that of stock LeRobot.

    python benchmarks/inference.py                     # published size on a GPU, else a reduced one
    python benchmarks/inference.py --cameras=3 --implementations=depi,lerobot --repeats=100

Random weights, one sample, from a processed batch on the device to actions on the device. Compared are

- depi_plain: the policy as it is trained, float32 weights and bfloat16 compute
- depi_fused: after `for_inference`; on a GPU replayed as a CUDA graph
- depi: the same with compiled layers, as by default on a GPU
- lerobot, lerobot_compiled: LeRobot 0.6.1, without and with its `compile_model=True`

each in its own process, one after the other, in bfloat16 on a GPU and float32 elsewhere. Both implementations
have exactly the cameras of the row, so LeRobot encodes no black images. Of DePi's time, what one more Euler
step costs, and what remains of a chunk without them (`prefix`), come from chunks of few and of all steps;
`mfu` is the share of a known GPU's bfloat16 peak that the mathematics of a chunk takes.

The last line is JSON: device; implementation, DePi's fastest at the most cameras; latency_ms, its medians by
number of cameras; lerobot_latency_ms, those of LeRobot's fastest setting; speedup_vs_lerobot, their ratio at
the most cameras.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

type Row = dict[str, Any]

IMPLEMENTATIONS = "depi_plain,depi_fused,depi,lerobot,lerobot_compiled"
PROMPT_TOKENS = 12
WARMUP = 3
COLUMNS = ("median_ms", "p95_ms", "prefix_ms", "step_ms", "mfu", "peak_mem_gb", "warmup_s")


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Flags, with defaults that fit the device."""
    parser = argparse.ArgumentParser(description="Latency of pi0's action chunks.")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--size", choices=("full", "reduced", "smoke"), help="full on cuda, reduced on cpu")
    parser.add_argument("--cameras", default="1,2,3", help="how many the robot has")
    parser.add_argument("--implementations", default=IMPLEMENTATIONS)
    parser.add_argument("--steps", type=int, default=10, help="Euler steps, at least 2")
    parser.add_argument("--num_samples", type=int, default=1, help="chunks, of which DePi takes one")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--time_limit_s", type=float, default=1800.0, help="for each implementation")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    unknown = set(options.implementations.split(",")) - set(IMPLEMENTATIONS.split(","))
    if unknown:
        parser.error(f"--implementations: {', '.join(sorted(unknown))} is none of {IMPLEMENTATIONS}")
    if options.device is None:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.size = options.size or ("full" if options.device == "cuda" else "reduced")
    return options


def main() -> None:
    """Measure one implementation after the other; print."""
    options = parse()
    if options.worker:
        work(options)
        return
    rows = []
    for implementation in options.implementations.split(","):
        print(implementation, file=sys.stderr, flush=True)
        rows += run_worker(options, implementation)
    show(rows)
    print(json.dumps(summary(rows)))


def run_worker(options: argparse.Namespace, implementation: str) -> list[Row]:
    """A row per number of cameras, from a process of its own; what it does not deliver has an error."""
    flags = {
        name: getattr(options, name)
        for name in ("device", "size", "cameras", "steps", "num_samples", "repeats")
    }
    with tempfile.TemporaryDirectory(prefix="inference-") as scratch:
        results = Path(scratch, "results.jsonl")
        results.touch()
        flags |= {"implementations": implementation, "worker": results}
        command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in flags.items())]
        # A session of its own, so that compilers which it starts end with it.
        process = subprocess.Popen(command, start_new_session=True, stdout=sys.stderr)
        try:
            reason = f"the process ended with exit status {process.wait(options.time_limit_s)}"
        except subprocess.TimeoutExpired:
            reason = f"stopped after {options.time_limit_s:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    missing = set(options.cameras.split(",")) - {row["cameras"] for row in rows}
    return rows + [
        {"implementation": implementation, "cameras": cameras, "error": reason} for cameras in sorted(missing)
    ]


def work(options: argparse.Namespace) -> None:
    """Inside the process: each number of cameras in turn, a line of JSON each."""
    import torch

    on_gpu = options.device == "cuda"
    policy = make_policy(options)
    for cameras in options.cameras.split(","):
        torch._dynamo.reset()  # code for this shape alone, as a robot would have it
        chunk = chunk_of(policy, options, int(cameras))
        started = time.perf_counter()
        for _ in range(WARMUP):
            actions = chunk(options.steps)
        if not actions.isfinite().all():
            raise FloatingPointError("an action is not finite")
        warmup_s = time.perf_counter() - started
        times = milliseconds(partial(chunk, options.steps), options)
        row = {
            "implementation": options.implementations,
            "cameras": cameras,
            "median_ms": quantile(times, 0.5),
            "p95_ms": quantile(times, 0.95),
            "warmup_s": warmup_s,
            "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {torch.get_num_threads()} threads",
            "peak_mem_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        }
        if options.implementations.startswith("depi"):
            for _ in range(WARMUP):
                chunk(1)
            short = milliseconds(partial(chunk, 1), options)
            row["step_ms"] = (row["median_ms"] - quantile(short, 0.5)) / (options.steps - 1)
            row["prefix_ms"] = row["median_ms"] - options.steps * row["step_ms"]
            row["mfu"] = share_of_peak(policy, options, int(cameras), row["median_ms"] / 1e3)
        row = {
            key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()
        }
        with options.worker.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def make_policy(options: argparse.Namespace) -> Any:
    """A policy of the implementation with random weights."""
    import torch
    from lerobot_pi0 import SIZES, make_depi, make_lerobot

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True  # as LeRobot's commands
    family, _, variant = options.implementations.partition("_")
    settings: dict[str, Any] = {"dtype": "bfloat16" if options.device == "cuda" else "float32"}
    if family == "lerobot":
        settings["compile_model"] = variant == "compiled"
        return make_lerobot(SIZES[options.size], options.device, **settings).eval()
    if not variant:
        settings |= {"compile_model": True, "compile_mode": "default"}  # as by default on a GPU
    policy = make_depi(SIZES[options.size], options.device, **settings).eval()
    policy.config.compile_chunks = not variant
    return policy if variant == "plain" else policy.for_inference()


def chunk_of(policy: Any, options: argparse.Namespace, cameras: int) -> Callable[[int], Any]:
    """A function that samples a chunk by some number of Euler steps for a robot with so many cameras."""
    import torch
    from lerobot_pi0 import CAMERAS, SIZES, as_from_robot, for_lerobot, make_batch

    others = {key: value for key, value in policy.config.input_features.items() if key not in CAMERAS}
    camera = next(iter(policy.config.image_features.values()))
    policy.config.input_features = dict.fromkeys(CAMERAS[:cameras], camera) | others
    counts = torch.tensor([cameras]), torch.tensor([PROMPT_TOKENS])
    generator = torch.Generator().manual_seed(1)
    batch = make_batch(SIZES[options.size], *counts, options.device, generator)
    for key in CAMERAS[cameras:]:
        del batch[key], batch[f"{key}_is_pad"]
    if options.implementations.startswith("lerobot"):
        batch = for_lerobot(batch)
    else:
        batch = as_from_robot(batch, PROMPT_TOKENS)
        policy.config.num_samples = options.num_samples
    return lambda steps: policy.predict_action_chunk(batch, num_steps=steps)


def milliseconds(chunk: Callable[[], Any], options: argparse.Namespace) -> list[float]:
    """Times of single chunks, sorted, each until its actions are there."""
    import torch

    times = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        chunk()
        if options.device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - started) * 1e3)
    return sorted(times)


def share_of_peak(policy: Any, options: argparse.Namespace, cameras: int, seconds: float) -> float | None:
    """Of the device's bfloat16 speed, the share that a chunk in so much time takes; None if not known."""
    import torch

    from depi.models.flops import sampling_flops
    from depi.training.utilisation import peak_flops

    peak = peak_flops(torch.device(options.device))
    needed = sampling_flops(policy.model.dimensions, cameras, PROMPT_TOKENS, options.steps)
    return needed / seconds / peak if peak else None


def quantile(times: list[float], share: float) -> float:
    """Of sorted times, the one that this share is not above."""
    return times[min(len(times) - 1, int(len(times) * share))]


def show(rows: list[Row]) -> None:
    """One line per implementation and number of cameras."""
    table = Table("implementation", "cameras", *COLUMNS, title="A chunk of one sample")
    for row in rows:
        figures = [row.get(column) for column in COLUMNS]
        shown = ["" if value is None else f"{value:.4g}" for value in figures]
        if "error" in row:
            shown[0] = row["error"]
        table.add_row(row["implementation"], row["cameras"], *shown)
    Console(width=160).print(table)


def summary(rows: list[Row]) -> Row:
    """The last line; what was not measured is null."""
    measured = [row for row in rows if "error" not in row]
    ours, theirs = (fastest(measured, family) for family in ("depi", "lerobot"))
    most = max((row["cameras"] for row in ours), key=int, default=None)
    pair = [{row["cameras"]: row["median_ms"] for row in each} for each in (ours, theirs)]
    return {
        "device": measured[0]["device"] if measured else None,
        "implementation": ours[0]["implementation"] if ours else None,
        "latency_ms": pair[0],
        "lerobot_latency_ms": pair[1],
        "speedup_vs_lerobot": round(pair[1][most] / pair[0][most], 2) if most in pair[1] else None,
    }


def fastest(rows: list[Row], family: str) -> list[Row]:
    """The rows of that implementation of a family which is the fastest at the most cameras."""
    rows = [row for row in rows if row["implementation"].startswith(family)]
    most = max((int(row["cameras"]) for row in rows), default=0)
    best = min(
        (row for row in rows if int(row["cameras"]) == most), key=lambda row: row["median_ms"], default={}
    )
    return [row for row in rows if row["implementation"] == best["implementation"]]


if __name__ == "__main__":
    main()
