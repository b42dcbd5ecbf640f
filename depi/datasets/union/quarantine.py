"""Counting bad episodes over all worker processes, and stopping when they are too many."""

import logging
from collections.abc import Callable, Sequence

import torch

from depi.errors import DatasetError, UserError

logger = logging.getLogger(__name__)

_LISTED = 50


class Quarantine:
    """Which episodes are bad: left out when opening, or with a frame that could not be decoded since.

    It may be pickled: the counts are shared with the copies.

    Args:
        episodes: E, episodes in use.
        left_out: episodes left out, each with its reason.
        max_bad_fraction: more than this share of bad episodes is an error.

    Raises:
        UserError: too many were left out; lists them.
    """

    def __init__(self, episodes: int, left_out: Sequence[str], max_bad_fraction: float) -> None:
        self.left_out, self.max_bad_fraction = tuple(left_out), max_bad_fraction
        # Written by all workers: how many samples of an episode were replaced.
        self._failures = torch.zeros(episodes, dtype=torch.int64).share_memory_()
        self._stop_if_too_many(self.left_out)

    def add(self, episode: int, frame: int, error: DatasetError, name: Callable[[int], str]) -> None:
        """Count a frame that is replaced; the first of an episode is logged.

        Args:
            episode: by its position; `name` gives its name.
            frame: its number in the episode.
            error: why it cannot be had.
            name: for messages.

        Raises:
            UserError: too many episodes are bad now; lists them.
        """
        # Asked before counting: of two workers that meet here, both see the first failure rather than none.
        first = self._failures[episode] == 0
        self._failures[episode] += 1
        if first:
            logger.warning("frame %d of %s is replaced by another: %s", frame, name(episode), error)
            others = [
                f"{name(other)}: frames cannot be decoded" for other in self.failures() if other != episode
            ]
            self._stop_if_too_many([f"{name(episode)}: {error}", *others, *self.left_out])

    def failures(self) -> dict[int, int]:
        """Episodes (by position) with frames that were replaced -> how many were, by all workers."""
        episodes = self._failures.nonzero().flatten()
        return dict(zip(episodes.tolist(), self._failures[episodes].tolist(), strict=True))

    def _stop_if_too_many(self, named: Sequence[str]) -> None:
        bad = len(self.left_out) + int(self._failures.count_nonzero())
        total = len(self.left_out) + len(self._failures)
        if bad <= self.max_bad_fraction * total:
            return
        more = f"; and {bad - _LISTED} more" if bad > _LISTED else ""
        raise UserError(
            f"{bad} of {total} episodes are bad, leave their datasets out or raise max_bad_fraction "
            f"(now {self.max_bad_fraction:g}): {'; '.join(named[:_LISTED])}{more}"
        )
