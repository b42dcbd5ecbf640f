"""Open many datasets at once, and keep those that can train together."""

import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import track

from depi.datasets.opening import DatasetSource, OpenDataset, open_dataset
from depi.errors import DatasetError, UserError

logger = logging.getLogger(__name__)

_OPEN_THREADS = 8


def open_all(
    sources: Sequence[DatasetSource], max_cameras: int, episodes: Sequence[int] | None
) -> tuple[list[OpenDataset], dict[str, str]]:
    """Open every source in a few threads, in order; what cannot be opened, with the reason."""
    opened, quarantined = [], {}
    console = Console(stderr=True)
    with ThreadPoolExecutor(min(_OPEN_THREADS, len(sources))) as pool:
        futures = [
            pool.submit(open_dataset, source, max_cameras=max_cameras, episodes=episodes)
            for source in sources
        ]
        progress = track(
            zip(sources, futures, strict=True),
            "Opening datasets",
            total=len(sources),
            console=console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        for source, future in progress:
            try:
                opened.append(future.result())
            except (DatasetError, UserError) as error:
                quarantined[source.repo_id] = str(error)
    return opened, quarantined


def keep_majority_kind(opened: list[OpenDataset], quarantined: dict[str, str]) -> list[OpenDataset]:
    """The datasets of the commonest kind (the first among equals); the others are quarantined."""
    kinds = [dataset.kind for dataset in opened]
    if len(set(kinds)) <= 1:
        return opened
    expected = max(dict.fromkeys(kinds), key=kinds.count)
    for dataset in opened:
        if dataset.kind != expected:
            quarantined[dataset.meta.repo_id] = (
                f"{_name_kind(dataset.kind)}, the other datasets have {_name_kind(expected)}"
            )
    return [dataset for dataset in opened if dataset.kind == expected]


def _name_kind(kind: tuple[int, int, bool]) -> str:
    unit = "in SO-100 joints" if kind[2] else "in numbers of its own robot"
    return f"a state of {kind[0]} and an action of {kind[1]} {unit}"


def stop_if_too_bad(total: int, quarantined: dict[str, str], max_bad_fraction: float) -> None:
    """Log what is quarantined; UserError where it is all, or too large a share of `total`."""
    if len(quarantined) < total and len(quarantined) <= max_bad_fraction * total:
        for repo_id, reason in quarantined.items():
            logger.warning("dataset %s is not used: %s", repo_id, reason)
        return
    reasons = "; ".join(f"{repo_id}: {reason}" for repo_id, reason in quarantined.items())
    raise UserError(
        f"{len(quarantined)} of {total} datasets cannot be used, leave them out "
        f"or raise max_bad_fraction: {reasons}"
    )
