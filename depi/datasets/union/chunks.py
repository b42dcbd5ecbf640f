"""Chunks of actions: which frames they are made of, and statistics of those relative to the state."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from depi.datasets.union.statistics import QUANTILES, floor_std
from depi.threads import threads

_BLOCK = 1 << 17
"""Frames at a time: what is computed of them stays in the processor's cache."""


def chunk_places(
    chunk_size: int, fps: float, action_freq: float | None, start: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Where the actions of a chunk lie, counted in frames from that of its step 0.

    Args:
        chunk_size: H, actions.
        fps: frames per second of the recording.
        action_freq: actions per second; None for one action per frame.
        start: the chunk's first step.

    Returns:
        The frame before each action, int64 [H], and how far it is from there to the next frame, 0 to below 1,
        float64 [H].
    """
    steps = np.arange(start, start + chunk_size)
    if action_freq is None or action_freq == fps:
        return steps, np.zeros(chunk_size)
    # In float64, and multiplied first: whole positions come out whole, and no rounding pattern arises.
    position = steps * fps / action_freq
    lower = np.floor(position)
    return lower.astype(np.int64), position - lower


@dataclass(frozen=True)
class ChunkData:
    """What chunks are cut from: F frames in E episodes.

    state: float32 [F, D]; action: float32 [F, D], of the same joints
    episode_start: int64 [E + 1], the first frame of each episode, and F
    fps: float64 [E], frames per second
    drawn: bool [E], the episodes that count
    """

    state: np.ndarray
    action: np.ndarray
    episode_start: np.ndarray
    fps: np.ndarray
    drawn: np.ndarray


def relative_stats(
    data: ChunkData, relative: Sequence[bool], chunk_size: int, action_freq: float | None = None
) -> dict[str, np.ndarray]:
    """Statistics of all actions in all chunks, exact, over every frame at which a chunk can begin.

    Actions past the end of their episode do not count: they are padding. Runs twice over the data, in memory
    that does not depend on its size.

    Args:
        data: what the chunks are cut from, finite.
        relative: for each joint whether the state at the chunk's first frame is subtracted.
        chunk_size: actions in a chunk.
        action_freq: actions per second in a chunk; None for the frames as recorded.

    Returns:
        As `depi.datasets.union.statistics.compute_stats`; `count` is that of chunks.
    """
    groups = [_Group.of(data, *group, chunk_size, action_freq) for group in _groups(data, action_freq)]
    with threads(os.cpu_count() or 1) as pool:
        columns = list(pool.map(partial(_column_stats, data, groups), range(len(relative)), relative))
    stats = {key: np.array([column[key] for column in columns]) for key in columns[0]}
    stats["std"] = floor_std(stats["std"])
    chunks = int(np.diff(data.episode_start)[data.drawn].sum())
    return {
        **{key: value.astype(np.float32) for key, value in stats.items()},
        "count": np.array([chunks], np.int64),
    }


def _groups(data: ChunkData, action_freq: float | None) -> list[tuple[float, np.ndarray]]:
    """(frames per second, bool [E]) of the episodes whose chunks lie at the same places."""
    if action_freq is None:
        return [(0.0, data.drawn)]
    return [(fps, data.drawn & (data.fps == fps)) for fps in np.unique(data.fps[data.drawn]).tolist()]


@dataclass(frozen=True)
class _Group:
    """Episodes whose chunks lie at the same places.

    rows: int64 [N], their frames
    left: int32 [N], frames that come after each in its episode
    places: whole frames from a chunk's first to each action, and the way from there to the next frame
    """

    rows: np.ndarray
    left: np.ndarray
    places: list[tuple[int, float]]

    @classmethod
    def of(
        cls, data: ChunkData, fps: float, chosen: np.ndarray, chunk_size: int, action_freq: float | None
    ) -> "_Group":
        length = np.diff(data.episode_start)[chosen]
        end = np.cumsum(length)
        number = np.arange(end[-1])
        rows = number + np.repeat(data.episode_start[:-1][chosen] - (end - length), length)
        left = (np.repeat(end, length) - 1 - number).astype(np.int32)
        lower, way = chunk_places(chunk_size, fps, action_freq)
        return cls(rows, left, list(zip(lower.tolist(), way.tolist(), strict=True)))

    def values(self, action: np.ndarray, state: np.ndarray | None) -> Iterator[np.ndarray]:
        """One joint's actions in all chunks, without what `state` has at their first frames; in parts."""
        # The last chunks reach beyond the last frame; what they find there is left out.
        action = np.pad(action[self.rows], (0, self.places[-1][0] + 1))
        state = None if state is None else state[self.rows]
        for begin in range(0, len(self.rows), _BLOCK):
            end = min(begin + _BLOCK, len(self.rows))
            for step, way in self.places:
                values = action[begin + step : end + step]
                if way:
                    values = values + np.float32(way) * (action[begin + step + 1 : end + step + 1] - values)
                # Adding 0 makes -0 the same number as 0.
                values = (
                    values + np.float32(0) if state is None else values - state[begin:end] + np.float32(0)
                )
                yield values[self.left[begin:end] >= step + way]


def _column_stats(data: ChunkData, groups: Sequence[_Group], joint: int, relative: bool) -> dict[str, float]:
    """The statistics of one joint."""
    action, state = data.action[:, joint], data.state[:, joint] if relative else None
    moments, coarse = _Moments(), np.zeros(1 << 16, np.int64)
    for values in (part for group in groups for part in group.values(action, state)):
        moments.add(values)
        coarse += np.bincount(_sortable(values) >> 16, minlength=1 << 16)
    ranks = _ranks(moments.count)
    bins = np.unique(np.searchsorted(np.cumsum(coarse), ranks, side="right"))
    row = np.full(1 << 16, -1, np.int32)
    row[bins] = np.arange(len(bins))
    fine = np.zeros(len(bins) << 16, np.int64)
    for values in (part for group in groups for part in group.values(action, state)):
        keys = _sortable(values)
        rows = row[keys >> 16]
        wanted = rows >= 0
        places = (rows[wanted] << 16) | (keys[wanted] & 0xFFFF).astype(np.int32)
        fine += np.bincount(places, minlength=len(fine))
    before = np.cumsum(coarse) - coarse
    found = {rank: _value_at(rank, before, bins, fine.reshape(-1, 1 << 16)) for rank in ranks}
    quantiles = {name: _between(share * (moments.count - 1), found) for name, share in QUANTILES.items()}
    return {
        "mean": moments.mean,
        "std": float(np.sqrt(moments.squares / moments.count)),
        "min": found[0],
        "max": found[moments.count - 1],
        **quantiles,
    }


@dataclass
class _Moments:
    """Mean and sum of squared differences from it, of parts joined one after another (Chan et al., 1983)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: np.ndarray) -> None:
        if not len(values):
            return
        differences = values.astype(np.float64)
        mean = float(differences.mean())
        differences -= mean
        total = self.count + len(values)
        apart = mean - self.mean
        self.squares += float(differences @ differences) + apart**2 * self.count * len(values) / total
        self.mean += apart * len(values) / total
        self.count = total


def _sortable(values: np.ndarray) -> np.ndarray:
    """uint32 numbers in the order of the float32 values."""
    bits = values.view(np.uint32)
    signs = (values.view(np.int32) >> 31).view(np.uint32)  # all bits of a negative number
    return bits ^ (signs | np.uint32(0x8000_0000))


def _from_sortable(key: int) -> float:
    bits = key & 0x7FFF_FFFF if key >> 31 else ~key & 0xFFFF_FFFF
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _ranks(count: int) -> list[int]:
    """The places, in sorted order, of the least and largest value and of those that quantiles lie between."""
    places = [share * (count - 1) for share in (0.0, *QUANTILES.values(), 1.0)]
    return sorted({int(place) for place in places} | {min(int(place) + 1, count - 1) for place in places})


def _value_at(rank: int, before: np.ndarray, bins: np.ndarray, fine: np.ndarray) -> float:
    """The value at a place in sorted order; `fine` [bins, 65536] counts the lower halves of the keys."""
    row = int(np.searchsorted(before[bins], rank, side="right")) - 1
    low = int(np.searchsorted(np.cumsum(fine[row]), rank - before[bins[row]], side="right"))
    return _from_sortable(int(bins[row]) << 16 | low)


def _between(place: float, found: dict[int, float]) -> float:
    """The value at a place that may lie between two, interpolated linearly."""
    lower = int(place)
    low = found[lower]
    return low + (place - lower) * (found.get(lower + 1, low) - low)
