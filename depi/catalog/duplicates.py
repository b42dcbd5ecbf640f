"""Which datasets hold the same recordings: forks, re-uploads, subsets, merges, and converted copies.

Datasets are compared in the order in which they were published, each with those kept so far, so that the
earliest is the original. This sorts all hashes once and does not compare all pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from depi.catalog.catalogue import Row
from depi.catalog.landmarks import MAX_STORED


@dataclass(frozen=True)
class Overlap:
    """What a dataset has in common with those that were published earlier and kept.

    equal: repo_id of one with exactly the same actions
    episodes, total: repo_id -> number of shared episodes, largest first; and the number of all episodes
    episode_share: share of the episodes that any of them has, 0..1
    runs: repo_id -> number of shared runs of landmarks, largest first
    run_share: share of the runs, 0..1
    """

    equal: str | None
    episodes: dict[str, int]
    total: int
    episode_share: float
    runs: dict[str, int]
    run_share: float


class Kept:
    """The datasets kept so far, out of `rows` in the order of publishing."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Sort the hashes of all rows; none is kept yet."""
        self._rows = rows
        self._equal: dict[str, str] = {}
        self._episodes = _Shared([unpack(row.episode_hashes, "<u8") for row in rows])
        self._runs = _Shared([unpack(row.landmark_hashes, "<u4") for row in rows])

    def overlap(self, position: int) -> Overlap:
        """What the row at `position` shares with the kept ones."""
        episodes, episode_share = self._episodes.found(position)
        runs, run_share = self._runs.found(position)
        return Overlap(
            equal=self._equal.get(self._rows[position].fingerprint or ""),
            episodes=self._named(episodes),
            total=len(self._episodes.hashes[position]),
            episode_share=episode_share,
            runs=self._named(runs),
            run_share=run_share,
        )

    def keep(self, position: int) -> None:
        """Compare later rows with this one too."""
        row = self._rows[position]
        if row.fingerprint is not None:
            self._equal.setdefault(row.fingerprint, row.repo_id)
        self._episodes.keep(position)
        self._runs.keep(position)

    def _named(self, counts: dict[int, int]) -> dict[str, int]:
        return {self._rows[owner].repo_id: count for owner, count in counts.items()}


class _Shared:
    """Sets of hashes, each [H] sorted and distinct, and for each hash the first kept set that has it."""

    def __init__(self, hashes: list[np.ndarray]) -> None:
        self.hashes = hashes
        ordered = np.sort(np.concatenate([*hashes, np.zeros(0, hashes[0].dtype if hashes else np.uint64)]))
        self._common = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        self._keeper = np.full(len(self._common), -1, np.int64)

    def found(self, owner: int) -> tuple[dict[int, int], float]:
        """Kept set -> number of hashes shared with this one, largest first; and their share of all hashes.

        Of a set that was cut off at MAX_STORED only the smallest hashes are known; the share among those
        is used for the whole set.
        """
        mine = self.hashes[owner]
        keepers = self._keeper[self._places(mine)]
        if not (keepers >= 0).any():
            return {}, 0.0
        others, counts = np.unique(keepers[keepers >= 0], return_counts=True)
        share = 0.0
        for other, count in zip(others.tolist(), counts.tolist(), strict=True):
            theirs = self.hashes[other]
            known = len(mine) if len(theirs) < MAX_STORED else np.searchsorted(mine, theirs[-1], side="right")
            share += count / max(1, int(known))
        order = sorted(zip((-counts).tolist(), others.tolist(), strict=True))
        return {other: -count for count, other in order}, min(1.0, share)

    def keep(self, owner: int) -> None:
        places = self._places(self.hashes[owner])
        self._keeper[places[self._keeper[places] < 0]] = owner

    def _places(self, mine: np.ndarray) -> np.ndarray:
        """The positions in `_common` of those hashes of a set that another set has as well."""
        if not len(self._common):
            return np.zeros(0, np.int64)
        places = np.minimum(np.searchsorted(self._common, mine), len(self._common) - 1)
        return places[self._common[places] == mine]


def pack(hashes: np.ndarray) -> bytes:
    """Hashes as a catalogue stores them: little-endian, as wide as they are."""
    return hashes.astype(hashes.dtype.newbyteorder("<")).tobytes()


def unpack(packed: bytes | None, dtype: str) -> np.ndarray:
    """The hashes that `pack` wrote as numbers of `dtype`; none for None."""
    return np.frombuffer(packed or b"", dtype)
