"""How an arm moves in a recording, in a few numbers that do not depend on units."""

from dataclasses import dataclass

import numpy as np

from depi.datasets.judging.offsets import Offsets, measure_offsets

MAX_FRAMES = 200_000
"""Motion is measured on at most this many frames: more would hardly change the figures."""
STILL = 4.0
"""Degrees per second, over all joints: an arm that moves less stands still."""
BLOCK = 0.5
"""Seconds over which positions are averaged to see whether the arm moves: jitter is no motion."""
EARLIEST, LATEST = -0.5, 2.0
"""The smallest and largest lag of the state behind the action that are tried, in seconds."""
SMOOTHING = 0.2
"""Seconds of the moving average that separates motion from jerks."""


@dataclass(frozen=True)
class Motion:
    """Figures of a whole dataset.

    moved: degrees by which the joint that moves most moves, per episode; float [E]
    motion: mean speed over all frames, in degrees per second, all joints together
    smoothness: share of the action's motion energy that is left after a moving average over SMOOTHING
        seconds, 0..1: near 1 for an arm moved by hand, below 0.3 for noise
    idle: share of the time in which the action stands still, 0..1
    lag: seconds by which the state follows the action's motion; negative where the state comes first; None
        where it does not follow
    follow: correlation of both motions at that lag, -1..1
    offsets: by how much commands are off by a constant
    gripper_range: how far the gripper opens and closes, 0..100, the smaller of action and state
    """

    moved: np.ndarray
    motion: float
    smoothness: float
    idle: float
    lag: float | None
    follow: float
    offsets: Offsets
    gripper_range: float


def measure_motion(action: np.ndarray, state: np.ndarray, episode_length: np.ndarray, fps: float) -> Motion:
    """Measure a recording.

    Args:
        action, state: float [F, 6] in canonical degrees, finite, episodes one after another.
        episode_length: int64 [E], frames; they add up to F.
        fps: frames per second.
    """
    starts = np.concatenate([[0], np.cumsum(episode_length)[:-1]])
    moved = (np.maximum.reduceat(action, starts) - np.minimum.reduceat(action, starts)).max(axis=1)
    pace, state_pace = (_steps(values, starts) for values in (action, state))
    speed = np.abs(pace).sum(axis=1)
    lag, follow = _lag(pace, state_pace, fps)
    return Motion(
        moved=moved,
        motion=float(speed.mean() * fps),
        smoothness=_smoothness(pace, max(2, round(SMOOTHING * fps))),
        idle=_idle(action[:MAX_FRAMES], starts, fps),
        lag=lag,
        follow=follow,
        offsets=measure_offsets(action, state, episode_length, fps),
        gripper_range=float(min(np.ptp(values[:, 5]) for values in (action, state))),
    )


def _steps(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """From each frame to the next, float64 [F, 6]; 0 from one episode to the next."""
    steps = np.diff(values[:MAX_FRAMES].astype(np.float64), axis=0, prepend=values[:1])
    steps[starts[starts < len(steps)]] = 0.0
    return steps


def _idle(action: np.ndarray, starts: np.ndarray, fps: float) -> float:
    """Share of the frames in blocks whose mean position is that of the block before; the first block of an
    episode is compared with its second.
    """
    begins = np.zeros(len(action), np.int64)
    begins[starts[starts < len(action)]] = starts[starts < len(action)]
    inside = np.arange(len(action)) - np.maximum.accumulate(begins)
    block = np.flatnonzero(inside % max(1, round(BLOCK * fps)) == 0)
    length = np.diff(block, append=len(action))
    mean = np.add.reduceat(action, block, dtype=np.float64) / length[:, None]
    seconds = (length[1:] + length[:-1]) / 2 / fps
    speed = np.full(len(block), np.inf)
    speed[1:] = np.abs(np.diff(mean, axis=0)).sum(axis=1) / seconds
    first = inside[block] == 0
    speed[first] = np.where(np.append(first[1:], True), np.inf, np.append(speed[1:], np.inf))[first]
    return float(length[speed < STILL].sum() / length.sum())


def _smoothness(pace: np.ndarray, window: int) -> float:
    """Energy of the averaged steps over that of the steps themselves."""
    total = float((pace**2).sum())
    if not total:
        return 0.0
    summed = np.cumsum(np.vstack([np.zeros((1, pace.shape[1])), pace]), axis=0)
    averaged = (summed[window:] - summed[:-window]) / window
    return min(1.0, float((averaged**2).sum()) / total)


def _lag(action: np.ndarray, state: np.ndarray, fps: float) -> tuple[float | None, float]:
    """The lag in seconds at which the state's steps resemble the action's most, and the correlation there."""
    action, state = _without_jumps(action), _without_jumps(state)
    scale = float(np.sqrt((action**2).sum() * (state**2).sum()))
    if not scale:
        return None, 0.0
    frames = range(round(EARLIEST * fps), min(round(LATEST * fps), len(action) - 1) + 1)
    found = [(_product(action, state, lag) / scale, -abs(lag), lag) for lag in frames if -lag < len(action)]
    follow, _, lag = max(found)
    return lag / fps, follow


def _without_jumps(steps: np.ndarray) -> np.ndarray:
    """Steps clipped to the 98% quantile of their joint: one wrong reading would outweigh the motion."""
    size = np.abs(steps)
    largest = np.quantile(size, 0.98, axis=0)
    largest = np.where(largest > 0, largest, size.max(axis=0))
    return np.clip(steps, -largest, largest)


def _product(action: np.ndarray, state: np.ndarray, lag: int) -> float:
    """Sum over frames of action[t] times state[t + lag]."""
    first, second = (action[: len(action) - lag], state[lag:]) if lag >= 0 else (action[-lag:], state[:lag])
    return float(np.einsum("fj,fj->", first, second))
