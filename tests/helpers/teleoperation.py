"""Recordings as a person makes them with a leader arm and a follower, without a fault; for rules on episodes.

A person rests, reaches in minimum-jerk moves, corrects, hesitates, trembles and clicks the gripper; the
follower comes later, sags, cannot go as far as the leader, and its gripper stops at what it holds.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from depi.datasets.judging.faults import Recording
from depi.datasets.recording.formats import DatasetMeta, Episodes, parse_info
from depi.datasets.recording.joints import HALF_RANGE

FOLDED = np.array([0.0, -100, 95, 74, 0, 2])
RAISED = np.array([0.0, -35, 45, 55, 0, 12])
COUNT = 360 / 4096


@dataclass(frozen=True)
class Style:
    """How one person records one task: drawn once per set, the same for all of its episodes."""

    task: str
    fps: float
    home: np.ndarray
    home_spread: np.ndarray
    pace: float
    lag: float
    response: float
    sag: np.ndarray
    tremor: float
    rounding: str
    seconds: tuple[float, float]
    leader_half: np.ndarray
    follower_half: np.ndarray
    exact_length: bool


def draw_style(rng: np.random.Generator, task: str | None = None) -> Style:
    """A person, two arms and a task of TASKS."""
    shortest = rng.uniform(2.5, 25)
    return Style(
        task=task or str(rng.choice([*TASKS, "mixed"])),
        fps=float(rng.choice([10, 15, 20, 30, 30, 30, 50, 60])),
        home=(FOLDED if rng.random() < 0.6 else RAISED) + rng.normal(0, [4, 1, 1, 5, 8, 1]),
        home_spread=np.array([3.0, 1, 1, 4, 3, 1]) * rng.choice([0.0, 0.5, 1, 3]),
        pace=rng.uniform(0.6, 1.6),
        lag=rng.uniform(0.03, 0.2),
        response=rng.uniform(0.02, 0.12),
        sag=np.array([0, rng.uniform(0, 4), rng.uniform(0, 3), rng.uniform(0, 1), 0, 0]),
        tremor=float(rng.choice([0.0, 0.05, 0.15, 0.3])),
        rounding=str(rng.choice(["encoder", "encoder", "encoder", "none", "1", "2"])),
        seconds=(shortest, shortest * rng.uniform(1.0, 1.6)),
        leader_half=np.array(HALF_RANGE) * rng.uniform(0.97, 1.03, 5),
        follower_half=np.array(HALF_RANGE) * rng.uniform(0.9, 1.03, 5),
        exact_length=bool(rng.random() < 0.4),
    )


@dataclass
class HandPath:
    """A hand's way through time: poses (6,) and when each is reached, in seconds."""

    rng: np.random.Generator
    style: Style
    times: list[float]
    poses: list[np.ndarray]

    def rest(self, seconds: float) -> None:
        """Stay where the hand is."""
        self.times.append(self.times[-1] + max(seconds, 0.02))
        self.poses.append(self.poses[-1].copy())

    def go(self, pose: np.ndarray, hurry: float = 1.0) -> None:
        """Move to a pose, at most so fast as a hand does; sometimes past it and back."""
        far = float(np.abs((pose - self.poses[-1])[:5]).max())
        seconds = max(
            0.25, far / (60 * self.style.pace * hurry) * self.rng.uniform(0.7, 1.3), far * 1.88 / 280
        )
        self.times.append(self.times[-1] + seconds)
        self.poses.append(pose.copy())
        if self.rng.random() < 0.3:
            self.times.append(self.times[-1] + self.rng.uniform(0.2, 0.5))
            self.poses.append(pose + self.rng.normal(0, [2, 2, 2, 2, 3, 0]))
        if self.rng.random() < 0.25:
            self.rest(self.rng.uniform(0.1, 1.2))

    def grip(self, opening: float) -> None:
        """Open or close the gripper, with a click or slowly, the hand where it is."""
        pose = self.poses[-1].copy()
        pose[5] = opening
        self.times.append(self.times[-1] + self.rng.uniform(0.15, 0.8))
        self.poses.append(pose)

    def at(self, time: np.ndarray) -> np.ndarray:
        """The poses at times [n] between the first and the last, [n, 6]."""
        times, poses = np.array(self.times), np.array(self.poses)
        after = np.clip(np.searchsorted(times, time), 1, len(times) - 1)
        share = (time - times[after - 1]) / (times[after] - times[after - 1])
        share = np.clip(share, 0, 1)[:, None]
        smooth = 10 * share**3 - 15 * share**4 + 6 * share**5
        return poses[after - 1] + smooth * (poses[after] - poses[after - 1])


def _above(rng: np.random.Generator, pan: float, near: float, opening: float) -> np.ndarray:
    """A pose over a point of the table: the tool points down, so lift, elbow and wrist hang together."""
    lift = -30 + 60 * near + rng.normal(0, 3)
    elbow = 50 - 70 * near + rng.normal(0, 3)
    return np.array([pan, lift, elbow, 72 - 0.4 * (lift + elbow) + rng.normal(0, 4), 0.5 * pan, opening])


