"""Rules about an episode's clock and length."""

from collections.abc import Iterator

import numpy as np

from depi.datasets.judging.faults import Finding, Recording

SHORTEST = 0.5
"""Seconds: less than a hand needs to do anything."""
MUCH_SHORTER = 0.2
"""Share of the usual length: where all episodes are so short, that is a matter of the recording."""
ENOUGH = 5
"""An episode is compared with the rest of its recording where that has at least so many."""
LENGTH_FACTOR, LENGTH_SPREAD = 2.5, 6.0
"""An episode's length is an outlier when it is beyond the median by this factor, and by so many times the
spread of the others (in logarithms). In 170 real episodes of four people it was within a factor of 2.1."""
WRONG_RATE = 1.5
"""The factor that `timestamps_in_step` of the catalogue allows a dataset as a whole."""
OTHER_RATE = 1.1
"""A clock that differs so much from the others' is another one."""
LATE = 0.5
"""A step is uneven when it differs from the usual one by more than this share."""
MANY_UNEVEN, SOME_UNEVEN = 0.05, 0.01
"""Shares of uneven steps: LeRobot writes frame_index / fps, real clocks miss fewer than one in a hundred."""


def long_enough(recording: Recording) -> Iterator[Finding]:
    """The episode lasts half a second, or as long as the others, and has more than one frame."""
    length = recording.length
    seconds = length * recording.usual_step
    short = (seconds < SHORTEST - recording.usual_step / 2) & (length < MUCH_SHORTER * np.median(length))
    for position in np.flatnonzero(short | (length == 1)):
        yield Finding(int(position), f"the episode has {length[position]} frames, {seconds[position]:.2g} s")


def length_usual(recording: Recording) -> Iterator[Finding]:
    """The episode is neither far shorter nor far longer than the others."""
    if len(recording.length) < ENOUGH:
        return
    size = np.log(recording.length)
    usual = float(np.median(size))
    spread = 1.4826 * float(np.median(np.abs(size - usual)))
    beyond = np.abs(size - usual) > max(np.log(LENGTH_FACTOR), LENGTH_SPREAD * spread)
    for position in np.flatnonzero(beyond):
        frames = int(recording.length[position])
        yield Finding(int(position), f"the episode has {frames} frames, {np.exp(usual):.0f} are usual")


def rate_as_declared(recording: Recording) -> Iterator[Finding]:
    """The usual step between frames is that of the declared rate, within a factor of 1.5."""
    for position, rate in _other_rates(recording, WRONG_RATE, np.inf):
        yield Finding(position, f"the frames come at {rate:.3g} fps, {recording.fps:g} fps are declared")


def rate_near_declared(recording: Recording) -> Iterator[Finding]:
    """The usual step between frames is that of the declared rate, within a tenth."""
    for position, rate in _other_rates(recording, OTHER_RATE, WRONG_RATE):
        yield Finding(position, f"the frames come at {rate:.3g} fps, {recording.fps:g} fps are declared")


def clock_steady(recording: Recording) -> Iterator[Finding]:
    """Few steps between frames differ from the usual one by more than half of it."""
    yield from _uneven(recording, MANY_UNEVEN, 1.0)


def no_frames_dropped(recording: Recording) -> Iterator[Finding]:
    """Hardly any step between frames differs from the usual one by more than half of it."""
    yield from _uneven(recording, SOME_UNEVEN, MANY_UNEVEN)


def _other_rates(recording: Recording, least: float, most: float) -> Iterator[tuple[int, float]]:
    """Episodes whose rate differs from the declared one by a factor within the bounds, with their rate.

    Where it differs in most episodes the declared rate is wrong, which is a fault of the dataset.
    """
    step = recording.usual_step
    factor = np.maximum(step * recording.fps, 1 / (step * recording.fps))
    if float(np.median(factor)) > OTHER_RATE:
        return
    for position in np.flatnonzero((factor > least) & (factor <= most)):
        yield int(position), 1 / float(step[position])


def _uneven(recording: Recording, least: float, most: float) -> Iterator[Finding]:
    """Findings where the share of uneven steps is within the bounds."""
    step = np.diff(recording.time, prepend=recording.time[:1]).astype(np.float64)
    usual = recording.usual_step[recording.movement.episode]
    uneven = (np.abs(step - usual) > LATE * usual) & recording.inside
    count = np.add.reduceat(uneven.astype(np.int64), recording.start)
    share = count / np.maximum(recording.length - 1, 1)
    for position in np.flatnonzero((share > least) & (share <= most) & (count >= 3)):
        rows = recording.frames(position)
        frames = np.flatnonzero(uneven[rows])
        late = float((step[rows][frames] > usual[rows][0]).mean())
        what = "come late: frames are missing" if late > 0.9 else "come too early or too late"
        yield Finding(
            int(position), f"{share[position]:.1%} of the frames {what}", int(frames[0]), int(frames[-1]) + 1
        )
