"""Measuring what a reader of samples costs on one core; needs nothing but torch."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

BATCH = 32
"""Samples that are read together, by readers that can."""


@dataclass
class Cost:
    """Milliseconds per sample."""

    wall: float
    cpu: float


def hold_to_one_core() -> None:
    """Let this process, where the system allows it, run on one core only, the last."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def measure(read: Callable[[Sequence[int]], object], order: Sequence[int]) -> Cost:
    """Milliseconds per sample over one round of batches."""
    wall, cpu = time.perf_counter(), time.process_time()
    for begin in range(0, len(order), BATCH):
        read(order[begin : begin + BATCH])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(wall / len(order) * 1e3, cpu / len(order) * 1e3)
