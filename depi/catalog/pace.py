"""How a video goes along with the joints: where its picture stands still, and how late it follows them.

Nothing is decoded for this: a frame that is told as a difference from the one before takes few bytes where
nothing moves and many where much does. In real AV1 recordings of LeRobot (a keyframe every second frame) the
logarithms of those bytes and of the change of the pixels correlate by 0.98.
"""

from dataclasses import dataclass

import numpy as np

from depi.catalog.packets import Packets

MAX_SHIFT = 60
"""Frames by which a video is compared with the joints earlier and later."""
MAX_CLOSE_SHIFT = 15
"""The same without what changes slowly, over 2 s, which tells smaller shifts apart."""
_SLOW = 61
_FEWEST_CHANGES = 24
_LEAST_BYTES = 40
_MOST_FRAMES = 6_000
# A frame in which nothing changes takes 30 bytes (SVT-AV1) to 70 (x264), a keyframe thousands, and one of a
# slow motion little more than the least.
_QUIET_BYTES = 100
# SVT-AV1 gives the same picture as many bytes each time, and hardly ever so many to two that differ by noise.
# x264 goes on choosing another quantiser.
_EXACT = ("av1",)
_EQUAL_BYTES, _SIMILAR_SIZE = 2, 0.012
_FEWEST_QUIET = 5
# An encoder may tell a picture that stands still anew, and better; so many larger frames end no still run.
_REFINED = 2


@dataclass(frozen=True)
class Still:
    """Frames of an episode in which the picture does not change, while a joint moves.

    begin, end: the frames, counted from the episode's start, `end` not included
    moved: the farthest that a joint goes meanwhile, as a share of its range in the dataset
    jump: the share of the picture that differs in the next keyframe after it; None where none follows
    step: the same from that keyframe to the one after it, which is what the motion makes of two frames
    """

    begin: int
    end: int
    moved: float
    jump: float | None = None
    step: float | None = None


@dataclass(frozen=True)
class Follows:
    """The correlation of the picture's change with the joints' speed N frames before.

    far: for N from -MAX_SHIFT to MAX_SHIFT
    close: of the quick changes alone, for N from -MAX_CLOSE_SHIFT to MAX_CLOSE_SHIFT
    """

    far: tuple[float, ...]
    close: tuple[float, ...]


def still_runs(packets: Packets, part: slice, codec: str, fewest: int) -> list[tuple[int, int]]:
    """The frames, `fewest` or more in a row, that by their size show one picture, counted from the part's."""
    same = _is_quiet(packets, part)
    keys, size = np.flatnonzero(packets.keyframe[part]), packets.size[part]
    exact = codec in _EXACT
    same[keys] = False
    tolerance = 0.0 if exact else _SIMILAR_SIZE
    same[keys[1:]] = np.abs(np.diff(size[keys])) <= _EQUAL_BYTES + tolerance * size[keys[1:]]
    # The frame before the first that repeats it is of the run too.
    runs: list[tuple[int, int]] = []
    for begin, end in np.flatnonzero(np.diff(same, prepend=False, append=False)).reshape(-1, 2).tolist():
        if runs and not exact and begin - runs[-1][1] <= _REFINED:
            runs[-1] = runs[-1][0], end
        elif begin > 0:
            runs.append((begin - 1, end))
    return [(begin, end) for begin, end in runs if end - begin >= fewest]


def noise(packets: Packets, part: slice, codec: str, still: list[tuple[int, int]]) -> float | None:
    """How often keyframes differ between which nothing moves: by the noise of a camera that does not hang.

    Returns:
        The share, 0 to 1, outside the runs that are `still`; None where the video does not tell.
    """
    if codec not in _EXACT:
        return None
    keys, size = np.flatnonzero(packets.keyframe[part]), packets.size[part]
    moves = np.concatenate([[0], np.cumsum(~(_is_quiet(packets, part) | packets.keyframe[part]))])
    outside = np.ones(len(size), bool)
    for begin, end in still:
        outside[begin:end] = False
    quiet = (moves[keys[1:]] == moves[keys[:-1]]) & outside[keys[1:]] & outside[keys[:-1]]
    if quiet.sum() < _FEWEST_QUIET:
        return None
    return round(float((np.abs(np.diff(size[keys]))[quiet] > _EQUAL_BYTES).mean()), 3)


