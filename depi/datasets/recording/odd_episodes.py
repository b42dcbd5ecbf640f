"""Episodes that are in other units than the rest of a recording.

Compared are what an episode's ends allow (small values or not; which zero keeps every joint in reach), and
whether its values lie on the encoder's steps of degrees. All episodes are looked at together; what looks
unlike the rest is looked at again, without its glitches. Where there are two kinds, the larger one is the
recording, and has to hold half of the episodes; of two equal ones, the one that shows what it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from depi.datasets.recording.encoder import DEGREE_STEPS
from depi.datasets.recording.joints import Detection
from depi.datasets.recording.units import (
    NORMALIZED_LIMIT,
    RADIANS_LIMIT,
    at_100,
    ends,
    in_reach,
    outside_reach,
    unit_of,
)

Columns = Mapping[str, np.ndarray]
Detect = Callable[[Columns, np.ndarray], Detection]

# In an episode one reading in so many may be a glitch.
_FRAMES_PER_GLITCH = 100
# Steps of degrees are seen in a joint that moves in so many frames, by so much that the steps of a calibrated
# range (2216 to 3873 over 200, degrees are 2275) are out of step with them; see `encoder` for the strength.
_MOVING_FRAMES = 12
_WIDE = 15.0
_ON_STEPS, _OFF_STEPS = 0.9, 0.6
# So many frames of a usual episode are looked at.
_FRAMES_READ = 80


class Split(NamedTuple):
    """Episodes of two kinds.

    side: int8 [E], 1 or 2; 0 where an episode does not show its kind
    kinds: what the two are
    why: more about single episodes
    """

    side: np.ndarray
    kinds: tuple[str, str]
    why: Mapping[int, str] = MappingProxyType({})

    def text(self, position: int, kept: int) -> str:
        """What an episode is in, where the episodes of the side `kept` are the recording."""
        side, rest = int(self.side[position]), self.kinds[kept - 1]
        if not side:
            return f"it does not show whether it is in {' or in '.join(self.kinds)}, and the set has both"
        why = f" ({self.why[position]})" if position in self.why else ""
        return f"it is in {self.kinds[side - 1]}{why}, the rest in {rest}"


def detect_agreeing(columns: Columns, length: np.ndarray, detect: Detect) -> Detection:
    """The convention of the episodes that agree, with the others as `unlike`.

    Args:
        columns: float [F, 6] each, as recorded.
        length: int64 [E], frames of each episode.
        detect: finds the convention of columns, with their lengths, that are all of one.
    """
    return _detect(columns, length, detect, -(-len(length) // 2))


def _detect(columns: Columns, length: np.ndarray, detect: Detect, fewest: int) -> Detection:
    split = _find_split(columns, length) if len(length) > 1 else None
    if split is None:
        return detect(columns, length)
    counts = [int((split.side == side).sum()) for side in (1, 2)]
    counted = f"{counts[0]} of {len(length)} episodes in {split.kinds[0]}, {counts[1]} in {split.kinds[1]}"
    evidence = f"{counted}: too few agree"
    for side, count in enumerate(counts, 1):
        if count < max(fewest, *counts):
            continue
        kept = split.side == side
        rows = np.repeat(kept, length)
        found = _detect(
            {name: values[rows] for name, values in columns.items()}, length[kept], detect, fewest
        )
        if found.convention != "unknown":
            positions = np.flatnonzero(kept).tolist()
            unlike = [(positions[position], text) for position, text in found.unlike]
            unlike += [(position, split.text(position, side)) for position in np.flatnonzero(~kept).tolist()]
            return replace(found, unlike=tuple(sorted(unlike)))
        evidence = f"{counted}; {found.evidence}"
    return Detection("unknown", evidence)


def _find_split(columns: Columns, length: np.ndarray) -> Split | None:
    """The two kinds that the episodes are of; None where all may be of one."""
    found = {name: _classes(values, length) for name, values in columns.items()}
    split = _split_by_size(found) or _split_by_reach(found)
    if split is not None:
        return split
    for name, values in columns.items():
        if not found[name].small.any():
            split = _split_by_levels(name, values, length, found[name])
            if split is not None:
                return split
    return None


class _Classes(NamedTuple):
    """What the ends of the episodes allow: bool [E], and the ends, [E, 6]."""

    small: np.ndarray
    after: np.ndarray
    before: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _classes(values: np.ndarray, length: np.ndarray) -> _Classes:
    start = np.cumsum(length) - length
    low, high = (each.reduceat(values, start).astype(np.float64) for each in (np.fmin, np.fmax))
    found = _classify(low, high)
    code = found.small * 4 + found.after * 2 + found.before
    odd = (code != np.bincount(code).argmax()) | ~(found.after | found.before)
    if not odd.any():
        return found
    for position in np.flatnonzero(odd):
        rows = values[start[position] : start[position] + length[position]]
        low[position], high[position] = ends(rows, _FRAMES_PER_GLITCH)
    return _classify(low, high)


def _classify(low: np.ndarray, high: np.ndarray) -> _Classes:
    """`after` and `before`: in reach with the zero of after and of before the change; radians have one."""
    small = np.maximum(-low, high)[:, :5].max(axis=1) <= RADIANS_LIMIT
    after = np.where(small, in_reach(low, high, "radians"), in_reach(low, high, "degrees"))
    return _Classes(small, after, ~small & in_reach(low, high, "degrees_v1"), low, high)


def _split_by_size(found: Mapping[str, _Classes]) -> Split | None:
    code = np.sum([of.small * (1 + position) for position, of in enumerate(found.values())], axis=0)
    if (code == code[0]).all():
        return None
    first = code == np.bincount(code).argmax()
    kinds = ("small values (radians or scaled)", "larger ones")
    mostly_small = next(iter(found.values())).small[first][0]
    return Split(np.where(first, 1, 2), kinds if mostly_small else kinds[::-1])


def _split_by_reach(found: Mapping[str, _Classes]) -> Split | None:
    after = np.all([of.after for of in found.values()], axis=0)
    before = np.all([of.before for of in found.values()], axis=0)
    if (after & ~before).any() and (before & ~after).any():
        side = np.where(after == before, 0, np.where(after, 1, 2))
        return Split(side, ("degrees of after the change", "degrees of before it"))
    possible = after | before
    if possible.all() or not possible.any():
        return None
    kinds = ("units that keep the joints in reach", "units that put a joint out of reach")
    why = {position: _outside(found, position) for position in np.flatnonzero(~possible).tolist()}
    return Split(np.where(possible, 1, 2), kinds, why)


def _outside(found: Mapping[str, _Classes], position: int) -> str:
    """Which joint is out of reach in an episode, in the units that it would be in."""
    for name, of in found.items():
        convention = "radians" if of.small[position] else "degrees"
        outside = outside_reach(of.low[position], of.high[position], convention)
        if outside:
            return f"as {convention}, in the {name} {outside}"
    return "in degrees of before and of after the change"


def _split_by_levels(name: str, values: np.ndarray, length: np.ndarray, found: _Classes) -> Split | None:
    """Degrees and normalised values, if both kinds of episodes show what they are."""
    side = _vote(values[:, :5], length, found)
    if not (side == 1).any() or not (side == 2).any():
        return None
    units = [
        unit_of(values[np.repeat(of_side, length)], length[of_side])[0] for of_side in (side == 1, side == 2)
    ]
    if units != ["degrees", "normalized"]:
        return None
    return Split(side, (f"degrees ({name})", f"normalized values ({name})"))


def _vote(body: np.ndarray, length: np.ndarray, found: _Classes) -> np.ndarray:
    """1 for each episode that may be degrees, 2 for one that may be normalised, 0 for others, int8 [E]."""
    start = np.cumsum(length) - length
    rests = np.add.reduceat(at_100(body[:, [0, 2, 3, 4]]), start, dtype=int).max(axis=1) >= 2
    beyond = np.maximum(-found.low, found.high)[:, :5].max(axis=1) > NORMALIZED_LIMIT
    on, off = (each.sum(axis=1) for each in _on_steps(body, start, found))
    as_degrees = beyond | ((on >= 2) & (off == 0) & ~rests)
    as_normalized = ~beyond & (rests | ((off >= 2) & (on <= 1)))
    return np.where(as_degrees, 1, np.where(as_normalized, 2, 0)).astype(np.int8)


def _on_steps(body: np.ndarray, start: np.ndarray, found: _Classes) -> tuple[np.ndarray, np.ndarray]:
    """Which joints lie on steps of degrees in each episode, and which do not, bool [E, 5] each."""
    moving = np.diff(body, axis=0, prepend=body[:1]) != 0
    usual = int(np.median(np.diff(start, append=len(body))))
    rows = np.unique(np.concatenate([start, np.arange(0, len(body), max(1, usual // _FRAMES_READ))]))
    first = np.searchsorted(rows, start)
    moving, some = moving[rows], body[rows].astype(np.float64)
    count = np.add.reduceat(moving, first, dtype=int)
    strength = np.zeros(count.shape)
    for step in DEGREE_STEPS:
        turns = (some / step % 1).astype(np.float32) * np.float32(2 * np.pi)
        sums = [np.add.reduceat(np.where(moving, wave(turns), 0), first) for wave in (np.cos, np.sin)]
        strength = np.maximum(strength, np.hypot(*sums) / np.maximum(count, 1))
    seen = (count >= _MOVING_FRAMES) & (found.high[:, :5] - found.low[:, :5] >= _WIDE)
    return seen & (strength > _ON_STEPS), seen & (strength < _OFF_STEPS)
