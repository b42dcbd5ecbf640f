"""Training steps of pi0 or pi0.5 per second: DePi's, and those of stock LeRobot.

    python benchmarks/train_step.py                       # published size on a GPU, else a reduced one
    python benchmarks/train_step.py --implementations=depi --batch_sizes=32 --results=depi.jsonl
    python benchmarks/train_step.py --report=depi.jsonl,lerobot.jsonl
    python benchmarks/train_step.py --family=pi05

Random weights and random batches, no data loading: `3` has three cameras in each sample, `community` has
one, two, three in 40, 45, 15% of them; prompts have 6 to 24 of 48 tokens, those of pi0.5, which hold the
state, 40 to 58 of 200. Compared are

- depi_eager, depi: without and with `torch.compile`; float32 weights, fused AdamW; add `depi_float8_eager`,
  `depi_float8` for the language model's products in float8
- lerobot_eager, lerobot_compiled: LeRobot 0.6.1, its optimiser, its `compile_model=True`; add
  `lerobot_compiled_default` for another `compile_mode` than its own

each in bfloat16 on a GPU, set up as its train script does; LeRobot has its `dtype=bfloat16`, which also makes
most of its weights bfloat16. LeRobot does not know that a sample lacks a camera: black images go in. Where
memory does not suffice, layers are computed twice: all of LeRobot's (`gradient_checkpointing`), as few of
DePi's as possible (at least --recompute). Each implementation has its own process for each batch size; what
fails is a row too.

Of the time per step, the median over the repetitions of each of four batches, and the mean of these: on a GPU
by its own clock, on a processor the time that one thread has worked. Forward, backward and optimiser (with
the clipping of gradients) are timed in other steps than the total. TFLOP/s and mfu count what the mathematics
needs (`depi.models.flops`), the same for all: no recomputing, no padding. Beside the time stands, on a card
whose figures are known, the least that the operations of a step can take (`bound`), compiled layers by the
kernels that were made of them; and of these the products, attention and the optimiser alone (`of products`),
which are left when everything else is fused away; see `bounds.py`. `attention` says which fused attention of
PyTorch's a step calls how often. On a GPU, begin with `--size=smoke --steps=4`.

The last line is JSON, about the largest batch that DePi has a row for: device, samples_per_s, mfu,
peak_mem_gb of DePi (compiled if there) with three cameras; speedup_vs_lerobot_eager and
speedup_vs_lerobot_compiled (its best mode) there, speedup_mix (to eager) on the community mix; flops_ratio,
the operations of LeRobot's step to those of DePi's, with three cameras.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

type Row = dict[str, Any]

IMPLEMENTATIONS = "depi_eager,depi,lerobot_eager,lerobot_compiled"
ROW = (
    "family",
    "size",
    "dtype",
    "implementation",
    "batch_size",
    "mix",
)  # what a later row of a file replaces


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Flags, with defaults that fit the device."""
    parser = argparse.ArgumentParser(description="Training steps per second.")
    parser.add_argument("--family", choices=("pi0", "pi05"), default="pi0")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--size", choices=("full", "reduced", "smoke"), help="full on cuda, reduced on cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="bfloat16 on cuda, float32 on cpu")
    parser.add_argument("--batch_sizes", default="8,32")
    parser.add_argument("--mixes", default="3,community", help="of 1, 2, 3 (cameras) and community")
    parser.add_argument("--implementations", default=IMPLEMENTATIONS)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--recompute", type=float, default=0.0, help="share of DePi's layers to run twice")
    parser.add_argument("--time_limit_s", type=float, default=3600.0, help="for everything together")
    parser.add_argument("--results", type=Path, help="append a line of JSON per row to this file")
    parser.add_argument("--report", default="", help="measure nothing: print the table of these files")
    parser.add_argument("--profile", type=Path, help="write tables of kernels into this folder")
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if not options.report:
        if options.device is None:
            import torch

            options.device = "cuda" if torch.cuda.is_available() else "cpu"
        options.size = options.size or ("full" if options.device == "cuda" else "reduced")
        options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    return options


def main() -> None:
    """Measure, or read measurements; print."""
    options = parse()
    if options.worker:
        work(options)
    elif options.report:
        show(read_rows(Path(name) for name in options.report.split(",")), options.json)
    elif options.results:
        run_all(options, options.results)
        show(read_rows([options.results]), options.json)
    else:
        with tempfile.TemporaryDirectory(prefix="train-step-") as scratch:
            results = Path(scratch, "results.jsonl")
            run_all(options, results)
            show(read_rows([results]), options.json)


def run_all(options: argparse.Namespace, results: Path) -> None:
    """One process after the other; rows that a process does not deliver are added with the reason."""
    deadline = time.monotonic() + options.time_limit_s
    for batch_size in options.batch_sizes.split(","):
        for implementation in options.implementations.split(","):
            print(f"{implementation}, batch {batch_size}", file=sys.stderr, flush=True)
            before = len(read_lines(results))
            reason = run_worker(options, results, implementation, batch_size, deadline - time.monotonic())
            delivered = {row["mix"] for row in read_lines(results)[before:]}
            for mix in options.mixes.split(","):
                if mix not in delivered:
                    append(
                        results, identity(options, implementation, int(batch_size), mix) | {"error": reason}
                    )


