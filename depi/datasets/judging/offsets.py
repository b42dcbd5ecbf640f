"""A constant difference between the commanded and the measured position of each joint.

Where leader and follower are calibrated unlike, every command is off by the same amount, and a policy that
learns such commands repeats it. Measured is command minus position, in frames in which the joint is slow,
with the lag of the arm taken out: the median of each episode, and over the episodes the median of these.

What a servo does by itself is no offset. Under gravity lift, elbow and wrist stay below their command, by
SAG at most; only what is beyond counts. A gripper that holds an object stays open beyond its command, which
is the grip's force: so the gripper is measured only after it opened and before it closes again, when it
touches nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from depi.datasets.recording.joints import HALF_RANGE, JOINTS, Detection, from_degrees, to_degrees

MATTERS = (3.0, 3.0, 3.0, 3.0, 3.0, 5.0)
"""Offsets beyond this are remarked on, in degrees; the gripper's in 0 to 100."""

SAG = ((0.0, 0.0), (-3.0, 0.0), (-4.0, 0.0), (-1.5, 0.0), (0.0, 0.0), (0.0, 0.0))
"""Between these differences, in degrees, a joint may be for its load alone. Measured on four real arms: the
medians of lift are -1.8 to -0.2, of elbow -3.3 to 0.4, of wrist_flex -0.2 to 0.4."""

FEWEST_EPISODES = 3

_MAX_FRAMES = 20_000
_LAG_FRAMES = 2_000
_LONGEST_LAG = 0.4  # seconds
_SLOW = 10.0  # degrees, or hundredths of the gripper's opening, per second
_FEWEST_FRAMES = 10
# This near the end of its range a joint may be stopped, or its command cut off.
_NEAR_END = 8.0
# Two thirds of the offset in this share of the episodes: what differs from episode to episode is no constant.
_SAME, _MOST = 2 / 3, 0.75
# The spread of medians gives the error of their median; less than this is not believed.
_LEAST_ERROR = 0.1
_SIGNIFICANT = 4.0


@dataclass(frozen=True)
class Offsets:
    """Command minus measured position beyond lag and sag, per joint in the order of JOINTS.

    value: degrees, the gripper in 0 to 100; 0 where nothing could be measured
    error: standard error of it
    matters: whether it is large, significant, and the same in most episodes
    """

    value: tuple[float, ...] = (0.0,) * 6
    error: tuple[float, ...] = (0.0,) * 6
    matters: tuple[bool, ...] = (False,) * 6

    @property
    def constant(self) -> Mapping[str, float]:
        """The offsets that matter, by joint."""
        return {
            joint: value
            for joint, value, matters in zip(JOINTS, self.value, self.matters, strict=True)
            if matters
        }


def measure_offsets(action: np.ndarray, state: np.ndarray, length: np.ndarray, fps: float) -> Offsets:
    """Measure the offsets of a recording.

    Args:
        action, state: float [F, 6] in canonical degrees, finite, episodes one after another.
        length: int64 [E], frames of each episode.
        fps: frames per second.
    """
    length = length[np.cumsum(length) <= max(_MAX_FRAMES, length[0])]
    frames = int(length.sum())
    action, state = action[:frames].astype(np.float64), state[:frames].astype(np.float64)
    episode = np.repeat(np.arange(len(length)), length)
    lag = _lag(action, state, episode, fps)
    same = episode[lag:] == episode[: frames - lag]
    apart, episode = (action[: frames - lag] - state[lag:])[same], episode[lag:][same]
    slow = (_slow(action, fps)[: frames - lag] & _slow(state, fps)[lag:])[same]
    usable = slow & _free(action[: frames - lag][same], state[lag:][same], episode, fps)
    found = [
        _of_joint(joint, apart[usable[:, joint], joint], episode[usable[:, joint]]) for joint in range(6)
    ]
    value, error, matters = zip(*found, strict=True)
    return Offsets(value, error, matters)