def _is_quiet(packets: Packets, part: slice) -> np.ndarray:
    """The frames, of those that are no keyframes, that change nothing, bool [frames]."""
    size, keyframe = packets.size[part], packets.keyframe[part]
    least = np.quantile(size[~keyframe], 0.05) if not keyframe.all() else 0
    return ~keyframe & (size <= min(_QUIET_BYTES, 1.5 * least + 8))


def motion_scale(state: np.ndarray) -> np.ndarray:
    """What to divide each joint by, float [D]: its range over the dataset (float [F, D]); hardly moved ones
    count little."""
    low, high = np.quantile(state, (0.005, 0.995), axis=0)
    span = high - low
    return np.maximum(span, max(0.3 * float(span.max(initial=0)), 1e-9))


def travel(joints: np.ndarray) -> float:
    """How far the joint that moves most goes in these frames (float [L, D], as shares of its range)."""
    return float(np.ptp(joints, axis=0).max(initial=0)) if len(joints) else 0.0


def follow(packets: Packets, part: slice, joints: np.ndarray) -> Follows | None:
    """How the picture's change goes with the joints' speed; None where the video does not tell.

    Args:
        packets: of the file.
        part: the episode's frames in it.
        joints: float [L, D], as shares of their ranges.
    """
    size, keyframe = packets.size[part][:_MOST_FRAMES], packets.keyframe[part][:_MOST_FRAMES]
    frames = min(len(size), len(joints))
    at = np.flatnonzero(~keyframe[:frames])
    at = at[at > 0]
    if len(at) < _FEWEST_CHANGES:
        return None
    change = np.log(np.maximum(size[at], _LEAST_BYTES))
    speed = _smooth(np.abs(np.diff(joints[:frames], axis=0, prepend=joints[:1])).mean(axis=1), 3)
    if speed.max() <= 0 or np.ptp(change) <= 0:
        return None
    speed = np.log(speed + 0.1 * speed.mean())
    every = np.interp(np.arange(frames), at, change)
    quick = (every - _smooth(every, _SLOW))[at], speed - _smooth(speed, _SLOW)
    return Follows(_correlations(change, speed, at, MAX_SHIFT), _correlations(*quick, at, MAX_CLOSE_SHIFT))


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over so many frames around each, fewer at the ends."""
    kernel = np.ones(min(width, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _correlations(change: np.ndarray, speed: np.ndarray, at: np.ndarray, shifts: int) -> tuple[float, ...]:
    """Between the change at frames `at` and the speed N frames before; 0 where too few overlap."""
    change, speed = change - change.mean(), speed - speed.mean()
    source = at - np.arange(-shifts, shifts + 1)[:, None]
    inside = (source >= 0) & (source < len(speed))
    count = inside.sum(axis=1)
    a = np.where(inside, change, 0.0)
    b = np.where(inside, speed[np.clip(source, 0, len(speed) - 1)], 0.0)
    sum_a, sum_b = a.sum(axis=1), b.sum(axis=1)
    covariance = (a * b).sum(axis=1) - sum_a * sum_b / np.maximum(count, 1)
    spread = ((a * a).sum(axis=1) - sum_a**2 / np.maximum(count, 1)) * (
        (b * b).sum(axis=1) - sum_b**2 / np.maximum(count, 1)
    )
    known = (count >= max(_FEWEST_CHANGES, len(at) // 2)) & (spread > 1e-9)
    found = np.where(known, covariance / np.sqrt(np.where(known, spread, 1.0)), 0.0)
    return tuple(found.round(3).tolist())
