"""Faults planted into one episode of a clean recording, for the tests of the rules that tell them."""

from collections.abc import Callable

import numpy as np
from teleoperation import recording_of

from depi.datasets.judging.faults import Recording, find_faults
from depi.datasets.judging.rules import MOTION

Episode = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Action [n, 6], state [n, 6] and time [n]."""


def episodes_of(recording: Recording) -> list[Episode]:
    """The episodes of a recording, copied."""
    sides = (recording.action, recording.state, recording.time)
    rows = [recording.frames(position) for position in range(len(recording.length))]
    return [tuple(side[frames].copy() for side in sides) for frames in rows]  # type: ignore[misc]


def of_episodes(episodes: list[Episode], like: Recording) -> Recording:
    """A recording of such episodes, with the rate and the tasks of another."""
    action, state, time = (list(side) for side in zip(*episodes, strict=True))
    return recording_of(action, state, like.fps, time, [texts[0] for texts in like.meta.episodes.tasks])


def plant(
    recording: Recording, position: int, change: Callable[..., Episode], **strength: object
) -> Recording:
    """The recording with one episode changed."""
    episodes = episodes_of(recording)
    episodes[position] = change(*episodes[position], **strength)
    return of_episodes(episodes, recording)


def shorten(action: np.ndarray, state: np.ndarray, time: np.ndarray, *, frames: int) -> Episode:
    """Only the first frames."""
    return action[:frames], state[:frames], time[:frames]


def hold(
    action: np.ndarray, state: np.ndarray, time: np.ndarray, *, at: float, frames: int, both: bool = True
) -> Episode:
    """Stand still for so many more frames at a share of the episode; flickering by an encoder count."""
    place = min(int(at * len(action)), len(action) - 1)
    rng = np.random.default_rng(frames)
    flicker = rng.choice([0, 360 / 4096], (2, frames, 6), p=[0.9, 0.1])
    sides = [
        np.insert(side, [place] * frames, side[place] + shaken, axis=0).astype(np.float32)
        for side, shaken in zip((action, state), flicker, strict=True)
    ]
    return sides[0], sides[1], np.arange(len(sides[0])) * np.median(np.diff(time))


def stand(action: np.ndarray, state: np.ndarray, time: np.ndarray, *, tremble: float = 0.05) -> Episode:
    """No motion in the whole episode but trembling."""
    rng = np.random.default_rng(len(action))
    sides = [side[:1] + rng.normal(0, tremble, side.shape) for side in (action, state)]
    return sides[0].astype(np.float32), sides[1].astype(np.float32), time


def clock(action: np.ndarray, state: np.ndarray, time: np.ndarray, *, factor: float) -> Episode:
    """Another rate."""
    return action, state, time * factor


def drop(action: np.ndarray, state: np.ndarray, time: np.ndarray, *, share: float) -> Episode:
    """Frames missing here and there; the timestamps tell."""
    kept = np.random.default_rng(len(action)).random(len(action)) >= share
    kept[[0, -1]] = True
    return action[kept], state[kept], time[kept]


def jolt_clock(action: np.ndarray, state: np.ndarray, time: np.ndarray, *, share: float) -> Episode:
    """Timestamps too early and too late in a share of the frames."""
    rng = np.random.default_rng(len(action))
    step = float(np.median(np.diff(time)))
    jolted = time + (rng.random(len(time)) < share) * rng.choice([-0.7, 0.7], len(time)) * step
    return action, state, np.sort(jolted - jolted[0])


def freeze(
    action: np.ndarray,
    state: np.ndarray,
    time: np.ndarray,
    *,
    begin: float,
    end: float,
    joints: slice | int = slice(None),
) -> Episode:
    """The state of all joints, or of one, repeats itself from one share of the episode to another."""
    rows = slice(int(begin * len(state)), int(end * len(state)))
    state[rows, joints] = state[rows, joints][:1]
    return action, state, time


def still_joint(
    action: np.ndarray,
    state: np.ndarray,
    time: np.ndarray,
    *,
    joint: int,
    sides: str = "both",
    tremble: float = 0,
) -> Episode:
    """A joint that stands still, in action, state or both, at the middle of where it was."""
    rng = np.random.default_rng(joint)
    for name, side in (("action", action), ("state", state)):
        if sides in ("both", name):
            side[:, joint] = np.median(side[:, joint]) + tremble * rng.random(len(side))
    return action, state, time


def saturate(
    action: np.ndarray, state: np.ndarray, time: np.ndarray, *, joint: int, share: float, end: float
) -> Episode:
    """A joint's upper values, those of a share of the frames, are all at the end of its range."""
    for side in (action, state):
        side[side[:, joint] >= np.quantile(side[:, joint], 1 - share), joint] = end
    return action, state, time


