"""How the state of each episode follows its action: the lag, and how alike the two are."""

from dataclasses import dataclass

import numpy as np

EARLIEST, LATEST = -0.5, 1.5
"""The lags of the state behind the action that are tried, in seconds."""
TRIED_FPS = 30.0
"""Lags are told apart to about 1/30 s: every second one is tried, then those beside the best."""
SMOOTHING = 0.1
"""Seconds over which motion is measured: a hand trembles with 6 to 11 Hz, which has no part in the lag."""
FASTEST = 400.0
"""Degrees per second: faster steps are cut, so that one wild reading does not outweigh the motion."""


@dataclass(frozen=True)
class Following:
    """How state follows action in E episodes.

    lag: seconds, float [E]
    likeness: correlation of the motion of all joints at that lag, -1..1, [E]
    """

    lag: np.ndarray
    likeness: np.ndarray


def measure_following(
    action: np.ndarray, state: np.ndarray, start: np.ndarray, length: np.ndarray, fps: float
) -> Following:
    """Measure the lag of each episode.

    Args:
        action, state: float32 [F, 6], in canonical degrees.
        start, length: int64 [E], frames.
        fps: frames per second.
    """
    apart = max(1, round(SMOOTHING * fps))
    most = FASTEST / fps * apart
    action, state = (np.clip(_motion(side, apart, start), -most, most) for side in (action, state))
    energy = [np.add.reduceat(np.einsum("fj,fj->f", step, step), start) for step in (action, state)]
    scale = np.sqrt(energy[0] * energy[1])
    stride = max(1, round(fps / TRIED_FPS))
    lags = np.arange(round(EARLIEST * fps), round(LATEST * fps) + 1, 2 * stride)
    products = np.stack([_products(action, state, int(lag), start, length) for lag in lags])
    best = lags[np.argmax(products, axis=0)]
    between = np.unique(np.concatenate([best - stride, best + stride]))
    lags = np.concatenate([lags, between])
    products = np.vstack([products, *(_products(action, state, int(lag), start, length) for lag in between)])
    # Of equally good lags the one nearest to none.
    likeness = products / np.where(scale > 0, scale, np.inf)
    best = np.argmax(likeness - 1e-6 * np.abs(lags)[:, None], axis=0)
    return Following(lags[best] / fps, likeness[best, np.arange(len(start))])


def _motion(values: np.ndarray, apart: int, start: np.ndarray) -> np.ndarray:
    """From so many frames before to each frame, [F, 6]; 0 in the first ones of an episode."""
    motion = np.zeros_like(values)
    np.subtract(values[apart:], values[:-apart], out=motion[apart:])
    first = (start[:, None] + np.arange(apart)).reshape(-1)
    motion[first[first < len(motion)]] = 0
    return motion


def _products(
    action: np.ndarray, state: np.ndarray, lag: int, start: np.ndarray, length: np.ndarray
) -> np.ndarray:
    """Sums over each episode's frames of action[t] times state[t + lag], [E]."""
    if lag >= 0:
        first, second = action[: len(action) - lag], state[lag:]
    else:
        first, second = action[-lag:], state[:lag]
    long = length > abs(lag)
    sums = np.zeros(len(start))
    if not long.any():
        return sums
    product = np.append(np.einsum("fj,fj->f", first, second), 0)
    bounds = np.stack([start, start + length - abs(lag)], axis=1)[long].reshape(-1)
    sums[long] = np.add.reduceat(product, bounds)[::2]
    return sums


@dataclass(frozen=True)
class JointFollowing:
    """How each joint follows its action in E episodes.

    likeness: correlation of the values at the usual lag, -1..1, [E, 6]; 1 where one of them is constant
    offset: mean of action minus state at that lag, in degrees, [E, 6]
    """

    likeness: np.ndarray
    offset: np.ndarray


def measure_joints(
    action: np.ndarray, state: np.ndarray, start: np.ndarray, length: np.ndarray, lag: int
) -> JointFollowing:
    """Compare the values of each joint, float32 [F, 6], the state so many frames after the action."""
    lag = int(np.clip(lag, 0, length.min() - 1))
    # Centred, so that sums of squares keep their digits.
    middle = action.mean(axis=0, dtype=np.float64)
    first, second = action[: len(action) - lag] - middle, state[lag:] - middle
    bounds = np.stack([start, start + length - lag], axis=1).reshape(-1)
    count = (length - lag)[:, None]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.vstack([values, np.zeros((1, 6))]), bounds)[::2] / count

    means = mean(first), mean(second)
    spread = [mean(side**2) - average**2 for side, average in zip((first, second), means, strict=True)]
    together = mean(first * second) - means[0] * means[1]
    scale = np.sqrt(np.maximum(spread[0], 0) * np.maximum(spread[1], 0))
    likeness = np.where(scale > 1e-3, together / np.maximum(scale, 1e-3), 1.0)
    return JointFollowing(np.clip(likeness, -1, 1), means[0] - means[1])
