"""Rules about numbers and times that no robot recorded; they are asked before the joints are known."""

from collections.abc import Iterator

import numpy as np

from depi.datasets.judging.faults import Finding, Recording
from depi.datasets.recording.formats import MIN_FPS

MAX_VALUE = 1e6
"""No joint, in no unit, is beyond this."""
MIN_STEP = 1e-6
"""Two frames that are no more seconds apart are at the same time."""
MAX_STEP = 5.0
"""Two frames of an episode may be this many frame periods apart; farther is a jump."""


def numbers_finite(recording: Recording) -> Iterator[Finding]:
    """No NaN and no infinity in action and state."""
    for name, values in (("action", recording.action), ("state", recording.state)):
        yield from _found(recording, ~np.isfinite(values).all(axis=1), f"the {name} is not a finite number")


def numbers_bounded(recording: Recording) -> Iterator[Finding]:
    """No action and no state beyond a million, in whatever unit."""
    for name, values in (("action", recording.action), ("state", recording.state)):
        yield from _found(recording, (np.abs(values) > MAX_VALUE).any(axis=1), f"the {name} is beyond 1e6")


def time_increases(recording: Recording) -> Iterator[Finding]:
    """Time is a finite number, not negative, and moves forward from frame to frame (by 1 us or more)."""
    time = recording.time
    yield from _found(recording, ~np.isfinite(time), "the timestamp is not a finite number")
    backwards = np.diff(time, prepend=-np.inf) <= MIN_STEP
    backwards[recording.start] = time[recording.start] < 0
    yield from _found(recording, backwards, "time stands still or runs back")


def time_without_gaps(recording: Recording) -> Iterator[Finding]:
    """No frame comes more than five frame periods, or 100 seconds, after the one before.

    The period is the declared one or the episode's own median, whichever is longer: the declared rate of
    many recordings is wrong.
    """
    time = recording.time
    step = np.diff(time, prepend=time[:1])
    step[recording.start] = 0
    jumps = step > min(MAX_STEP / recording.fps, 1 / MIN_FPS)
    for position in np.flatnonzero(np.logical_or.reduceat(jumps, recording.start)):
        rows = recording.frames(position)
        longest = min(MAX_STEP * np.median(step[rows][1:]), 1 / MIN_FPS)
        jumps[rows] &= step[rows] > longest
    yield from _found(recording, jumps, "frames are missing: up to {worst:.3g} s without one", step)


def _found(
    recording: Recording, bad: np.ndarray, text: str, size: np.ndarray | None = None
) -> Iterator[Finding]:
    """A finding for each episode with bad frames (bool [F]); `{worst}` in the text is the largest `size`."""
    if not bad.any():
        return
    for position in np.flatnonzero(np.logical_or.reduceat(bad, recording.start)):
        rows = recording.frames(position)
        frames = np.flatnonzero(bad[rows])
        worst = 0.0 if size is None else float(size[rows][frames].max())
        where = f" in {len(frames)} of {recording.length[position]} frames"
        yield Finding(int(position), text.format(worst=worst) + where, int(frames[0]), int(frames[-1]) + 1)
