import math
import operator
import os
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import pytest

from depi.engine import run


def square_or_raise(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number * number


def pause(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_every_item_comes_back_with_its_result_or_its_exception():
    outcomes = dict(run(square_or_raise, range(6), workers=2))
    error = outcomes.pop(3)
    assert isinstance(error, ValueError)
    assert str(error) == "three"
    assert outcomes == {0: 0, 1: 1, 2: 4, 4: 16, 5: 25}


def test_items_come_back_as_they_complete():
    assert [item for item, _ in run(pause, [0.5, 0.01], workers=2)] == [0.01, 0.5]


def test_work_runs_at_once_but_never_in_more_than_the_workers():
    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(3, timeout=10)

    def work(number: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if number < 3:
            together.wait()
        with lock:
            running -= 1

    outcomes = [result for _, result in run(work, range(30), workers=3)]
    assert outcomes == [None] * 30
    assert most == 3


def test_items_are_drawn_as_they_are_needed():
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    outcomes = run(lambda number: number, endless(), workers=2)
    for _ in range(10):
        next(outcomes)
    assert drawn <= 10 + 2 * 2
    outcomes.close()


def test_closing_the_iterator_drops_what_has_not_started():
    started = []

    def work(number: int) -> int:
        started.append(number)
        time.sleep(0.1)
        return number

    outcomes = run(work, range(4), workers=1)
    next(outcomes)
    outcomes.close()
    time.sleep(0.4)
    assert len(started) <= 2


def test_processes_give_results_and_exceptions_too():
    outcomes = dict(run(math.sqrt, [4.0, 9.0, -1.0], workers=2, kind="process"))
    assert outcomes[4.0] == 2.0
    assert outcomes[9.0] == 3.0
    assert isinstance(outcomes[-1.0], ValueError)


def test_a_dead_process_costs_only_the_items_in_flight():
    calls = [partial(math.sqrt, number) for number in range(10)]
    calls.insert(3, partial(os._exit, 1))
    outcomes = dict(run(operator.call, calls, workers=1, kind="process"))
    lost = {call for call, outcome in outcomes.items() if isinstance(outcome, BrokenProcessPool)}
    assert calls[3] in lost
    assert len(lost) <= 2
    assert len(outcomes) == len(calls)
    assert all(outcome == call() for call, outcome in outcomes.items() if call not in lost)


def test_progress_counts_the_finished_items():
    counts: list[int] = []
    list(run(square_or_raise, range(4), workers=2, progress=counts.append))
    assert counts == [1, 2, 3, 4]


def test_what_the_items_iterator_raises_is_raised():
    def broken():
        yield 1
        raise OSError("list ended early")

    with pytest.raises(OSError, match="list ended early"):
        list(run(square_or_raise, broken(), workers=1))


def test_bad_arguments_are_refused_at_once():
    with pytest.raises(ValueError, match="at least 1"):
        run(square_or_raise, [], workers=0)
    with pytest.raises(ValueError, match="'fork'"):
        run(square_or_raise, [], workers=1, kind="fork")
