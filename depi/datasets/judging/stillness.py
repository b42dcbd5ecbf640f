"""Rules about arms that stand still.

What is usual comes from 120 episodes of three people's arms. They stood still in at most 54% of an episode,
at its start for up to 2.6 s of 10 s and at its end for up to 8.4 s of 40 s; in four of the episodes they
stood still for 30 to 52% at one end. The joint that moved most moved by 40 degrees and more in each.
"""

from collections.abc import Iterator

import numpy as np

from depi.datasets.judging.faults import Finding, Recording
from depi.datasets.judging.movement import Movement

LEAST_MOTION = 2.0
"""Degrees (of 100 at the gripper) by which some joint moves in an episode that shows anything."""
TREMBLING, TREMBLING_SHARE = 8.0, 0.15
"""An arm that moves by less than this many degrees, and by less than this share of what is usual in its
recording, only trembles."""
ENOUGH = 5
"""An episode is compared with the rest of its recording where that has at least so many."""
AT_REST = 2.0
"""Degrees: an arm so near to where it began, or ends, has not moved; a resting hand trembles by one."""
IDLE_SECONDS, IDLE_SHARE = 3.2, 0.25
"""An end of an episode is idle for longer than usual when it is longer than both."""
MUCH_IDLE = 0.65
"""Share of idle frames that is unusual in any recording."""
MORE_IDLE, TIMES_IDLE = 0.5, 2.2
"""Share of idle frames that is unusual where the others of the recording have TIMES_IDLE times less."""
LONG_IDLE = 5.0
"""Seconds that the arm has to stand still before its share counts: a person may rest so long in any task."""
ALL_IDLE = 0.9
"""Share of idle frames beyond which an episode teaches to stand still."""


def arm_moves(recording: Recording) -> Iterator[Finding]:
    """Some joint moves in the episode, both in action and state."""
    for name, track in (("action", recording.movement.commanded), ("state", recording.movement.measured)):
        most = track.reach.max(axis=1)
        least = LEAST_MOTION
        if len(most) >= ENOUGH:
            least = max(least, min(TREMBLING, TREMBLING_SHARE * float(np.median(most))))
        for position in np.flatnonzero(most < least):
            yield Finding(
                int(position), f"no joint of the {name} moves by more than {most[position]:.2g} degrees"
            )


def mostly_moving(recording: Recording) -> Iterator[Finding]:
    """The arm moves in more than a tenth of the frames."""
    share = recording.movement.idle_share
    yield from _idle(recording, share > ALL_IDLE)


def idle_share_usual(recording: Recording) -> Iterator[Finding]:
    """The arm stands still in less than two thirds of the frames, and not far more than in other episodes."""
    share, most = recording.movement.idle_share, MUCH_IDLE
    if len(share) >= ENOUGH:
        most = min(most, max(MORE_IDLE, TIMES_IDLE * float(np.median(share))))
    long = share * recording.length > LONG_IDLE * recording.fps
    yield from _idle(recording, (share > most) & (share <= ALL_IDLE) & long)


def head_not_idle(recording: Recording) -> Iterator[Finding]:
    """The arm sets off within three seconds, or within the first quarter of the episode."""
    movement = recording.movement
    away = movement.away_from(movement.start[movement.episode], AT_REST)
    first = np.where(away, movement.place, movement.length[movement.episode])
    frames = np.minimum.reduceat(first, movement.start)
    for position in _long(movement, frames):
        end = int(frames[position])
        yield Finding(position, f"the arm stands still for the first {end / movement.fps:.1f} s", 0, end)


def tail_not_idle(recording: Recording) -> Iterator[Finding]:
    """The episode ends within three seconds after the last motion, or that is less than a quarter of it."""
    movement = recording.movement
    away = movement.away_from((movement.start + movement.length - 1)[movement.episode], AT_REST)
    moving = np.maximum.reduceat(np.where(away, movement.place + 1, 0), movement.start)
    for position in _long(movement, movement.length - moving):
        begin, end = int(moving[position]), int(movement.length[position])
        seconds = (end - begin) / movement.fps
        yield Finding(position, f"the arm stands still for the last {seconds:.1f} s", begin, end)


def _idle(recording: Recording, idle: np.ndarray) -> Iterator[Finding]:
    share = recording.movement.idle_share
    for position in np.flatnonzero(idle & (recording.movement.moved >= LEAST_MOTION)):
        yield Finding(int(position), f"the arm stands still in {share[position]:.0%} of the frames")


def _long(movement: Movement, frames: np.ndarray) -> list[int]:
    """The positions of episodes that move, and whose idle end of so many frames, [E], is a long one."""
    long = (frames > IDLE_SECONDS * movement.fps) & (frames > IDLE_SHARE * movement.length)
    return np.flatnonzero(long & (movement.moved >= LEAST_MOTION)).tolist()
