"""The one way to show progress: a bar on stderr, only on a terminal, which disappears at the end."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Show(Protocol):
    """Sets what a bar shows: how many items are done, of how many, and a note beside it."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Update the bar; a total of None keeps the one before."""


@contextmanager
def progress_bar(title: str, total: int | None = None, *, shown: bool = True) -> Iterator[Show]:
    """Show a bar for the length of a `with` block, with the time left once `total` is known.

    Args:
        title: what is being done.
        total: how many items there are, if that is known already.
        shown: False for no bar.
    """
    texts = (TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False))
    columns = (texts[0], BarColumn(), MofNCompleteColumn(), texts[1], TimeRemainingColumn())
    hidden = not (shown and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(title, total=total, note="")

        def show(done: int, total: int | None = None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield show


def tracked[Item](items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Yield the items, and show a bar of how many have been dealt with."""
    with progress_bar(title, total) as show:
        for done, item in enumerate(items, start=1):
            yield item
            show(done)
