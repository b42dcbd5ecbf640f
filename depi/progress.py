"""The one way to show progress, on stderr: a bar on a terminal, which disappears at the end, else lines.

Where stderr is a file or a pipe, a line is written after every `SILENT_SECONDS` in which nothing else was, so
that whoever reads it knows that the work goes on, how far it is, and how long it will take.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
)

from depi.log import seconds_silent

logger = logging.getLogger(__name__)

SILENT_SECONDS = 15.0
# The time left is told from the speed of the last minutes, of which slow items give few figures.
_SPEED_SECONDS = 300.0

_open: list[Progress] = []  # each has one task; the innermost is the last


def _past_the_bar() -> None:
    """Let a forked process write past the bar, whose locks it may have copied while they were held."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, FileProxy):
            setattr(sys, name, stream.rich_proxied_file)


os.register_at_fork(after_in_child=_past_the_bar)


class Show(Protocol):
    """Sets what a bar shows: how many items are done, of how many, and a note beside it."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Update the bar; a total of None keeps the one before."""


@contextmanager
def progress_bar(title: str, total: int | None = None, *, done: int = 0) -> Iterator[Show]:
    """Show progress for the length of a `with` block, with the time left once `total` is known.

    Args:
        title: what is being done.
        total: how many items there are, if that is known already.
        done: how many of them were done before.
    """
    terminal = sys.stderr.isatty()
    texts = (TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False))
    columns = (texts[0], BarColumn(20), MofNCompleteColumn(), texts[1], TimeRemainingColumn())
    with Progress(
        *columns,
        console=_open[-1].console if _open else Console(stderr=True),  # which puts bars below each other
        transient=True,
        disable=not terminal,
        speed_estimate_period=_SPEED_SECONDS,
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        number = bar.add_task(title, total=total, completed=done, note="")

        def show(done: int, total: int | None = None, note: str = "") -> None:
            bar.update(number, completed=done, total=total, note=note)

        with _lines(bar, wanted=not terminal):
            yield show


@contextmanager
def _lines(bar: Progress, *, wanted: bool) -> Iterator[None]:
    """Write how far the work is whenever nothing has been written for a while."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(max(0.1, SILENT_SECONDS - seconds_silent())):
            if seconds_silent() >= SILENT_SECONDS and _open[-1] is bar:
                logger.info("%s", _line(bar.tasks[0]))

    _open.append(bar)
    writer = threading.Thread(target=write, name="progress", daemon=True)
    if wanted:
        writer.start()
    try:
        yield
    finally:
        ended.set()
        if wanted:
            writer.join()
        _open.remove(bar)


def _line(task: Task) -> str:
    count = f"{task.completed:,.0f}" + ("" if task.total is None else f" of {task.total:,.0f}")
    left = task.time_remaining
    parts = [f"{task.description}: {count} done", task.fields["note"]]
    if left is not None:
        parts.append(f"{timedelta(seconds=round(left))} left")
    return ", ".join(filter(None, parts))


def tracked[Item](items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Yield the items, and show how many have been dealt with."""
    with progress_bar(title, total) as show:
        for done, item in enumerate(items, start=1):
            yield item
            show(done)
