"""Measures of an arm's movement that several rules share: each is taken once per recording."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from depi.datasets.judging.lags import Following, JointFollowing, measure_following, measure_joints

PAUSE_SECONDS, PAUSE_MOTION = 0.5, 1.0
"""A frame is idle where no joint has moved by PAUSE_MOTION degrees within PAUSE_SECONDS."""
SAMPLES = 32
"""Frames in which an episode's poses are looked at."""
ROUGH_MOTION = 30.0
"""Degrees that an arm moves along its way before its roughness is compared."""

LARGEST_CHANGE = 30.0
"""Degrees: one wild reading must not make an episode rough."""


@dataclass(frozen=True)
class Track:
    """How one of the two, action or state, moves: F frames in E episodes.

    values: float32 [F, 6], canonical degrees, the gripper 0 to 100
    start, length: int64 [E], in frames
    episode: int64 [F], the position of each frame's episode
    """

    values: np.ndarray
    start: np.ndarray
    length: np.ndarray
    episode: np.ndarray

    @cached_property
    def step(self) -> np.ndarray:
        """From the frame before to each frame, [F, 6]; 0 at the start of an episode."""
        step = np.zeros_like(self.values)
        np.subtract(self.values[1:], self.values[:-1], out=step[1:])
        step[self.start] = 0
        return step

    @cached_property
    def size(self) -> np.ndarray:
        """The absolute `step`."""
        return np.abs(self.step)

    @cached_property
    def speed(self) -> np.ndarray:
        """The length of the `step` over the joints without the gripper, in degrees, [F]."""
        body = self.step[:, :5]
        return np.sqrt(np.einsum("fj,fj->f", body, body))

    @cached_property
    def excursion(self) -> np.ndarray:
        """By how much each joint goes away and comes back around a frame, [F, 6]; 0 where it goes on."""
        away = np.zeros_like(self.step)
        there, back = self.step[:-1], self.step[1:]
        np.multiply(np.minimum(self.size[:-1], self.size[1:]), there * back < 0, out=away[:-1])
        return away

    @cached_property
    def wobble(self) -> np.ndarray:
        """The largest `excursion` of any joint, [F]."""
        return self.excursion.max(axis=1)

    @cached_property
    def roughness(self) -> np.ndarray:
        """How much the `step` of the body changes from frame to frame, against its size; [E]."""
        change = np.zeros(len(self.step))
        change[:-1] = np.abs(self.step[1:, :5] - self.step[:-1, :5]).sum(axis=1)
        np.minimum(change, LARGEST_CHANGE, out=change)
        change[self.start] = 0
        change[self.start + self.length - 1] = 0
        moved = np.add.reduceat(self.speed, self.start)
        # An arm that hardly moves is not rough for its trembling.
        return np.add.reduceat(change, self.start) / np.maximum(moved, ROUGH_MOTION)

    @cached_property
    def low(self) -> np.ndarray:
        """The smallest value of each joint in each episode, [E, 6]."""
        return np.minimum.reduceat(self.values, self.start)

    @cached_property
    def high(self) -> np.ndarray:
        """The largest value of each joint in each episode, [E, 6]."""
        return np.maximum.reduceat(self.values, self.start)

    @cached_property
    def reach(self) -> np.ndarray:
        """How far each joint moves in each episode, [E, 6]."""
        return self.high - self.low

    def away_from(self, frame: np.ndarray, degrees: float) -> np.ndarray:
        """Where some joint is farther than that from where it was at another frame, int64 [F]; bool [F]."""
        return (np.abs(self.values - self.values[frame]) > degrees).any(axis=1)


@dataclass(frozen=True)
class Movement:
    """The movement of a recording: what was commanded and what was measured.

    commanded, measured: the tracks of action and state
    start, length: int64 [E], in frames
    episode: int64 [F], the position of each frame's episode
    """

    commanded: Track
    measured: Track
    start: np.ndarray
    length: np.ndarray
    episode: np.ndarray
    fps: float

    @staticmethod
    def of(action: np.ndarray, state: np.ndarray, length: np.ndarray, fps: float) -> "Movement":
        """The movement of action and state, float32 [F, 6], in episodes of `length` frames, int64 [E]."""
        start, episode = np.cumsum(length) - length, np.repeat(np.arange(len(length)), length)
        commanded, measured = (Track(values, start, length, episode) for values in (action, state))
        return Movement(commanded, measured, start, length, episode, fps)

    @cached_property
    def place(self) -> np.ndarray:
        """The number of each frame in its episode, int64 [F]."""
        return np.arange(len(self.episode)) - self.start[self.episode]

    @cached_property
    def moved(self) -> np.ndarray:
        """By how much the joint moved that moved most, in action or state, whichever moved less; [E]."""
        return np.minimum(self.commanded.reach.max(axis=1), self.measured.reach.max(axis=1))

    def by_episode(self, frames: np.ndarray) -> Iterator[tuple[int, slice]]:
        """The episodes of ascending frames, int64 [N]: position, and which of the frames are its own."""
        positions, first = np.unique(self.episode[frames], return_index=True)
        bounds = [*first.tolist(), len(frames)]
        yield from zip(positions.tolist(), map(slice, bounds, bounds[1:]), strict=False)

    def away_from(self, frame: np.ndarray, degrees: float) -> np.ndarray:
        """Where some joint of either is farther than that from where it was at another frame; bool [F]."""
        return self.commanded.away_from(frame, degrees) | self.measured.away_from(frame, degrees)

    @cached_property
    def idle_share(self) -> np.ndarray:
        """The share of idle frames in each episode, [E]."""
        frames = max(1, round(PAUSE_SECONDS * self.fps))
        before = np.arange(len(self.episode)) - np.minimum(self.place, frames)
        moving = self.away_from(before, PAUSE_MOTION)
        return 1 - np.add.reduceat(moving.astype(np.float64), self.start) / self.length

    @cached_property
    def samples(self) -> np.ndarray:
        """The state in SAMPLES frames of each episode, evenly over its length, [E, SAMPLES, 6]."""
        share = np.linspace(0, 1, SAMPLES)
        frames = self.start[:, None] + ((self.length - 1)[:, None] * share).astype(np.int64)
        return self.measured.values[frames]

    @cached_property
    def following(self) -> Following:
        """How the state follows the action in each episode."""
        values = self.commanded.values, self.measured.values
        return measure_following(*values, self.start, self.length, self.fps)

    @cached_property
    def joint_following(self) -> JointFollowing:
        """How each joint follows its action in each episode, at the usual lag."""
        lag = round(float(np.median(self.following.lag)) * self.fps)
        values = self.commanded.values, self.measured.values
        return measure_joints(*values, self.start, self.length, lag)


def runs(holds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The runs of frames in which something holds: bool [F] to first frames and ends, int64 [R]."""
    edges = np.flatnonzero(np.diff(holds, prepend=False, append=False))
    return edges[::2], edges[1::2]
