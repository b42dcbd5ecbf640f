"""Training steps of the published size: what the host waited for, and what was computed where and in what.

python training_step.py plain lora ... takes steps of each of these variants in turn.
"""

import gc
import sys
import time
from typing import Any

import torch
from accelerate import Accelerator
from device import counted_since, counts, report
from full_size import make_batches, make_monitors, make_run, take_step
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves
from watching import Watch

from depi.policies.choices import attention_backends, choices_of
from depi.training.estimate import estimate_memory

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recompute": {"recompute": 0.5},
    "accumulation": {"gradient_accumulation_steps": 2},
    "ema": {"ema": True},
    "lora": {"lora": True},
    "switched_off": {"attention_backends": "efficient"},
    "float8": {"float8": True},
    "float8_lora": {"float8": True, "lora": True},
    "compiled": {"compile": True},
    "float8_compiled": {"compile": True, "float8": True},
}


def measure(variant: str) -> dict[str, Any]:
    """Three steps: the first sets things up, the second is measured, the third is watched."""
    torch.cuda.reset_peak_memory_stats()
    run = make_run(Accelerator(), batch_size=8, **VARIANTS[variant])
    monitors, batches = make_monitors(run), make_batches(run, "3")
    take_step(run, batches, monitors)

    before, started = counts(), time.process_time()
    waits = take_step(run, batches, monitors)
    host_s, counted = time.process_time() - started, counted_since(before)
    watch = Watch()
    if "compiled" not in variant:
        with watch, torch.autograd.set_multithreading_enabled(False):
            waits += take_step(run, batches, monitors)
    return {
        "waits": waits,
        "counted": counted,
        "host_s": host_s,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "estimated_bytes": estimated(run),
        "graphs": counters["stats"]["unique_graphs"],
        "tensors": sum(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(batches[0])),
        **watch.findings(),
    }


def estimated(run: Any, shards: int = 1) -> int:
    """What `depi estimate` says of the run, without its reserve; prompts are rounded up to 16 tokens."""
    config = run.config
    estimate = estimate_memory(
        run.policy.model,
        batch_size=config.batch_size,
        images=3,
        words=16,
        recompute=config.recompute,
        shards=shards,
        accumulated=config.gradient_accumulation_steps > 1,
        averaged=config.ema.decay is not None,
        lists="varlen" in attention_backends(config.policy),
        float8=choices_of(config.policy).float8,
    )
    return estimate.total - estimate.reserve


if __name__ == "__main__":
    findings = {}
    for name in sys.argv[1:]:
        findings[name] = measure(name)
        gc.collect()
        torch.cuda.empty_cache()
    report(findings)
