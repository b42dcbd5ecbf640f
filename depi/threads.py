"""Threads for work that waits, such as downloads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of so many threads, which ends with the body.

    After an error nothing more is begun. Whoever presses Ctrl-C does not wait for what is under way either.
    """
    pool = ThreadPoolExecutor(max(1, count), thread_name_prefix="depi")
    try:
        yield pool
    except BaseException as stop:
        pool.shutdown(wait=not isinstance(stop, KeyboardInterrupt), cancel_futures=True)
        raise
    pool.shutdown()
