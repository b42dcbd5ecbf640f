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
_FEWEST_CHANGES = 24
_MOST_FRAMES = 6_000
# A frame in which nothing changes takes 30 bytes (SVT-AV1) to 70 (x264); a keyframe takes thousands. The
# keyframes of one picture differ by nothing (SVT-AV1) to 1% (x264).
_QUIET_BYTES, _QUIET_SHARE = 100, 0.02
_SAME_SIZE = 0.02
# An encoder may tell a picture that stands still anew, and better; so many larger frames end no still run.
_REFINED = 2


@dataclass(frozen=True)
class Still:
    """Frames of an episode in which the picture does not change, while a joint moves.

    begin, end: the frames, counted from the episode's start, `end` not included
    moved: the farthest that a joint goes meanwhile, as a share of its range in the dataset
    """

    begin: int
    end: int
    moved: float


def still_runs(packets: Packets, part: slice, fewest: int) -> list[tuple[int, int]]:
    """The frames, `fewest` or more in a row, that by their size show one picture, counted from the part's."""
    size, keyframe = packets.size[part], packets.keyframe[part]
    same = size <= max(_QUIET_BYTES, _QUIET_SHARE * _typical(size[keyframe]))
    keys = np.flatnonzero(keyframe)
    same[keys] = False
    same[keys[1:]] = np.abs(np.diff(size[keys])) <= _SAME_SIZE * size[keys[1:]]
    # The frame before the first that repeats it is of the run too.
    runs: list[tuple[int, int]] = []
    for begin, end in np.flatnonzero(np.diff(same, prepend=False, append=False)).reshape(-1, 2).tolist():
        if runs and begin - runs[-1][1] <= _REFINED:
            runs[-1] = runs[-1][0], end
        elif begin > 0:
            runs.append((begin - 1, end))
    return [(begin, end) for begin, end in runs if end - begin >= fewest]


def _typical(size: np.ndarray) -> float:
    return float(np.median(size)) if len(size) else 0.0


def motion_scale(state: np.ndarray) -> np.ndarray:
    """What to divide each joint by, float [D]: its range over the dataset (float [F, D]); hardly moved ones
    count little."""
    low, high = np.quantile(state, (0.005, 0.995), axis=0)
    span = high - low
    return np.maximum(span, max(0.3 * float(span.max(initial=0)), 1e-9))


def travel(joints: np.ndarray) -> float:
    """How far the joint that moves most goes in these frames (float [L, D], as shares of its range)."""
    return float(np.ptp(joints, axis=0).max(initial=0)) if len(joints) else 0.0


def follow(packets: Packets, part: slice, joints: np.ndarray) -> list[float] | None:
    """The correlation of the picture's change with the joints' speed N frames before, for N = -MAX_SHIFT to
    MAX_SHIFT; None where the video does not tell.

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
    change = np.log(np.maximum(size[at], _QUIET_BYTES / 2))
    change -= change.mean()
    speed = np.abs(np.diff(joints[:frames], axis=0, prepend=joints[:1])).mean(axis=1)
    speed = np.convolve(speed, np.ones(3) / 3, "same")
    if speed.max() <= 0 or np.ptp(change) <= 0:
        return None
    speed = np.log(speed + 0.1 * speed.mean())
    speed -= speed.mean()
    return _correlations(change, speed, at).round(3).tolist()


def _correlations(change: np.ndarray, speed: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Between the change at frames `at` and the speed so many frames before; 0 where too few overlap."""
    source = at - np.arange(-MAX_SHIFT, MAX_SHIFT + 1)[:, None]
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
    return np.where(known, covariance / np.sqrt(np.where(known, spread, 1.0)), 0.0)