def name_offsets(constant: Mapping[str, float]) -> str:
    """The offsets that matter in words, such as `elbow_flex -4.1 degrees, gripper +9.0 of 100`."""
    return ", ".join(
        f"{joint} {value:+.1f} {'of 100' if joint == 'gripper' else 'degrees'}"
        for joint, value in constant.items()
    )


def take_out(action: np.ndarray, detection: Detection, constant: Mapping[str, float]) -> np.ndarray:
    """Recorded commands (float [F, 6]) without the offsets that matter, in the units of the recording.

    The gripper's too: it is the offset of a gripper that touches nothing, so what a command says about
    the force of a grip is left.
    """
    offsets = np.array([constant.get(joint, 0.0) for joint in JOINTS])
    return from_degrees(to_degrees(action, detection.action) - offsets, detection.action).astype(action.dtype)


def _lag(action: np.ndarray, state: np.ndarray, episode: np.ndarray, fps: float) -> int:
    """The frames by which the state follows the command: those that leave the least spread between them."""
    action, state, episode = (values[:_LAG_FRAMES] for values in (action[:, :5], state[:, :5], episode))
    longest = min(round(_LONGEST_LAG * fps), max(0, len(action) // 2 - 1))
    spread = []
    for lag in range(longest + 1):
        apart = (action[: len(action) - lag] - state[lag:])[episode[lag:] == episode[: len(action) - lag]]
        spread.append(float(apart.var(axis=0).sum()) if len(apart) else np.inf)
    return int(np.argmin(spread))


def _slow(values: np.ndarray, fps: float) -> np.ndarray:
    step = np.abs(np.diff(values, axis=0, prepend=values[:1])) * fps < _SLOW
    return step & np.roll(step, -1, axis=0)


def _free(action: np.ndarray, state: np.ndarray, episode: np.ndarray, fps: float) -> np.ndarray:
    """Where joints are away from their ends, and the gripper has opened and not closed since, bool [F, 6]."""
    free = np.ones(action.shape, bool)
    for values in (action, state):
        free[:, :5] &= np.abs(values[:, :5]) < np.array(HALF_RANGE) - _NEAR_END
        free[:, 5] &= np.abs(values[:, 5] - 50) < 50 - _NEAR_END / 2
    speed = np.diff(state[:, 5], prepend=state[:1, 5]) * fps
    speed[np.diff(episode, prepend=-1) != 0] = 0
    moving = np.flatnonzero((np.abs(speed) > 2 * _SLOW) | (np.diff(episode, prepend=-1) != 0))
    last = moving[np.searchsorted(moving, np.arange(len(state)), side="right") - 1]
    free[:, 5] &= speed[last] > 0
    return free


def _of_joint(joint: int, apart: np.ndarray, episode: np.ndarray) -> tuple[float, float, bool]:
    """Value, error and whether it matters, from the differences [N] of one joint's usable frames."""
    medians = _beyond_sag(joint, _medians(apart, episode))
    if len(medians) < FEWEST_EPISODES:
        return 0.0, 0.0, False
    value = float(np.median(medians))
    deviation = 1.4826 * float(np.median(np.abs(medians - value)))
    error = max(_LEAST_ERROR, 1.2533 * deviation / len(medians) ** 0.5)
    same = float(np.mean(medians * np.sign(value) > _SAME * abs(value)))
    return value, error, abs(value) > max(MATTERS[joint], _SIGNIFICANT * error) and same >= _MOST


def _medians(values: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """The median of each episode with enough values."""
    order = np.lexsort((values, episode))
    counts = np.bincount(episode)
    middle = (np.cumsum(counts) - counts + counts // 2)[counts >= _FEWEST_FRAMES]
    return values[order][middle]


def _beyond_sag(joint: int, apart: np.ndarray) -> np.ndarray:
    least, most = SAG[joint]
    return apart - np.clip(apart, least, most)
