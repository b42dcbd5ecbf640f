"""Rules about joints that do not move where they should: frozen, dead, or held at the end of their range."""

from collections.abc import Iterator

import numpy as np

from depi.datasets.judging.faults import Finding, Recording
from depi.datasets.judging.movement import Movement, runs
from depi.datasets.recording.joints import HALF_RANGE, JOINTS

GRIPPER = 5
RANGE_MIDDLE, RANGE_HALF = np.array([0.0] * 5 + [50.0]), np.array([*HALF_RANGE, 50.0])
ENOUGH = 5
"""An episode is compared with the rest of its recording where that has at least so many."""
LAG = 0.35
"""Seconds by which a follower may come later: real ones need 0.05 to 0.25 s."""
FROZEN_SECONDS = 0.4
"""Seconds beyond the lag for which a reading has to repeat itself exactly."""
FROZEN_MOTION = 10.0
"""Degrees that the action moves meanwhile. In 120 real episodes, while all six readings stood still: 4."""
STUCK_MOTION = 25.0
"""The same for a single joint, which may push against something: 3 degrees in those episodes, 10 at
wrist_roll; 20 at a wrist_flex that could not go on, which is why the end of its range is no fault."""
CAUGHT_UP = 8.0
"""Degrees of a jump with which a reading comes back; a joint that comes loose jumps by 3."""
RANGE_END = 2.0
"""Degrees: so near to the farthest that a joint ever gets it is at the end of its range."""
DEAD = 0.2
"""Degrees: two encoder steps. In real episodes the joint that moves least moves by 1.2."""
ALIVE = 1.5
"""Degrees: a joint that moves by more in every other episode is in use, or at least trembles; a gripper that
the task does not need may be left alone in one and trembled at in the others, so USED is asked of it."""
DRIVEN = 10.0
"""Degrees of motion in one of action and state that the other has to show."""
GRIPPED = 25.0
"""Of 100: farther than this a gripper is not commanded beyond what it holds. In real episodes: 12."""
FEW = 0.25
"""At most this share of the episodes is told from the others."""
DRIFT = 0.03
"""Degrees from frame to frame that are no motion: half an encoder step."""
ALONE = 0.5
"""Where one joint moves alone in more than this share of the moving frames, it is jogged with keys, and the
others stand still as they should."""
INERT, USED = 3.0, 15.0
"""Of 100: the gripper stays shut, or only trembles; the gripper opens and closes."""
AT_END, SHARE_AT_END, USUAL_AT_END = 0.85, 0.35, 0.2
"""A joint is saturated where its action stands still and its state is at the largest value of the recording,
beyond AT_END of its half range, for SHARE_AT_END of the frames in which the arm moves, and for less than
USUAL_AT_END in other episodes of the task. In real episodes the state was there in up to 52% of them, where
the leader went farther than the follower can; a folded arm lies at the end of two joints, but is at rest."""
SLOWEST = 0.3
"""Degrees from frame to frame of a joint that moves."""


def state_not_frozen(recording: Recording) -> Iterator[Finding]:
    """The state never repeats itself exactly while the action moves on."""
    movement = recording.movement
    same = (movement.measured.step == 0).all(axis=1) & recording.inside
    begin, end = _long_runs(movement, same)
    travel = _travel(movement, movement.commanded.values[:, :GRIPPER], begin, end).max(axis=1, initial=0.0)
    frozen = travel > FROZEN_MOTION
    yield from _longest(
        movement,
        begin[frozen],
        end[frozen],
        "the state repeats itself for {:.1f} s while the action moves on",
    )