def spike(
    action: np.ndarray,
    state: np.ndarray,
    time: np.ndarray,
    *,
    degrees: float,
    count: int = 1,
    both: bool = False,
) -> Episode:
    """Single readings that are off, of one joint each, in the state, or in the action too."""
    for place in np.linspace(0.2, 0.8, count):
        frame, joint = int(place * len(state)), int(place * 50) % 5
        for side in (state, action) if both else (state,):
            side[frame, joint] += degrees
    return action, state, time


def teleport(action: np.ndarray, state: np.ndarray, time: np.ndarray, *, degrees: float) -> Episode:
    """From the middle on three joints are elsewhere, in action and state."""
    for side in (action, state):
        side[len(side) // 2 :, [0, 2, 3]] += np.array([degrees, -degrees, degrees], np.float32)
    return action, state, time


def shake(
    action: np.ndarray, state: np.ndarray, time: np.ndarray, *, degrees: float, sides: str = "both"
) -> Episode:
    """White noise on all joints of action, state or both."""
    rng = np.random.default_rng(len(state))
    noisy = [
        (side + rng.normal(0, degrees, side.shape)).astype(np.float32) if sides in ("both", name) else side
        for name, side in (("action", action), ("state", state))
    ]
    return noisy[0], noisy[1], time


def stagger(action: np.ndarray, state: np.ndarray, time: np.ndarray, *, frames: int) -> Episode:
    """Each reading repeated for so many frames, then the next: the arm moves in jerks."""
    shown = np.arange(len(state)) // frames * frames
    return action[shown], state[shown], time


def drop_untold(action: np.ndarray, state: np.ndarray, time: np.ndarray, *, share: float) -> Episode:
    """Frames missing here and there, and timestamps as if they were not."""
    kept = np.random.default_rng(len(action)).random(len(action)) >= share
    return action[kept], state[kept], time[: kept.sum()]


def late(action: np.ndarray, state: np.ndarray, time: np.ndarray, *, frames: int) -> Episode:
    """The state comes so many frames later, or earlier if negative."""
    count = len(state) - abs(frames)
    first, second = max(0, frames), max(0, -frames)
    return action[first : first + count], state[second : second + count], time[:count]


def mismatch(
    action: np.ndarray, state: np.ndarray, time: np.ndarray, *, joints: slice | int = slice(None)
) -> Episode:
    """The state of all joints, or of one, is that of quite another time."""
    state[:, joints] = np.roll(state[:, joints], len(state) // 3, axis=0)
    return action, state, time


def turn(
    action: np.ndarray,
    state: np.ndarray,
    time: np.ndarray,
    *,
    joint: int,
    sign: float = 1.0,
    zero: float = 0.0,
    sides: str = "both",
) -> Episode:
    """One joint with another sign or zero, in action, state or both."""
    for name, side in (("action", action), ("state", state)):
        if sides in ("both", name):
            side[:, joint] = sign * side[:, joint] + zero
    return action, state, time


def copied(
    action: np.ndarray, state: np.ndarray, time: np.ndarray, *, of: Episode, cut: int = 0, noise: float = 0.0
) -> Episode:
    """Another episode instead, without its first and last frames, with noise."""
    rng = np.random.default_rng(cut)
    sides = [side[cut : len(side) - cut] for side in of]
    noisy = [(side + rng.normal(0, noise, side.shape)).astype(np.float32) for side in sides[:2]]
    return noisy[0], noisy[1], sides[2] - sides[2][0]


def found(recording: Recording) -> dict[str, set[int]]:
    """Rule -> the episodes in which the rules about motion find its fault."""
    rules: dict[str, set[int]] = {}
    for fault in find_faults(recording, MOTION):
        rules.setdefault(fault.rule, set()).add(fault.episode)
    return rules
