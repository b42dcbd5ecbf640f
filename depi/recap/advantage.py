"""Advantages, how much better than expected the actions of a frame were, and the threshold on them.

RECAP (pi*0.6 paper, section on advantage estimation) compares, over a look-ahead of N frames, what the value
network expected with what happened:

    A(o_t) = sum of rewards over frames t .. t+N-1, plus V(o_{t+N}), minus V(o_t)

Rewards are those of `outcomes.episode_rewards`, divided by `reward_normalizer`, so that they
are in the unit of the values: -1 is the worst return. Where the episode ends within the look-ahead, the sum
runs to its end, without a value after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from depi.datasets.samples.outcomes import episode_rewards


@dataclass(frozen=True)
class Threshold:
    """Frames whose advantage is above `epsilon` are positive: `positive` of `frames`."""

    epsilon: float
    positive: int
    frames: int


def episode_advantages(
    values: np.ndarray, success: bool, *, look_ahead: int, c_fail: float, reward_normalizer: float
) -> np.ndarray:
    """The advantage of every frame of an episode, float64 [T].

    Args:
        values: V(o_t), -1 to 0, [T]; NaN where a frame cannot be read.
        success: whether the episode succeeded.
        look_ahead: N, in frames.
        c_fail: see `depi.datasets.samples.outcomes`.
        reward_normalizer: frames that make -1.

    Returns:
        NaN where V(o_t), or a V(o_{t+N}) within the episode, is NaN.

    Raises:
        ValueError: look_ahead is below 1, or reward_normalizer not positive.
    """
    if look_ahead < 1 or not reward_normalizer > 0:
        raise ValueError(
            f"look_ahead {look_ahead} and reward_normalizer {reward_normalizer} must be positive"
        )
    values = np.asarray(values, np.float64)
    length = len(values)
    rewards = episode_rewards(length, success, c_fail)
    start, end = np.arange(length), np.minimum(np.arange(length) + look_ahead, length)
    inside = end < length
    # Every reward before the last is -1, so the frames can be counted, which is exact.
    summed = np.where(inside, start - end, start - (length - 1) + rewards[-1])
    after = np.where(inside, values[np.minimum(end, length - 1)], 0.0)
    return summed / reward_normalizer + after - values


def threshold(advantages: np.ndarray, share: float) -> Threshold:
    """The epsilon above which the share of all advantages lies that comes closest to `share`.

    Equal advantages are on the same side. So with ties the share cannot always be met; of two that are
    equally near, the smaller one is taken.

    Args:
        advantages: float [n], NaN where unknown, which are ignored.
        share: 0 to 1.

    Raises:
        ValueError: the share is outside of 0 to 1, or no advantage is known.
    """
    known = np.asarray(advantages)
    known = known[~np.isnan(known)]
    if not 0 <= share <= 1 or not len(known):
        raise ValueError(f"no threshold for the share {share} of {len(known)} advantages")
    wanted = share * len(known)
    # The advantage at this place, counted from the highest, and its equals are below or above together.
    place = min(int(wanted), len(known) - 1)
    pivot = np.partition(known, len(known) - 1 - place)[len(known) - 1 - place]
    above, not_below = int((known > pivot).sum()), int((known >= pivot).sum())
    if wanted - above <= not_below - wanted:
        return Threshold(float(pivot), above, len(known))
    lower = known[known < pivot]
    epsilon = lower.max() if len(lower) else np.nextafter(pivot, -np.inf, dtype=known.dtype)
    return Threshold(float(epsilon), not_below, len(known))


def thresholds(
    advantages: np.ndarray, share: float, groups: np.ndarray, names: Sequence[str]
) -> dict[str, Threshold]:
    """One threshold for each group of frames, such as those of a task.

    Args:
        advantages: see `threshold`.
        share: see `threshold`.
        groups: int [n], the group of each frame, a position in `names`.
        names: of the groups; groups without a known advantage are left out.
    """
    found = {}
    order = np.argsort(groups, kind="stable")
    bounds = np.searchsorted(groups[order], np.arange(len(names) + 1))
    for name, first, last in zip(names, bounds[:-1], bounds[1:], strict=True):
        inside = advantages[order[first:last]]
        if not np.isnan(inside).all():
            found[name] = threshold(inside, share)
    return found


def indicators(
    advantages: np.ndarray, epsilon: np.ndarray | float, intervention: np.ndarray
) -> np.ma.MaskedArray:
    """The indicator of each frame, masked bool [n]; masked where it is not known.

    A frame where a human intervened is positive for any advantage, also an unknown one (pi*0.6 paper:
    corrections are assumed to be good).

    Args:
        advantages: float [n], NaN where unknown.
        epsilon: the threshold, or that of each frame's group [n].
        intervention: bool [n].
    """
    positive = (advantages > epsilon) | intervention
    return np.ma.MaskedArray(positive, mask=np.isnan(advantages) & ~intervention)


def percentiles(advantages: np.ndarray) -> Mapping[str, float]:
    """Exact percentiles of the known advantages."""
    known = advantages[~np.isnan(advantages)]
    marks = (0, 1, 5, 10, 25, 50, 70, 75, 90, 95, 99, 100)
    return {f"{mark}": float(value) for mark, value in zip(marks, np.percentile(known, marks), strict=True)}
