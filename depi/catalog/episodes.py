"""What faults of episodes mean for their dataset."""

from collections.abc import Sequence

from depi.catalog.catalogue import Row
from depi.catalog.facts import Thresholds
from depi.datasets.judging.faults import Fault, bad_episodes


def add_faults(row: Row, faults: Sequence[Fault], limits: Thresholds) -> str | None:
    """Add faults that were found later, as in the videos, to a row's episodes.

    Returns:
        The reason for refusing the dataset, where it has too few good episodes now.
    """
    bad, count = bad_episodes(faults), row.episodes or 0
    if bad and count - len(bad) < max(limits.min_episodes, count / 2):
        return f"{len(bad)} of {count} episodes are bad"
    return None
