"""What the null GPU counted, and how a program hands its findings to the test."""

import ctypes
import json
import sys
from collections.abc import Mapping
from typing import Any

COUNTERS = ("launches", "waits", "graphs", "graph_nodes", "replays", "forbidden")


def counts() -> dict[str, int]:
    """The counters of `null_gpu.h`."""
    device = ctypes.CDLL(None)
    return {name: ctypes.c_ulong.in_dll(device, f"null_gpu_{name}").value for name in COUNTERS}


def counted_since(before: Mapping[str, int]) -> dict[str, int]:
    """How far the counters have moved on since `before`; nodes are those of the last graph."""
    now = counts()
    return {name: now[name] - before[name] for name in COUNTERS} | {"graph_nodes": now["graph_nodes"]}


def report(findings: Mapping[str, Any]) -> None:
    """Print `findings` as the last line of the output."""
    print(json.dumps(findings), file=sys.stdout, flush=True)
