"""Steps of the published size sharded over eight ranks, of which this process is one: what is communicated.

The process group is fake: it sends nothing, and every collective ends at once.
"""

import time
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from device import counted_since, counts, report
from full_size import make_batches, make_monitors, make_run, take_step
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RANKS = 8


class Rank(Accelerator):
    """An accelerator that is one of eight."""

    num_processes = RANKS

    def reduce(self, tensor: torch.Tensor, reduction: str = "sum", scale: float = 1.0) -> torch.Tensor:
        """What all ranks together have; here nothing."""
        return tensor


class Traffic(TorchDispatchMode):
    """Bytes of the largest tensor of each collective, by its name and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: defaultdict[str, int] = defaultdict(int)
        self.calls: defaultdict[str, int] = defaultdict(int)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        space, _, name = function._schema.name.partition("::")
        if space in ("c10d", "_c10d_functional"):
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            largest = max(tensors, key=lambda tensor: tensor.numel())
            key = f"{name.strip('_')} {str(largest.dtype).removeprefix('torch.')}"
            self.bytes[key] += largest.numel() * largest.element_size()
            self.calls[key] += 1
        return out


def main() -> None:
    """Three steps: the first sets things up, the second is measured, the third is watched."""
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    run = make_run(Rank(), batch_size=8, sharding="full")
    monitors, batches = make_monitors(run), make_batches(run, "3")
    take_step(run, batches, monitors)
    before, started = counts(), time.process_time()
    waits = take_step(run, batches, monitors)
    host_s, counted = time.process_time() - started, counted_since(before)
    traffic = Traffic()
    with traffic, torch.autograd.set_multithreading_enabled(False):
        take_step(run, batches, monitors)
    report(
        {
            "waits": waits,
            "counted": counted,
            "host_s": host_s,
            "bytes": traffic.bytes,
            "calls": traffic.calls,
            "parameters": sum(parameter.numel() for parameter in run.policy.parameters()),
            "peak_bytes": torch.cuda.max_memory_allocated(),
        }
    )


if __name__ == "__main__":
    main()