def joints_not_frozen(recording: Recording) -> Iterator[Finding]:
    """No joint's state repeats itself exactly while its action moves on, but at the end of its range."""
    movement = recording.movement
    action, state = movement.commanded.values, movement.measured.values
    whole = (movement.measured.step == 0).all(axis=1)
    for joint, name in enumerate(JOINTS):
        same = (movement.measured.step[:, joint] == 0) & recording.inside
        begin, end = _long_runs(movement, same)
        begin, end = (side[~whole[begin]] for side in (begin, end))
        if not len(begin):
            continue
        held = state[begin, joint]
        low, high = _bounds(movement, action[:, joint], begin, end)
        after = np.where(end < len(state), end, end - 1)
        jump = np.abs(state[after, joint] - held) * recording.inside[after]
        free = (held < state[:, joint].max() - RANGE_END) & (held > state[:, joint].min() + RANGE_END)
        if joint == GRIPPER:
            stuck = high - held > GRIPPED
        else:
            travel = high - low
            stuck = (travel > STUCK_MOTION) | ((travel > FROZEN_MOTION) & (jump > CAUGHT_UP))
        stuck &= free
        text = f"the state of {name} repeats itself for {{:.1f}} s while its action moves on"
        yield from _longest(movement, begin[stuck], end[stuck], text)


def joints_follow(recording: Recording) -> Iterator[Finding]:
    """A joint that moves in action or state moves in both."""
    movement = recording.movement
    for still, moving, text in (
        (movement.measured, movement.commanded, "{} does not move, its action moves by {:.0f}"),
        (movement.commanded, movement.measured, "{} moves by {:.0f} without a command"),
    ):
        driven = moving.reach > DRIVEN
        driven[:, GRIPPER] = (moving.high - still.high)[:, GRIPPER] > GRIPPED
        for position, joint in np.argwhere((still.reach < DEAD) & driven & _several_move(movement)):
            yield Finding(int(position), text.format(JOINTS[joint], moving.reach[position, joint]))


def joints_alive(recording: Recording) -> Iterator[Finding]:
    """No joint stands perfectly still in an episode that moves in all others of the same task."""
    movement = recording.movement
    dead = _dead(movement) & _several_move(movement)
    if not dead.any() or _jogged(movement):
        return
    reach = np.minimum(movement.commanded.reach, movement.measured.reach)
    for same in _by_task(recording):
        for joint in np.flatnonzero(dead[same].any(axis=0)):
            still = dead[same, joint]
            others = reach[same[~still], joint]
            if _few(same, others) and others.min() > (USED if joint == GRIPPER else ALIVE):
                text = f"{JOINTS[joint]} stands perfectly still, in the other episodes it moves"
                yield from (Finding(position, text) for position in same[still].tolist())


def joints_used(recording: Recording) -> Iterator[Finding]:
    """No joint but the gripper stands perfectly still in every episode."""
    movement = recording.movement
    dead = _dead(movement)
    never = np.flatnonzero(dead[:, :GRIPPER].all(axis=0))
    if not 1 <= len(never) <= 2 or _jogged(movement):
        return
    names = " and ".join(JOINTS[joint] for joint in never)
    for position in np.flatnonzero(_several_move(movement)[:, 0]):
        yield Finding(int(position), f"{names} never moves in this recording")


def gripper_moves(recording: Recording) -> Iterator[Finding]:
    """The gripper opens or closes where it does so in all other episodes of the same task."""
    movement = recording.movement
    reach = np.maximum(movement.commanded.reach, movement.measured.reach)[:, GRIPPER]
    inert = (reach < INERT) & (movement.moved >= DRIVEN)
    if not inert.any() or _jogged(movement):
        return
    for same in _by_task(recording):
        others = reach[same[~inert[same]]]
        if _few(same, others) and others.min() > USED:
            usual = np.median(others)
            for position in same[inert[same]].tolist():
                text = f"the gripper moves by {reach[position]:.2g} of 100, in the others by {usual:.0f}"
                yield Finding(position, text)


