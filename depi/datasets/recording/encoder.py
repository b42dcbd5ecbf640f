"""What a servo's encoder leaves in recorded joints: evenly spaced levels, whose spacing gives the unit away.

The servos of an SO-100 or SO-101 count 4096 steps a turn. LeRobot writes a position as degrees, 360/4096 or
360/4095 a step on every joint, or as -100..100 over the N steps of the joint's calibrated range, 200/N a
step. Filtered, resampled and simulated values have no levels, and values rounded to 0.1 have levels of that
rounding, which say nothing: then there is no answer.

How strongly values x lie on levels a step s apart is measured by R = |mean(exp(2 pi i x / s))|, which is 1
for exact levels and about 1/sqrt(L) for L values anywhere (Rayleigh's test of directional statistics).
"""

from typing import NamedTuple

import numpy as np

DEGREES_PER_STEP = 360 / 4095
"""What LeRobot divides by since degrees have their zero mid-range; before, and elsewhere, it is 360/4096."""

CALIBRATED_STEPS = (1000, 4095)
"""Fewest and most encoder steps over a joint's calibrated range; the widest is the whole turn."""

DEGREE_STEPS = (360 / 4096, DEGREES_PER_STEP)
_READ = 50_000  # values of a column that are looked at
_FEWEST_LEVELS = 12
_FEWEST_LEVELS_OF_A_CALIBRATION = 30
# R of levels that were recorded is above 0.97, with two decimals too.
_STRONG = 0.9
# Among the 3,096 possible calibrations the best fits chance values too: exp(-17) * 3096 = 1e-4.
_SIGNIFICANT = 17.0
# Values are counted in bins this wide, so that one Fourier transform tries all calibrations at once. R of
# true levels, at most 20 a unit, stays above 0.85 so; it is computed exactly for the best ones.
_BIN = 0.0125


class Levels(NamedTuple):
    """What a column's levels say.

    unit: `degrees`, `normalized`, or None where they say nothing.
    steps: for `normalized`, the number of encoder steps over the calibrated range that fits best.
    """

    unit: str | None
    steps: int | None = None


def read_levels(values: np.ndarray) -> Levels:
    """Whether one joint's recorded values (float [F]) lie on levels of degrees or of normalised values."""
    levels = _distinct(values)
    if len(levels) < _FEWEST_LEVELS or is_rounded(levels, 1):
        return Levels(None)
    as_degrees, step = max((_strength(levels, step), step) for step in DEGREE_STEPS)
    if as_degrees > _STRONG and len(levels) * as_degrees**2 > 10 and _is_finest(levels, step):
        return Levels("degrees")
    steps, strength = _best_calibration(levels)
    if strength < _STRONG or len(levels) * strength**2 < _SIGNIFICANT or not _is_finest(levels, 200 / steps):
        return Levels(None)
    # Degrees look like 2275 steps over 200 (4095 over 360), or nearly so where the joint moves little.
    if abs(steps - 2275.3) < 2 + 200 / max(np.ptp(levels), 1):
        return Levels(None)
    return Levels("normalized", steps)


def is_rounded(values: np.ndarray, decimals: int) -> bool:
    """Whether values (float [L]) were rounded to so many decimals, or fewer."""
    shifted = values * 10.0**decimals
    return bool(np.mean(np.abs(shifted - np.round(shifted)) < 2e-3 * 10.0**decimals) > 0.99)


def calibrated_steps(values: np.ndarray) -> int | None:
    """The number N of encoder steps over a joint's range, if its values are levels 200 k / N - 100."""
    levels = _distinct(values)
    levels = levels[np.abs(levels) < 99.99]  # at the ends LeRobot clamps
    if len(levels) < _FEWEST_LEVELS_OF_A_CALIBRATION or is_rounded(levels, 2):
        return None
    some = levels[np.linspace(0, len(levels) - 1, _FEWEST_LEVELS_OF_A_CALIBRATION).astype(int)]
    candidates = np.arange(CALIBRATED_STEPS[0], CALIBRATED_STEPS[1] + 1)
    # A few levels rule out nearly all of them: what is within 0.05 over all is within sqrt(5) times that
    # over every fifth.
    likely = candidates[_distance_to_levels(some[::5], candidates) < 0.05 * 5**0.5]
    likely = likely[_distance_to_levels(some, likely) < 0.05]
    fitting = likely[[_distance_to_levels(levels, count[None])[0] < 0.02 for count in likely]].tolist()
    # Levels of N are also levels of its multiples; anything else that fits leaves N open.
    return fitting[0] if fitting and not any(count % fitting[0] for count in fitting) else None


def _distinct(values: np.ndarray) -> np.ndarray:
    column = values[:_READ].astype(np.float64)
    return np.unique(column[np.isfinite(column)])


def _strength(levels: np.ndarray, step: float) -> float:
    return float(np.abs(np.exp(2j * np.pi / step * levels).mean()))


def _is_finest(levels: np.ndarray, step: float) -> bool:
    """Whether no coarser step explains the levels: a steady motion has even ones that no encoder made."""
    return bool(np.gcd.reduce(np.round(np.diff(levels) / step).astype(np.int64)) == 1)


def _best_calibration(levels: np.ndarray) -> tuple[int, float]:
    """The number of steps over the range -100..100 whose levels fit best, and how strongly."""
    counts = np.bincount(np.round((levels - levels[0]) / _BIN).astype(np.int64)).astype(np.float32)
    # Twice the span of -100..100, so that no candidate is farther than a quarter turn from a frequency.
    size = 1 << int(np.ceil(np.log2(max(len(counts), 2 * 200 / _BIN))))
    spectrum = np.abs(np.fft.rfft(counts, size))
    first, last = CALIBRATED_STEPS
    candidates = np.arange(first, last + 1)
    frequency = np.round(candidates / 200 * _BIN * size).astype(int)
    likely = candidates[np.argpartition(spectrum[frequency], -8)[-8:]]
    # Level 0 is at -100, so that the phase is known too.
    fits = [float(np.cos(np.pi * steps / 100 * (levels + 100)).mean()) for steps in likely]
    best = int(np.argmax(fits))
    return int(likely[best]), fits[best]


def _distance_to_levels(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Root mean square distance of values [L] to the nearest level, in steps, per number of steps [S]."""
    position = (values + 100) * (steps[:, None] / 200)
    return np.sqrt(np.mean((position - np.round(position)) ** 2, axis=1))
