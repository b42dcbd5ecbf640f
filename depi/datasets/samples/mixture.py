"""Which frame stands at a position of the training stream, for any weights of the datasets.

Frames are drawn from groups: all frames together, the datasets, or the tasks within each dataset. Every group
is gone through epoch by epoch, in a new order each time (`depi.datasets.samples.order.shuffled_index`).

Where groups have weights, the stream is a sequence of blocks of equal length. In each block a group has its
share of the positions, as a whole number, and these positions are shuffled anew in every block. So how often
a group was drawn before a position is known at once, and the frame is a pure function of (seed, position): no
state, no list of draws, memory for the groups and the bounds of the episodes only. After any number of whole
blocks the frames of a group have been drawn equally often, to within one time.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from depi.datasets.samples.filters import FrameFilter, Frames, frame_ranges
from depi.datasets.samples.order import shuffled_index
from depi.errors import UserError

logger = logging.getLogger(__name__)

WEIGHTS = ("proportional", "sqrt", "uniform", "score")

# The smallest share of a block is at least this many positions, so shares are met to about 1%.
_LEAST_COUNT = 64
_LEAST_BLOCK = 1024
_LEAST_SHARE = 1e-9


class Mixture:
    """An endless order of frames: `mixture[position]` is a frame index.

    Args:
        bounds: int64 [K, 2], ranges of frames (first, one after the last), those of a group together.
        group: int [K], the group of each range, ascending from 0, each with at least one frame.
        names: of the groups; with `seed` they decide the order within a group.
        weights: of the groups, at least 0; None to go through all frames as one group, each once an epoch.
        seed: any integer.

    Raises:
        ValueError: the arguments do not fit together.
        UserError: no group has any weight, or one has next to none.
    """

    def __init__(
        self,
        bounds: np.ndarray,
        group: np.ndarray,
        names: Sequence[str],
        weights: Sequence[float] | None,
        seed: int,
    ) -> None:
        bounds, group = np.asarray(bounds, np.int64).reshape(-1, 2), np.asarray(group, np.int64)
        length = bounds[:, 1] - bounds[:, 0]
        if not len(bounds) or (length < 1).any() or (np.diff(group) < 0).any() or len(group) != len(bounds):
            raise ValueError("a mixture needs ranges with frames, in the order of their groups")
        self.seed, self.names = seed, tuple(names)
        self.frames = np.bincount(group, length, len(names)).astype(np.int64)
        self.counts = None if weights is None else _counts(self.names, weights)
        self._group_end = np.cumsum(self.frames)
        joined = np.concatenate([[True], bounds[1:, 0] != bounds[:-1, 1]])
        self._start = bounds[joined, 0]
        self._rank = np.concatenate([[0], np.cumsum(length)])[:-1][joined]
        order = np.argsort(bounds[:, 0])
        self._ranges = bounds[order]
        if self.counts is not None:
            self._count_end = np.cumsum(self.counts)
            self.block = int(self._count_end[-1])
            self._seeds = [_seed_of(seed, name) for name in self.names]

    @property
    def num_frames(self) -> int:
        """Distinct frames that the stream is drawn from."""
        return int(self._group_end[-1])

    def __getitem__(self, position: int) -> int:
        """The frame index at a position 0, 1, 2, ..."""
        if self.counts is None:
            return self._frame(shuffled_index(position, self.num_frames, self.seed))
        slot = shuffled_index(position, self.block, self.seed)
        group = int(np.searchsorted(self._count_end, slot, side="right"))
        count, frames = int(self.counts[group]), int(self.frames[group])
        earlier = position // self.block * count + slot - (int(self._count_end[group]) - count)
        rank = shuffled_index(earlier, frames, self._seeds[group])
        return self._frame(int(self._group_end[group]) - frames + rank)

    def _frame(self, rank: int) -> int:
        part = int(np.searchsorted(self._rank, rank, side="right")) - 1
        return int(self._start[part]) + rank - int(self._rank[part])

    def __contains__(self, frame: int) -> bool:
        """Whether the frame is ever drawn."""
        part = int(np.searchsorted(self._ranges[:, 0], frame, side="right")) - 1
        return part >= 0 and frame < self._ranges[part, 1]

    def draws_from(self, episode_start: np.ndarray) -> np.ndarray:
        """Which episodes (bool [E]) any frame is drawn of; they begin at frames int64 [E + 1]."""
        return np.diff(np.searchsorted(self._ranges[:, 0], episode_start)) > 0

    def range_after(self, frame: int, first: int, end: int) -> int:
        """The first frame of the next range that begins after `frame`; within first..end-1, going round."""
        low, high = np.searchsorted(self._ranges[:, 0], [first, end]).tolist()
        if low == high:
            raise ValueError(f"no frame of {first}..{end - 1} is drawn")
        part = int(np.searchsorted(self._ranges[:, 0], frame, side="right"))
        return int(self._ranges[part if low <= part < high else low, 0])

    def shares(self) -> dict[str, float]:
        """The share of the stream that each group has."""
        parts = self.frames if self.counts is None else self.counts
        return dict(zip(self.names, (parts / parts.sum()).tolist(), strict=True))


def make_mixture(
    dataset: Frames,
    *,
    weights: str | Mapping[str, float] = "proportional",
    scores: Mapping[str, float] | None = None,
    balance_tasks: bool = False,
    filters: FrameFilter | None = None,
    seed: int,
) -> Mixture:
    """The mixture of a dataset's frames.

    Args:
        dataset: a MultiLeRobotDataset.
        weights: `proportional`, each frame once an epoch; `sqrt`, datasets by the root of their frames;
            `uniform`, every dataset alike; `score`, frames times score; or repo_id -> weight, for every
            dataset (0: none of it).
        scores: repo_id -> score for `score`.
        balance_tasks: divide a dataset's share evenly among its task texts, whatever their frames.
        filters: what is not drawn.
        seed: any integer.

    Raises:
        UserError: nothing is left to draw from, or the weights are not those of the datasets.
    """
    ranges, removed = frame_ranges(dataset, filters or FrameFilter())
    kept = ranges[:, 0] < ranges[:, 1]
    if not kept.any():
        reasons = ", ".join(f"{name} {count}" for name, count in removed.items() if count)
        raise UserError(f"no frame is left to draw, all are filtered out ({reasons}): relax the filters")
    bounds, owner = ranges[kept], np.asarray(dataset.episode_dataset, np.int64)[kept]
    _log_removed(removed, dataset, owner)
    if weights == "proportional" and not balance_tasks:
        return Mixture(bounds, np.zeros(len(bounds)), ["all"], None, seed)
    frames = np.bincount(owner, bounds[:, 1] - bounds[:, 0], len(dataset.repo_ids))
    share = dataset_weights(weights, dataset.repo_ids, frames, scores)
    if not balance_tasks:
        group, names, weight = owner, list(dataset.repo_ids), share
    else:
        bounds, group, names, weight = _by_task(bounds, owner, dataset, share)
    # Groups without frames or weight are left out, so that the others are numbered from 0.
    used = np.flatnonzero((weight > 0) & (np.bincount(group, minlength=len(weight)) > 0))
    if not len(used):
        raise UserError("every dataset that has frames left has weight 0: give one a weight")
    wanted = np.isin(group, used)
    number = np.searchsorted(used, group[wanted])
    return Mixture(bounds[wanted], number, [names[index] for index in used], weight[used].tolist(), seed)


def dataset_weights(
    weights: str | Mapping[str, float],
    repo_ids: Sequence[str],
    frames: np.ndarray,
    scores: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Weight of each dataset, float64 [N], not normalised; see `make_mixture`.

    Raises:
        UserError: the name is unknown; a dataset has no weight; or a weight is negative or not finite.
    """
    if isinstance(weights, str):
        if weights not in WEIGHTS:
            raise UserError(f"weights {weights!r} are none of {', '.join(WEIGHTS)}")
        if weights == "score":
            return frames * _look_up(scores or {}, repo_ids, "score")
        return {"proportional": frames, "sqrt": np.sqrt(frames), "uniform": np.ones(len(frames))}[weights]
    return _look_up(weights, repo_ids, "weight")


