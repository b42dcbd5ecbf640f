"""Undo what an encoder does to the priority of its thread."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def priority_kept() -> Iterator[None]:
    """Restore the scheduling of the calling thread after the body, which encodes AV1.

    Where it may, as root, SVT-AV1 gives the encoding thread the highest real-time priority and never takes it
    back: later work of this thread and its children would block all other processes.
    """
    if not hasattr(os, "sched_getscheduler"):  # not Linux
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)