def joints_within_range(recording: Recording) -> Iterator[Finding]:
    """No joint stays at the end of its range while the arm moves, but where that is usual in the task."""
    movement = recording.movement
    values = movement.measured.values
    if _jogged(movement):
        return
    moving = (movement.measured.size > SLOWEST).any(axis=1)
    frames = np.maximum(np.add.reduceat(moving.astype(np.int64), movement.start), 1)
    for end in (movement.measured.low.min(axis=0), movement.measured.high.max(axis=0)):
        beyond = np.abs(end - RANGE_MIDDLE) > AT_END * RANGE_HALF
        beyond[GRIPPER] &= end[GRIPPER] > RANGE_MIDDLE[GRIPPER]
        for joint in np.flatnonzero(beyond):
            held = moving & (np.abs(values[:, joint] - end[joint]) < DEAD)
            held &= movement.commanded.size[:, joint] < DEAD
            share = np.add.reduceat(held.astype(np.int64), movement.start) / frames
            for same in _by_task(recording):
                others = share[same[share[same] <= SHARE_AT_END]]
                if not _few(same, others) or others.max() >= USUAL_AT_END:
                    continue
                for position in same[(share[same] > SHARE_AT_END) & (frames[same] > movement.fps)].tolist():
                    text = (
                        f"{JOINTS[joint]} is held at {end[joint]:.0f} in {share[position]:.0%} of the motion"
                    )
                    yield Finding(position, text)


def _dead(movement: Movement) -> np.ndarray:
    """Joints that are constant in action and state, bool [E, 6]."""
    return (movement.commanded.reach < DEAD) & (movement.measured.reach < DEAD)


def _by_task(recording: Recording) -> list[np.ndarray]:
    """For each task with enough episodes, the positions of those; episodes are compared with these alone."""
    positions: dict[tuple[str, ...], list[int]] = {}
    for position, task in enumerate(recording.meta.episodes.tasks):
        positions.setdefault(task, []).append(position)
    return [np.array(same) for same in positions.values() if len(same) >= ENOUGH]


def _few(same: np.ndarray, others: np.ndarray) -> bool:
    """Whether nearly all of the episodes of a task are among the others, which are not told."""
    return len(others) >= (1 - FEW) * len(same)


def _several_move(movement: Movement) -> np.ndarray:
    """Episodes in which the arm moves at all, bool [E, 1]: of the rest another rule speaks."""
    return (np.maximum(movement.commanded.reach, movement.measured.reach).max(axis=1) > DRIVEN)[:, None]


def _jogged(movement: Movement) -> bool:
    """Whether one joint is moved after the other, as keys do, and never two at once."""
    joints = (movement.commanded.size > DRIFT).sum(axis=1)
    return float((joints == 1).sum()) > ALONE * float((joints > 0).sum())


def _long_runs(movement: Movement, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First frames and ends of the runs, bool [F], that last longer than a lag explains; [R] each."""
    begin, end = runs(same)
    long = end - begin >= max(2, round((FROZEN_SECONDS + LAG) * movement.fps))
    return begin[long], end[long]


def _bounds(
    movement: Movement, action: np.ndarray, begin: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest action of each run that the state had time to follow; [R, ...] each."""
    last = end - round(LAG * movement.fps)
    pairs = np.stack([begin - 1, last], axis=1).reshape(-1)
    return np.minimum.reduceat(action, pairs)[::2], np.maximum.reduceat(action, pairs)[::2]


def _travel(movement: Movement, action: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How far each joint's action moves in each run; [R, ...]."""
    if not len(begin):
        return np.zeros((0, *action.shape[1:]))
    low, high = _bounds(movement, action, begin, end)
    return high - low


def _longest(movement: Movement, begin: np.ndarray, end: np.ndarray, text: str) -> Iterator[Finding]:
    """One finding for each episode with runs: the longest of them; `{}` in the text is its seconds."""
    for position, own in movement.by_episode(begin):
        run = own.start + int(np.argmax(end[own] - begin[own]))
        first = int(movement.start[position])
        seconds = (end[run] - begin[run]) / movement.fps
        yield Finding(position, text.format(seconds), int(begin[run]) - first, int(end[run]) - first)