def _look_up(table: Mapping[str, float], repo_ids: Sequence[str], what: str) -> np.ndarray:
    missing = [repo_id for repo_id in repo_ids if repo_id not in table]
    if missing:
        raise UserError(
            f"dataset {missing[0]} has no {what} ({len(missing)} of {len(repo_ids)} have none): "
            "give each dataset one, 0 to leave it out"
        )
    values = np.array([table[repo_id] for repo_id in repo_ids], np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise UserError(f"the {what} of dataset {repo_ids[bad[0]]} is {values[bad[0]]}, it must be 0 or more")
    return values


def _counts(names: tuple[str, ...], weights: Sequence[float]) -> np.ndarray:
    """Positions of each group in a block, int64 [G]: its share by largest remainder."""
    share = np.asarray(weights, np.float64)
    share = share / share.sum()
    least = int(share.argmin())
    if not share[least] > _LEAST_SHARE:
        raise UserError(
            f"the weight of {names[least]!r} is less than a billionth of the whole: leave it out with 0"
        )
    # A multiple of the number of groups gives equal weights equal counts.
    block = max(_LEAST_BLOCK, int(np.ceil(_LEAST_COUNT / share[least])))
    block = -(-block // len(share)) * len(share)
    exact = share * block
    counts = np.floor(exact + 1e-9).astype(np.int64)
    short = block - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    return counts


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest())


def _by_task(
    bounds: np.ndarray, owner: np.ndarray, dataset: Frames, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Ranges cut where the task changes, their groups (one per dataset and task), names and weights."""
    task = np.asarray(dataset.task)
    pieces, keys = [], []
    for (start, end), number in zip(bounds.tolist(), owner.tolist(), strict=True):
        changes = start + 1 + np.flatnonzero(np.diff(task[start:end]))
        for first, last in zip([start, *changes.tolist()], [*changes.tolist(), end], strict=True):
            pieces.append((first, last))
            keys.append((number, int(task[first])))
    groups, group = np.unique(np.array(keys), axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    weight = share[groups[:, 0]] / np.bincount(groups[:, 0])[groups[:, 0]]
    names = [f"{dataset.repo_ids[number]} task {text}" for number, text in groups.tolist()]
    return np.array(pieces)[order], group[order], names, weight


def _log_removed(removed: Mapping[str, int], dataset: Frames, owner: np.ndarray) -> None:
    """Say what the filters took, and which datasets they took whole."""
    taken = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in removed.items() if count)
    if taken:
        logger.info("not drawn: %s", taken)
    gone = np.setdiff1d(np.arange(len(dataset.repo_ids)), owner)
    if len(gone):
        named = ", ".join(dataset.repo_ids[number] for number in gone[:5])
        logger.warning("%s datasets have no frame left after filtering: %s", len(gone), named)
