"""What training steps of the published size, as `benchmarks/train_step.py` takes them, ask of GPU and host.

python account.py 8,3,depi 32,community,depi 32,3,lerobot_eager,1 ... takes batch sizes, cameras,
implementations and, if any, the share of layers that are computed twice. `bound_ms` is by the datasheet, as
`train_step.py` prints it, `bound_reached_ms` at 780 TFLOP/s and 4.3 TB/s.
"""

import gc
import sys
import time
from typing import Any

import torch
from bounds import Bounds
from device import counted_since, counts, report
from measure_steps import Plan, draw_samples, make_subject
from torch._dynamo.utils import counters

from depi.training.utilisation import Card, card_of

REACHED = Card(780e12, 4.3e12)


def measure(batch_size: int, mix: str, implementation: str, recompute: float) -> dict[str, Any]:
    """Two steps set things up, the third is measured, others are watched; all with the same batch."""
    counters.clear()
    torch.cuda.reset_peak_memory_stats()
    plan = Plan("pi0", implementation, "full", "cuda", "bfloat16", batch_size, mix, 1, 1, recompute, None)
    cameras, tokens = draw_samples(mix, batch_size)
    subject = make_subject(plan, cameras, tokens + plan.stock.said_tokens, recompute)
    for _ in range(2):
        subject.step(0)
    before, started = counts(), time.process_time()
    subject.step(0)
    host_s, counted = time.process_time() - started, counted_since(before)
    graphs = counters["stats"]["unique_graphs"]
    peak = torch.cuda.max_memory_allocated()
    accounts = {name: Bounds(card) for name, card in (("sheet", card_of("H200")), ("reached", REACHED))}
    for account in accounts.values():
        assert account.card is not None
        with account, torch.autograd.set_multithreading_enabled(False):
            subject.step(0)
    sheet = accounts["sheet"]
    return {
        **sheet.milliseconds(),
        "bound_reached_ms": accounts["reached"].milliseconds()["bound_ms"],
        "launches": counted["launches"],
        "host_ms": 1e3 * host_s,
        "peak_gb": peak / 1e9,
        "graphs": graphs,
        "recompiled": counters["stats"]["unique_graphs"] - graphs,
        "traffic_gb": sheet.traffic / 1e9,
        "optimizer_gb": sheet.optimizer / 1e9,
        "tflop": sheet.operations / 1e12,
        "made_kernels": sheet.kernels,
    }


if __name__ == "__main__":
    findings = {}
    for row in sys.argv[1:]:
        batch_size, mix, implementation, *share = row.split(",")
        findings[row] = measure(int(batch_size), mix, implementation, float(share[0]) if share else 0.0)
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
    report(findings)
