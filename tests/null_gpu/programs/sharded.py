"""Steps of the published size sharded over ranks, of which this process is one: what is communicated.

The process group is fake: it sends nothing, and every collective ends at once. python sharded.py RANKS
WAY ... measures ways to shard by so many ranks, see WAYS; `hybrid` is over two machines.
"""

import gc
import sys
import time
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from device import counted_since, counts, report
from full_size import make_batches, make_monitors, make_run, take_step
from torch._dynamo.utils import counters
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_step import estimated

MACHINES = 2
WAYS: dict[str, dict[str, Any]] = {
    "full": {"sharding": "full"},
    "hybrid": {"sharding": "hybrid"},
    "compiled": {"sharding": "full", "compile": True},
    "recompute": {"sharding": "full", "recompute": 0.5},
    "rounded": {"sharding": "full", "reduce_dtype": "bfloat16"},
    "accumulation": {"sharding": "full", "gradient_accumulation_steps": 2},
    "float8": {"sharding": "full", "float8": True},
    "float8_compiled": {"sharding": "full", "float8": True, "compile": True},
}


class Rank(Accelerator):
    """An accelerator that is one of all ranks."""

    @property
    def num_processes(self) -> int:
        """All of them."""
        return dist.get_world_size()

    def reduce(self, tensor: torch.Tensor, reduction: str = "sum", scale: float = 1.0) -> torch.Tensor:
        """What all ranks together have; here nothing."""
        return tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """What all ranks have: their numbers on their machine, of which sharding wants the largest."""
        return torch.arange(self.num_processes // MACHINES)


class Traffic(TorchDispatchMode):
    """Bytes of the largest tensor of each collective, by its name and dtype; and products in float8."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: defaultdict[str, int] = defaultdict(int)
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.products = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        self.products += function._schema.name == "aten::_scaled_mm"
        space, _, name = function._schema.name.partition("::")
        if space in ("c10d", "_c10d_functional"):
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            largest = max(tensors, key=lambda tensor: tensor.numel())
            key = f"{name.strip('_')} {str(largest.dtype).removeprefix('torch.')}"
            self.bytes[key] += largest.numel() * largest.element_size()
            self.calls[key] += 1
        return out


def measure(way: str) -> dict[str, Any]:
    """Three steps: the first sets things up, the second is measured, the third is watched."""
    torch.cuda.reset_peak_memory_stats()
    torch._dynamo.reset()
    graphs = counters["stats"]["unique_graphs"]
    run = make_run(Rank(), batch_size=8, **WAYS[way])
    monitors, batches = make_monitors(run), make_batches(run, "3")
    take_step(run, batches, monitors)
    before, started = counts(), time.process_time()
    waits = take_step(run, batches, monitors)
    host_s, counted = time.process_time() - started, counted_since(before)
    traffic = Traffic()
    with traffic, torch.autograd.set_multithreading_enabled(False):
        take_step(run, batches, monitors)
    shards = dist.get_world_size() // (MACHINES if run.config.sharding == "hybrid" else 1)
    return {
        "waits": waits,
        "counted": counted,
        "host_s": host_s,
        "bytes": traffic.bytes,
        "calls": traffic.calls,
        "parameters": sum(parameter.numel() for parameter in run.policy.parameters()),
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "estimated_bytes": estimated(run, shards),
        "graphs": counters["stats"]["unique_graphs"] - graphs,
        "float8": traffic.products,
    }


def main(ranks: int, ways: list[str]) -> None:
    """Each way after the other."""
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    findings = {}
    for way in ways:
        findings[way] = measure(way)
        gc.collect()
        torch.cuda.empty_cache()
    report(findings)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