def run_worker(
    options: argparse.Namespace, results: Path, implementation: str, batch_size: str, limit_s: float
) -> str:
    """Measure one implementation in its own process; the answer is why it may have left rows out."""
    if limit_s <= 0:
        return "not started: the time limit was reached"
    flags = {
        **{name: getattr(options, name) for name in ("family", "device", "size", "dtype", "mixes")},
        **{name: getattr(options, name) for name in ("steps", "warmup")},
        **{"recompute": options.recompute, "results": results.resolve()},
        **{"implementations": implementation, "batch_sizes": batch_size},
        **({"profile": options.profile.resolve()} if options.profile else {}),
    }
    command = [sys.executable, __file__, "--worker", *(f"--{name}={value}" for name, value in flags.items())]
    # A session of its own, so that compilers which it starts end with it.
    process = subprocess.Popen(command, start_new_session=True, stdout=sys.stderr)
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"stopped at the time limit, after {limit_s:.0f} s"
    else:
        return f"the process ended with exit status {code}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def work(options: argparse.Namespace) -> None:
    """Inside the process: every mix in turn, each a row, also if it fails."""
    import torch
    from measure_steps import Plan, device_name, measure

    for mix in options.mixes.split(","):
        row = identity(options, options.implementations, int(options.batch_sizes), mix)
        row |= {"device": device_name(options.device), "torch": torch.__version__}
        plan = Plan(
            family=options.family,
            implementation=row["implementation"],
            size=options.size,
            device=options.device,
            dtype=options.dtype,
            batch_size=row["batch_size"],
            mix=mix,
            steps=options.steps,
            warmup=options.warmup,
            recompute=options.recompute,
            profile=options.profile,
        )
        try:
            row |= measure(plan)
        except Exception as error:  # a row, so that the others can still be measured
            import traceback

            traceback.print_exc()
            said = " ".join(
                str(error).split("\n")[:2]
            ).strip()  # the first line of torch.compile's says nothing
            row["error"] = f"{type(error).__name__}: {said[:300]}"
        append(options.results, row)


def identity(options: argparse.Namespace, implementation: str, batch_size: int, mix: str) -> Row:
    """What tells a row from others."""
    return dict(
        zip(ROW, (options.family, options.size, options.dtype, implementation, batch_size, mix), strict=True)
    )


def append(results: Path, row: Row) -> None:
    """Add a line that outlives whatever happens next."""
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(results: Path) -> list[Row]:
    """All rows of a file, none if there is no file; those of before pi0.5 do not say their family."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return [{"family": "pi0"} | json.loads(line) for line in lines]


def read_rows(files: Iterable[Path]) -> list[Row]:
    """Rows of several files; later ones take the place of earlier ones about the same."""
    rows = [row for file in files for row in read_lines(file)]
    return list({tuple(row[name] for name in ROW): row for row in rows}.values())


def show(rows: list[Row], json_only: bool) -> None:
    """Print the table, and the JSON line last."""
    if not json_only:
        Console(width=230).print(table(rows))
        for row in rows:
            if "error" in row:
                print(f"{row['implementation']}, batch {row['batch_size']}, {row['mix']}: {row['error']}")
    print(json.dumps(summary(rows)))


def table(rows: list[Row]) -> Table:
    """A line per row, by batch size and mix."""
    devices = ", ".join(sorted({row["device"] for row in rows if "device" in row}))
    sizes = ", ".join(sorted({f"{row['family']}, {row['size']} size, {row['dtype']}" for row in rows}))
    result = Table(title=f"Training steps, {sizes}, on {devices}; times in ms")
    numbers = {
        "samples/s": "samples_per_s",
        "step": "step_ms",
        "bound": "bound_ms",
        "of products": "bound_products_ms",
        "forward": "forward_ms",
        "backward": "backward_ms",
        "optimiser": "optimizer_ms",
        "TFLOP/s": "tflop_per_s",
        "mfu": "mfu",
        "peak GB": "peak_mem_gb",
        "recomputed": "recompute",
        "recompiled": "recompiled",
        "warm-up s": "warmup_s",
        "loss": "loss",
    }
    for column in ("batch", "cameras", "implementation", *numbers, "attention"):
        text = column in ("implementation", "attention", "cameras")
        result.add_column(column, justify="left" if text else "right")
    for row in sorted(rows, key=lambda row: (row["batch_size"], row["mix"])):
        cells = ["-" if row.get(key) is None else f"{row[key]:.4g}" for key in numbers.values()]
        last = "FAILED" if "error" in row else row["attention"]
        result.add_row(str(row["batch_size"]), row["mix"], row["implementation"], *cells, last)
    return result


def summary(rows: list[Row]) -> Row:
    """The JSON line: DePi's figures and its speed to LeRobot's; null where a row is missing or failed."""
    good = [row for row in rows if "error" not in row]

    def speeds(mix: str, batch_size: int, start: str) -> list[float]:
        return [
            row["samples_per_s"]
            for row in good
            if (row["mix"], row["batch_size"]) == (mix, batch_size)
            and row["implementation"].startswith(start)
        ]

    def ratio(mix: str, batch_size: int, start: str) -> float | None:
        ours, theirs = speeds(mix, batch_size, "depi"), speeds(mix, batch_size, start)
        return round(max(ours) / max(theirs), 2) if ours and theirs else None

    ours = [row for row in good if row["implementation"].startswith("depi") and row["mix"] == "3"]
    best = max(ours, key=lambda row: (row["batch_size"], row["samples_per_s"]), default={})
    size = best.get("batch_size", 0)
    flops = best.get("lerobot_tflop", 0) / best["model_tflop"] if best else None
    return {
        "device": best.get("device"),
        "samples_per_s": best.get("samples_per_s"),
        "speedup_vs_lerobot_eager": ratio("3", size, "lerobot_eager"),
        "speedup_vs_lerobot_compiled": ratio("3", size, "lerobot_compiled"),
        "speedup_mix": ratio("community", size, "lerobot_eager"),
        "mfu": best.get("mfu"),
        "flops_ratio": flops and round(flops, 3),
        "peak_mem_gb": best.get("peak_mem_gb"),
        "size": best.get("size"),
        "batch_size": best.get("batch_size"),
    }


if __name__ == "__main__":
    main()
