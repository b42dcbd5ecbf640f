"""A bounded pool of threads or processes on this machine.

A cluster is another module with a `run` of the same signature, chosen by the caller.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from itertools import islice
from typing import Literal

# Enough for a worker to find its next item, few enough for memory not to grow with the list.
IN_FLIGHT_PER_WORKER = 2


def run[Item, Result](
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    kind: Literal["thread", "process"] = "thread",
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Item, Result | Exception]]:
    """Yield `(item, result)` for every item in the order of completion.

    An exception of `function` is yielded as its result; it does not stop the other items.
    `items` is drawn lazily: at most two per worker are drawn and not yet yielded, so memory is
    bounded by the workers and not by the list. When a worker process dies, the items
    in progress are yielded as `BrokenProcessPool`; the others run in new processes.
    Closing the iterator drops what has not started.

    Args:
        workers: threads or processes, at least 1.
        kind: "thread" for work that waits for I/O, "process" for CPU-bound work; a process needs
            `function` and items that can be pickled.
        progress: called after each item with the number of items finished so far.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    if kind not in ("thread", "process"):
        raise ValueError(f"kind must be 'thread' or 'process', not {kind!r}")
    return _run(function, iter(items), workers, kind, progress)


def _run[Item, Result](
    function: Callable[[Item], Result],
    items: Iterator[Item],
    workers: int,
    kind: str,
    progress: Callable[[int], None] | None,
) -> Iterator[tuple[Item, Result | Exception]]:
    executor: Executor | None = _executor(kind, workers)
    in_flight: dict[Future[Result], Item] = {}
    finished = 0
    drained = False
    try:
        while True:
            # When a process died, its items are reported before new ones are started.
            if executor is None and not in_flight:
                executor = _executor(kind, workers)
            if executor is not None:
                for item in islice(items, IN_FLIGHT_PER_WORKER * workers - len(in_flight)):
                    in_flight[_submit(executor, function, item)] = item
            if not in_flight:
                drained = True
                return
            done, _ = wait(in_flight, return_when=FIRST_COMPLETED)
            for future in done:
                item = in_flight.pop(future)
                outcome = _outcome(future)
                if isinstance(outcome, BrokenExecutor) and executor is not None:
                    executor.shutdown(wait=False)
                    executor = None
                finished += 1
                if progress is not None:
                    progress(finished)
                yield item, outcome
    finally:
        if executor is not None:
            executor.shutdown(wait=drained, cancel_futures=True)


def _executor(kind: str, workers: int) -> Executor:
    if kind == "thread":
        return ThreadPoolExecutor(workers, thread_name_prefix="depi")
    # A fork would copy locks that threads of torch and of the Hub client hold.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _submit[Item, Result](
    executor: Executor, function: Callable[[Item], Result], item: Item
) -> Future[Result]:
    try:
        return executor.submit(function, item)
    except BrokenExecutor as error:
        failed: Future[Result] = Future()
        failed.set_exception(error)
        return failed


def _outcome[Result](future: Future[Result]) -> Result | Exception:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        return error
    raise error