def _down(rng: np.random.Generator, pose: np.ndarray, depth: float) -> np.ndarray:
    return pose + np.array([rng.normal(0, 1), depth, depth * 0.3, -depth * 0.5, rng.normal(0, 3), 0])


def _pick_place(path: HandPath, rng: np.random.Generator) -> None:
    opening = rng.uniform(30, 60)
    pick = _above(rng, rng.uniform(-35, 10), rng.uniform(0.2, 0.8), opening)
    path.go(pick)
    path.go(_down(rng, pick, 22), 0.6)
    path.grip(rng.uniform(0, 6))
    path.go(np.append(pick[:5], path.poses[-1][5]))
    place = _above(rng, rng.uniform(20, 40), rng.uniform(0.3, 0.6), path.poses[-1][5])
    path.go(place)
    path.go(_down(rng, place, 18), 0.7)
    path.grip(opening)
    path.go(np.append(place[:5], opening))


def _push(path: HandPath, rng: np.random.Generator) -> None:
    closed = path.poses[-1][5]
    begin = _down(rng, _above(rng, rng.uniform(-30, 30), 0.3, closed), 20)
    path.go(begin)
    path.go(begin + np.array([rng.uniform(-15, 15), 25, -20, 0, 0, 0]), 0.7)
    path.go(begin)


def _reach(path: HandPath, rng: np.random.Generator) -> None:
    path.go(
        _above(rng, rng.uniform(-50, 50), rng.uniform(0.1, 0.9), path.poses[-1][5]), rng.uniform(0.8, 1.5)
    )


def _wipe(path: HandPath, rng: np.random.Generator) -> None:
    low = _down(rng, _above(rng, rng.uniform(-10, 10), 0.5, 5), 20)
    path.go(low)
    for stroke in range(int(rng.integers(3, 7))):
        path.go(low + np.array([25.0 if stroke % 2 else -25.0, 0, 0, 0, 0, 0]), 1.6)


def _pour(path: HandPath, rng: np.random.Generator) -> None:
    cup = _above(rng, rng.uniform(-20, 0), 0.5, 50)
    path.go(cup)
    path.grip(15)
    tilted = cup + np.array([30, -8, 4, 0, 95 + rng.normal(0, 8), -35])
    path.go(tilted)
    path.rest(rng.uniform(0.4, 1.5))
    path.go(cup - np.array([0, 0, 0, 0, 0, 35]))
    path.grip(50)


def _sides(path: HandPath, rng: np.random.Generator) -> None:
    """To the left or to the right, mirrored."""
    side = rng.choice([-1.0, 1.0])
    pick = _above(rng, side * rng.uniform(35, 45), 0.5, 45)
    path.go(pick)
    path.go(_down(rng, pick, 20), 0.6)
    path.grip(4)
    path.go(_above(rng, rng.normal(0, 3), 0.3, 4))
    path.grip(45)


def _jog(path: HandPath, rng: np.random.Generator) -> None:
    """One joint after another, as with keys; the rest is not touched."""
    for _ in range(int(rng.integers(4, 9))):
        pose = path.poses[-1].copy()
        joint = int(rng.choice([0, 1, 1, 2, 2, 3, 5]))
        low, high = (5, 70) if joint == 5 else (-60, 60)
        pose[joint] = np.clip(pose[joint] + rng.choice([-1, 1]) * rng.uniform(10, 40), low, high)
        path.times.append(path.times[-1] + float(np.abs(pose - path.poses[-1]).max()) / 45 + 0.1)
        path.poses.append(pose)


TASKS: dict[str, Callable[[HandPath, np.random.Generator], None]] = {
    "pick_place": _pick_place,
    "push": _push,
    "reach": _reach,
    "wipe": _wipe,
    "pour": _pour,
    "sides": _sides,
    "jog": _jog,
}
MIXED = ("pick_place", "push", "reach", "wipe", "pour")
"""What a recording of several tasks, `mixed`, holds, each under its own text."""


def hand_path(rng: np.random.Generator, style: Style, task: str) -> HandPath:
    """One episode of the hand: rest, one of TASKS, way home, rest."""
    home = style.home + rng.normal(0, 1, 6) * style.home_spread
    path = HandPath(rng, style, [0.0], [home])
    path.rest(rng.uniform(0.05, 1.6) if rng.random() < 0.9 else rng.uniform(1.6, 2.8))
    wanted = rng.uniform(*style.seconds)
    while True:
        TASKS[task](path, rng)
        if path.times[-1] > 0.75 * wanted:
            break
        if rng.random() < 0.2:
            path.rest(rng.uniform(0.5, 2))
    if style.home_spread.any() or rng.random() < 0.8:
        path.go(np.append(home[:5], path.poses[-1][5] if rng.random() < 0.2 else home[5]))
        path.rest(rng.uniform(0.05, 1.5))
    return path


