"""Running one function over many items, on this machine or on a Ray cluster."""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from depi.engine import cluster, pool
from depi.engine.pool import run
from depi.errors import UserError

__all__ = ["ENGINES", "RayConfig", "Runner", "make_runner", "run"]

ENGINES = ("local", "ray")

# (function, items) -> (item, result or exception) in the order of completion
Runner = Callable[[Callable[[Any], Any], Any], Iterator[tuple[Any, Any]]]


@dataclass
class RayConfig:
    """Which Ray cluster."""

    # Its address; by default RAY_ADDRESS, or else a new cluster on this machine.
    address: str | None = None


def make_runner(engine: str, *, workers: int = 0, address: str | None = None) -> Runner:
    """Return the runner that `--engine`, `--workers` and `--ray.address` name, for CPU-bound work.

    Args:
        engine: one of ENGINES.
        workers: items at a time; 0 for one per CPU.
        address: of the Ray cluster; None for that of RAY_ADDRESS.

    Raises:
        UserError: there is no such engine.
    """
    if engine not in ENGINES:
        raise UserError(f"there is no engine {engine!r}: choose one of {', '.join(ENGINES)}")
    if engine == "ray":
        return functools.partial(cluster.run, workers=workers, address=address)
    workers = workers or os.cpu_count() or 1
    return functools.partial(pool.run, workers=workers, kind="process" if workers > 1 else "thread")
