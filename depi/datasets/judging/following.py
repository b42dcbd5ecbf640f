"""Rules about the state of an episode and the action that should cause it.

In 120 real episodes of three people each episode's lag was within one frame of the usual one (0.1 s) and the
motion of action and state correlated by 0.77 and more; the values of a joint by 0.82 (0.75 at the gripper),
and by 0.97 unless the leader went beyond what the follower can do.
"""

from collections.abc import Iterator

import numpy as np

from depi.datasets.judging.faults import Finding, Recording
from depi.datasets.recording.joints import JOINTS

GRIPPER = 5
ENOUGH = 5
"""An episode is compared with the rest of its recording where that has at least so many."""
FEWEST = 20
"""Frames: in fewer a correlation may be chance."""
UNLIKE, ALIKE = 0.35, 0.6
"""Correlation of the motions of action and state: of an episode in which they have nothing to do with each
other, and at least usual where that can be said."""
SURE = 0.5
"""Correlation from which a lag is worth anything."""
TRAVELLED = 30.0
"""Degrees by which some joint moves before a lag is told: half a move fits many."""
EARLY = 1.5
"""Frames by which a state may come early: some recorders store the state after the command."""
LATE = 0.7
"""Seconds, as `--max_lag` of the catalogue."""
MUCH_LATER, LATER, LATER_FRAMES = 0.25, 0.1, 2.5
"""Seconds, and frames, by which an episode's lag differs from the usual one."""
AGAINST = -0.5
"""Correlation of a joint with its action that only a changed sign explains."""
APART, TOGETHER = 0.6, 0.9
"""Correlation of a joint with its action: of a joint that does something else, and at least usual."""
LOOSE = 0.2
"""The same as APART for the gripper, which stops at what it holds."""
DRIVEN = 10.0
"""Degrees by which a joint moves before its correlation counts; 25 of 100 at the gripper."""
OFFSET, OFFSET_SPREAD, SAME_MOTION = 6.0, 10.0, 0.97
"""Degrees, and times the usual spread, by which the mean difference of action and state is unlike that of the
others; it counts where the motion is the same. Sag and lag change it by up to 4 degrees."""

FEW = 0.34
"""Of a larger minority nobody knows whether it is right."""


def state_moves_along(recording: Recording) -> Iterator[Finding]:
    """State and action show the same motion at some lag, where they do in the other episodes."""
    likeness = recording.movement.following.likeness
    if len(likeness) < ENOUGH or float(np.median(likeness)) < ALIKE:
        return
    moving = (recording.movement.moved > DRIVEN) & (recording.length >= FEWEST)
    for position in np.flatnonzero((likeness < UNLIKE) & moving):
        yield Finding(
            int(position),
            f"the motion of action and state correlates by no more than {likeness[position]:.2f}",
        )


def state_not_early(recording: Recording) -> Iterator[Finding]:
    """The state does not move before the action that should cause it, where it does not usually."""
    usual, lag, sure = _lags(recording)
    early = -EARLY / recording.fps - 1e-6
    if usual < early:
        return
    for position in np.flatnonzero(sure & (lag < early) & (lag < usual - LATER)):
        yield Finding(int(position), f"the state moves {-lag[position]:.2f} s before its action")


def state_not_late(recording: Recording) -> Iterator[Finding]:
    """The state follows the action within 0.7 s, where it usually does."""
    usual, lag, sure = _lags(recording)
    for position in np.flatnonzero(sure & (lag > LATE) & (lag > usual + MUCH_LATER)):
        yield Finding(
            int(position),
            f"the state follows the action after {lag[position]:.2f} s, {usual:.2f} s are usual",
        )


def lag_usual(recording: Recording) -> Iterator[Finding]:
    """The state follows the action about as fast as in the other episodes."""
    usual, lag, sure = _lags(recording)
    other = np.abs(lag - usual) > max(LATER, LATER_FRAMES / recording.fps)
    for position in np.flatnonzero(sure & other & (len(lag) >= ENOUGH)):
        yield Finding(
            int(position),
            f"the state follows the action after {lag[position]:.2f} s, {usual:.2f} s are usual",
        )


def joints_not_reversed(recording: Recording) -> Iterator[Finding]:
    """No joint moves against its action."""
    likeness = recording.movement.joint_following.likeness
    for position, joint in np.argwhere((likeness < AGAINST) & _driven(recording)):
        yield Finding(
            int(position),
            f"{JOINTS[joint]} moves against its action: they correlate by {likeness[position, joint]:.2f}",
        )


def joints_obey(recording: Recording) -> Iterator[Finding]:
    """No joint does something else than its action, where it does not in the other episodes."""
    likeness = recording.movement.joint_following.likeness
    driven = _driven(recording)
    least = np.full(6, APART)
    least[GRIPPER] = LOOSE
    for position, joint in np.argwhere((likeness >= AGAINST) & (likeness < least) & driven):
        others = likeness[driven[:, joint], joint]
        if len(others) >= ENOUGH and float(np.median(others)) > TOGETHER:
            yield Finding(
                int(position),
                f"{JOINTS[joint]} does not follow its action: they correlate by "
                f"{likeness[position, joint]:.2f}, {np.median(others):.2f} are usual",
            )


def offset_usual(recording: Recording) -> Iterator[Finding]:
    """The difference between action and state of a joint is about that of the other episodes."""
    yield from _other_offsets(recording, few=True)


def offset_even(recording: Recording) -> Iterator[Finding]:
    """The difference between action and state of a joint is not one in many episodes, another in the rest."""
    yield from _other_offsets(recording, few=False)


def _other_offsets(recording: Recording, few: bool) -> Iterator[Finding]:
    """Joints with another offset than most episodes have, where that is in few of them, or in many."""
    following = recording.movement.joint_following
    if len(following.offset) < ENOUGH:
        return
    usual = np.median(following.offset, axis=0)
    away = np.abs(following.offset - usual)
    least = np.maximum(OFFSET, OFFSET_SPREAD * np.median(away, axis=0))
    same = (following.likeness > SAME_MOTION) & _driven(recording)
    same[:, GRIPPER] = False
    other = (away > least) & same
    for position, joint in np.argwhere(other & ((other.mean(axis=0) <= FEW) == few)):
        yield Finding(
            int(position),
            f"the action of {JOINTS[joint]} is {following.offset[position, joint]:.0f} degrees "
            f"from its state, {usual[joint]:.0f} are usual",
        )


def _lags(recording: Recording) -> tuple[float, np.ndarray, np.ndarray]:
    """The usual lag in seconds, each episode's, and whether it can be relied on; [E] both."""
    following = recording.movement.following
    sure = (following.likeness > SURE) & (recording.movement.moved > TRAVELLED)
    sure &= recording.length >= FEWEST
    return float(np.median(following.lag[sure])) if sure.any() else 0.0, following.lag, sure


def _driven(recording: Recording) -> np.ndarray:
    """Joints that move in both action and state for long enough, bool [E, 6]."""
    reach = np.minimum(recording.movement.commanded.reach, recording.movement.measured.reach)
    return (reach > np.array([DRIVEN] * 5 + [25.0])) & (recording.length >= FEWEST)[:, None]
