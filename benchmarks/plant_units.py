"""Defects of calibration and units, and of the relation between command and state."""

import numpy as np
from planting import BODY, Copy, kind

from depi.datasets.recording.joints import HALF_RANGE


@kind(
    "action state",
    (-3, "three episodes, a joint that works around zero"),
    (3, "three episodes, a joint that rests away from zero"),
    (5, "five episodes, a joint that rests away from zero"),
)
def sign_flipped(copy: Copy, count: float) -> list[int]:
    """A motor was mounted or calibrated the other way round."""
    numbers = copy.draw(int(abs(count)))
    rest = np.abs(np.mean([episode.state[0, :BODY] for episode in copy.set.episodes], axis=0))
    moves = np.mean([np.ptp(episode.state[:, :BODY], axis=0) for episode in copy.set.episodes], axis=0)
    fit = (rest < 20) & (moves > 4) if count < 0 else rest > 20
    joint = int(copy.rng.choice(np.flatnonzero(fit)))
    for number in numbers:
        for values in (copy.set.episodes[number].action, copy.set.episodes[number].state):
            values[:, joint] *= -1
    return numbers


@kind(
    "action state",
    (5, "one joint of four episodes by 5 units"),
    (15, "one joint of four episodes by 15 units"),
    (40, "one joint of four episodes by 40 units"),
)
def zero_shifted(copy: Copy, offset: float) -> list[int]:
    """The arm was calibrated anew between two sessions."""
    numbers = copy.draw(4)
    joint, shift = copy.joint(numbers), offset * int(copy.rng.choice([-1, 1]))
    for number in numbers:
        for values in (copy.set.episodes[number].action, copy.set.episodes[number].state):
            values[:, joint] += shift
        copy.bound(number)
    return numbers


@kind(
    "action state",
    (-3, "three episodes in degrees among normalised ones, or the reverse"),
    (1, "one episode in radians"),
    (4, "four episodes in radians"),
)
def units_differ(copy: Copy, count: float) -> list[int]:
    """Sessions were recorded with other settings."""
    numbers = copy.draw(int(abs(count)))
    normalized = copy.set.unit == "normalized"
    half = np.array([*HALF_RANGE, 100]) / 100
    if count > 0:
        factor = np.pi / 180 * (half if normalized else np.ones(6))
    else:
        factor = half if normalized else 1 / half
    for number in numbers:
        episode = copy.set.episodes[number]
        episode.action = (episode.action * factor).astype(np.float32)
        episode.state = (episode.state * factor).astype(np.float32)
    return numbers


def _shift_state(copy: Copy, frames: int) -> list[int]:
    numbers = copy.draw(4)
    for number in numbers:
        state = copy.set.episodes[number].state
        state[:] = state[np.clip(np.arange(len(state)) - frames, 0, len(state) - 1)]
    return numbers


@kind(
    "state",
    (0.2, "four episodes by 0.2 s"),
    (0.4, "four episodes by 0.4 s"),
    (1, "four episodes by 1 s"),
)
def state_late(copy: Copy, seconds: float) -> list[int]:
    """Readings come through a queue, later than the commands that they belong to."""
    return _shift_state(copy, round(seconds * copy.set.fps))


@kind(
    "state",
    (0.2, "four episodes by 0.2 s"),
    (0.4, "four episodes by 0.4 s"),
    (1, "four episodes by 1 s"),
)
def state_early(copy: Copy, seconds: float) -> list[int]:
    """Streams were joined wrongly: the state is there before its command."""
    return _shift_state(copy, -round(seconds * copy.set.fps))


@kind(
    "action",
    (0.5, "the second half of one episode"),
    (1, "one episode"),
    (3, "three episodes"),
)
def command_unrelated(copy: Copy, amount: float) -> list[int]:
    """The commands belong to another episode, at another place."""
    numbers = copy.draw(max(1, int(amount)))
    others = [episode.action.copy() for episode in copy.set.episodes]
    for number in numbers:
        action = copy.set.episodes[number].action
        other = others[(number + int(copy.rng.integers(1, len(others)))) % len(others)]
        rolled = np.roll(other, round(len(other) * copy.rng.uniform(0.35, 0.65)), axis=0)
        begin = round((1 - min(amount, 1)) * len(action))
        action[begin:] = np.resize(rolled, action.shape)[begin:]
    return numbers


@kind(
    "state",
    (1, "one episode"),
    (4, "four episodes"),
    (12, "all episodes"),
)
def gripper_inert(copy: Copy, count: float) -> list[int]:
    """The gripper's motor is off: commands open and close it, it stays where it is."""
    numbers = copy.draw(int(count))
    for number in numbers:
        state = copy.set.episodes[number].state
        state[:, 5] = np.abs(state[0, 5] + copy.jitter((len(state),)))
    return numbers if count < len(copy.set.episodes) else []
