"""Keeping an encoder's priority to itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def priority_kept() -> Iterator[None]:
    """Give the calling thread its scheduling back after the body, which encodes AV1.

    Where it may, as root, SVT-AV1 makes the thread that encodes a real-time one of the highest priority, for
    good: everything that this thread or its later children do would keep all others from the processor.
    """
    if not hasattr(os, "sched_getscheduler"):  # not Linux
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)