def teleoperated(rng: np.random.Generator, style: Style, path: HandPath) -> tuple[np.ndarray, np.ndarray]:
    """What the leader read and what the follower measured along a path, canonical degrees [n, 6]."""
    fine = 240.0
    time = np.arange(int(path.times[-1] * fine)) / fine
    hand = path.at(time)
    moving = np.abs(np.gradient(hand, axis=0)).max(axis=1, keepdims=True) * fine > 1
    shake = np.sin(2 * np.pi * rng.uniform(6, 11, 6) * time[:, None] + rng.uniform(0, 6, 6))
    drift = np.cumsum(rng.normal(0, 0.01, hand.shape), axis=0)
    leader = hand + style.tremor * shake * moving * [1, 1, 1, 1, 1, 0.5] + (drift - drift[0]) * style.tremor
    leader[:, :5] = np.clip(leader[:, :5], -style.leader_half, style.leader_half)
    leader[:, 5] = np.clip(leader[:, 5], 0, 100)
    holds = style.task in ("pick_place", "sides", "pour") and rng.random() < 0.7
    follower = _follow(leader, style, fine, rng.uniform(8, 20) if holds else 0.0)
    frames = np.arange(0, len(time), fine / style.fps).astype(int)
    return leader[frames], follower[frames]


def _follow(leader: np.ndarray, style: Style, rate: float, held: float) -> np.ndarray:
    """First-order response after a delay, with sag, the follower's range, and what the gripper holds."""
    delayed = np.concatenate([np.repeat(leader[:1], int(style.lag * rate), axis=0), leader])[: len(leader)]
    share, follower = 1 - np.exp(-1 / (style.response * rate)), np.empty_like(leader)
    reached = delayed[0].copy()
    for frame, aim in enumerate(delayed):
        reached += share * (aim - reached)
        follower[frame] = reached
    follower += style.sag
    follower[:, :5] = np.clip(follower[:, :5], -style.follower_half, style.follower_half)
    follower[:, 5] = np.clip(follower[:, 5], held, 100)
    return follower


def written(values: np.ndarray, rounding: str) -> np.ndarray:
    """Values as recorded: encoder counts, decimals, or as they are; float32."""
    if rounding == "encoder":
        values = np.round(values / COUNT) * COUNT
    elif rounding != "none":
        values = np.round(values, int(rounding))
    return values.astype(np.float32)


def clean_set(seed: int, task: str | None = None, episodes: int | None = None) -> Recording:
    """A recording without a fault; the seed decides on person, arms, task and rate."""
    rng = np.random.default_rng([seed, 16])
    style = draw_style(rng, task)
    if style.task == "jog":
        style = replace(style, tremor=0.0)
    count = episodes or int(rng.choice([1, 3, 5, 8, 12, 12, 12, 20]))
    tasks = [str(rng.choice(MIXED)) if style.task == "mixed" else style.task for _ in range(count)]
    action, state = [], []
    for name in tasks:
        leader, follower = teleoperated(rng, style, hand_path(rng, style, name))
        action.append(written(leader, style.rounding))
        state.append(written(follower, style.rounding))
    if style.exact_length:
        shortest = min(map(len, action))
        action, state = ([values[:shortest] for values in side] for side in (action, state))
    return recording_of(action, state, style.fps, tasks=tasks)


def recording_of(
    action: list[np.ndarray],
    state: list[np.ndarray],
    fps: float,
    time: list[np.ndarray] | None = None,
    tasks: list[str] | None = None,
) -> Recording:
    """A recording of episodes, each [n, 6] in canonical degrees; time in seconds per episode, [n]."""
    length = np.array([len(values) for values in action])
    vector = {"dtype": "float32", "shape": [6], "names": None}
    info = parse_info(
        {
            "codebase_version": "v3.0",
            "fps": fps,
            "total_episodes": len(length),
            "total_frames": int(length.sum()),
            "features": {"action": vector, "observation.state": vector},
        }
    )
    episodes = Episodes(
        np.arange(len(length)),
        length,
        tuple((text,) for text in tasks or ["task"] * len(length)),
        ("data",),
        np.zeros(len(length), np.int32),
        {},
    )
    meta = DatasetMeta("someone/something", None, Path(), info, {0: "task"}, episodes)
    values = [np.concatenate(side).astype(np.float32) for side in (action, state)]
    stamps = [np.arange(count) / fps for count in length] if time is None else time
    columns = {
        "action": values[0],
        "observation.state": values[1],
        "timestamp": np.concatenate(stamps).astype(np.float32),
        "frame_index": np.concatenate([np.arange(count) for count in length]),
        "task_index": np.zeros(int(length.sum()), np.int64),
    }
    return Recording(meta, columns, *values)
