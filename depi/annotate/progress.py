"""What `depi annotate` prints while it runs, and its summary."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from depi.annotate.pipeline import Run, Summary
from depi.progress import progress_bar

SHOWN = 10
_REFRESH_SECONDS = 0.2


@contextmanager
def progress() -> Iterator[Callable[[Run], None]]:
    """A bar on stderr: episodes, rate, tokens and time left. Yields the function that updates it from a run.

    The episodes of datasets that are not planned yet are estimated from those that are.
    """
    with progress_bar("Annotating") as bar:
        shown = 0.0

        def show(run: Run) -> None:
            nonlocal shown
            if time.monotonic() - shown < _REFRESH_SECONDS:
                return
            shown, summary = time.monotonic(), run.summary
            finished = summary.done + summary.failed
            total = summary.asked * max(1.0, summary.datasets / max(1, run.planned))
            rate = f"{summary.done / max(summary.seconds, 1e-3):.1f}/s, {tokens_text(summary)}"
            bar(finished, max(finished, round(total)), rate)

        yield show


def tokens_text(summary: Summary) -> str:
    """The tokens so far, in short."""
    return f"{summary.prompt_tokens:,} + {summary.completion_tokens:,} tokens"


def print_summary(summary: Summary, backend: str) -> None:
    """The counts as a table, and the first failures with their reasons."""
    console = Console()
    table = Table(Column("annotated"), Column("", justify="right"))
    rate = summary.done / summary.seconds if summary.seconds else 0.0
    for name, value in {
        "datasets": f"{summary.datasets:,}",
        "datasets not read": f"{len(summary.dataset_failures):,}",
        "episodes": f"{summary.episodes:,}",
        "nothing to do": f"{summary.reused:,}",
        "done now": f"{summary.done:,}, {rate:.1f} a second",
        "with a new text": f"{summary.trusted:,}",
        "keep the recorded text": f"{summary.done - summary.trusted:,}",
        "failed": f"{summary.failed:,}",
        "requests": f"{summary.requests:,}, {tokens_text(summary)}",
    }.items():
        table.add_row(name, value)
    console.print(table)
    if backend == "rules":
        console.print("No model was used: recorded texts were cleaned, and useless ones flagged.")
    failures = [(name, item) for name, each in summary.failures.items() for item in each.items()]
    for lines in (
        [f"{repo_id}: {reason}" for repo_id, reason in summary.dataset_failures.items()],
        [f"{repo_id}, episode {episode}: {reason}" for repo_id, (episode, reason) in failures],
    ):
        for line in lines[:SHOWN]:
            console.print(escape(line), soft_wrap=True)
        if (more := len(lines) - SHOWN) > 0:
            console.print(f"and {more:,} more; --json names all")
    if summary.stopped:
        console.print(escape(f"Stopped early: {summary.stopped}"), soft_wrap=True)
