"""How often is the joint convention of a recording found, and how often confidently wrong?

    uv run python benchmarks/joint_conventions.py --count=20 --seed=1

Makes recordings of simulated SO-101 arms, `count` for each cell of a matrix of conventions, names, start
poses, roundings, numbers of episodes and of frames, asks `detect_convention` for each, converts by its
answer, and compares with the joints that were meant. An answer is wrong where a body joint of action or state
is off by more than 3 degrees on average.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from depi.datasets.recording.convention import detect_convention
from depi.datasets.recording.joints import HALF_RANGE, JOINTS, Detection, from_degrees, to_degrees
from depi.flags import parse_flags

WRONG = 3.0  # degrees, mean error of a joint
NAMES: dict[str, list[str] | None] = {
    ".pos": [f"{joint}.pos" for joint in JOINTS],
    "main_": [f"main_{joint}" for joint in JOINTS],
    "plain": list(JOINTS),
    "numbered": [f"motor_{number}" for number in range(1, 7)],
    "null": None,
}
ROUNDINGS = ("none", "encoder", "1 decimal", "2 decimals")
STARTS = ("folded", "raised")
EPISODES = (1, 5, 20)
FRAMES = (30, 60, 200)
FPS = 30
# Canonical degrees, gripper 0..100: the folded arm, an arm that waits above the table, and where it works.
FOLDED = np.array([0.0, -100, 96, 72, 0, 2])
RAISED = np.array([0.0, -30, 40, 50, 0, 10])
WORK = np.array([[-60.0, -60, -40, -40, -90, 0], [60, 60, 80, 90, 90, 70]])


@dataclass(frozen=True)
class Arm:
    """One calibrated arm: the encoder steps over the range of each body joint."""

    steps: np.ndarray

    @property
    def half(self) -> np.ndarray:
        """Half range of the body joints in degrees."""
        return self.steps / 2 * 360 / 4095


@dataclass(frozen=True)
class Recorded:
    """What somebody published, and the joints in canonical degrees (float64 [F, 6]) that it stands for."""

    action: np.ndarray
    state: np.ndarray
    true_action: np.ndarray
    true_state: np.ndarray
    episode_length: np.ndarray
    robot_type: str | None = "so101_follower"


def draw_arm(rng: np.random.Generator) -> Arm:
    """An arm whose ranges differ from the nominal ones by up to 3%; some rolls go round the whole turn."""
    half = np.array(HALF_RANGE) * rng.uniform(0.97, 1.03, 5)
    steps = np.round(half * 2 * 4095 / 360).astype(int)
    steps[4] = 4095 if rng.random() < 0.3 else min(steps[4], 4095)
    return Arm(steps)


def draw_path(rng: np.random.Generator, frames: int, start: str) -> np.ndarray:
    """A path of one episode, float64 [frames, 6]: minimum-jerk moves of 0.5 to 1.5 s between random poses."""
    pose = (FOLDED if start == "folded" else RAISED) + rng.normal(0, [3, 1, 1, 4, 3, 1])
    path = [np.repeat(pose[None], max(4, int(FPS * rng.uniform(0.1, 0.5))), axis=0)]
    while sum(map(len, path)) < frames:
        aim = rng.uniform(*WORK)
        time = np.linspace(0, 1, int(FPS * rng.uniform(0.5, 1.5)))[1:, None]
        path.append(pose + (aim - pose) * (10 * time**3 - 15 * time**4 + 6 * time**5))
        pose = aim
    return np.concatenate(path)[:frames]


def draw_motion(
    rng: np.random.Generator, arms: tuple[Arm, Arm], episodes: int, frames: int, start: str
) -> tuple[np.ndarray, np.ndarray]:
    """What a leader commanded and what its follower did, canonical degrees [F, 6]."""
    lag, sag = int(rng.integers(2, 5)), rng.uniform(0, 2)
    action, state = [], []
    for _ in range(episodes):
        path = draw_path(rng, frames + lag, start) + rng.normal(0, 0.03, (frames + lag, 6))
        action.append(path[lag:])
        state.append(path[:-lag] + np.array([0, sag, sag / 2, 0, 0, 0]))
    commanded, measured = np.concatenate(action), np.concatenate(state)
    for values, arm in ((commanded, arms[0]), (measured, arms[1])):
        values[:, :5] = np.clip(values[:, :5], -arm.half, arm.half)
        values[:, 5] = np.clip(values[:, 5], 0, 100)
    return commanded, measured


def write_values(degrees: np.ndarray, convention: str, arm: Arm, rounding: str) -> np.ndarray:
    """Canonical degrees as a robot of that convention records them, float32."""
    on_encoder = rounding != "none"
    if convention in ("normalized", "scaled"):
        steps = degrees[:, :5] * 4095 / 360 + arm.steps / 2
        share = np.clip((np.round(steps) if on_encoder else steps) / arm.steps, 0, 1)
        values = np.column_stack([share * 200 - 100, degrees[:, 5]])
        values = values / 100 if convention == "scaled" else values
    elif convention in ("degrees", "degrees_v1"):
        values = from_degrees(degrees, convention)
        step = 360 / (4096 if convention == "degrees_v1" else 4095)
        if on_encoder:
            values[:, :5] = np.round(values[:, :5] / step) * step
    else:
        values = from_degrees(degrees, "radians") * RADIANS[convention][0] + RADIANS[convention][1]
        if on_encoder:
            values = np.round(values / (2 * np.pi / 4096)) * (2 * np.pi / 4096)
    if rounding.endswith(("decimal", "decimals")):
        values = np.round(values, int(rounding[0]))
    return values.astype(np.float32)


# Sign and zero (added, radians) of radians: LeRobot's joints, phosphobot's, and those of two older URDFs,
# whose zeros are about a quarter turn away at lift and elbow.
RADIANS = {
    "radians": (np.ones(6), np.zeros(6)),
    "phosphobot": (np.array([-1.0, 1, 1, 1, 1, 1]), np.zeros(6)),
    "radians, old calibration": (
        np.array([1.0, -1, 1, 1, 1, 1]),
        np.array([0, np.pi / 2, np.pi / 2, 0, 0, 0]),
    ),
    "radians, older URDF": (np.array([1.0, 1, -1, 1, 1, 1]), np.array([0, 1.745, 1.69, 0, np.pi / 2, 0])),
}
TEXTBOOK = {"degrees": ".pos", "degrees_v1": "main_", "normalized": ".pos", "radians": ".pos"}


def record(
    rng: np.random.Generator, kind: str, episodes: int, frames: int, start: str, rounding: str
) -> Recorded:
    """One recording of a kind: a convention, or a mixture of state and action or of episodes; see KINDS."""
    arms = (draw_arm(rng), draw_arm(rng))
    motion = draw_motion(rng, arms, episodes, frames, start)
    length = np.full(episodes, frames)
    words = kind.split()
    if words[0] == "leader":
        leader = write_values(motion[0], words[1], arms[0], rounding)
        follower = write_values(motion[1], words[3], arms[1], rounding)
        return Recorded(leader, follower, *motion, length)
    if words[0] in ("half", "few"):
        count = (episodes + 1) // 2 if words[0] == "half" else (episodes - 1 and max(1, episodes // 5))
        first = np.repeat(rng.permutation(episodes) < count, frames)[:, None]
        parts = [write_both(motion, convention, arms, rounding) for convention in (words[1], words[3])]
        action, state, meant = [np.where(first, one, other) for one, other in zip(*parts, strict=True)]
        return Recorded(action, state, meant, motion[1], length)
    action, state, meant = write_both(motion, kind, arms, rounding)
    robot = "so-100" if kind == "phosphobot" else "so101_follower"
    return Recorded(action, state, meant, motion[1], length, robot)


def write_both(
    motion: tuple[np.ndarray, np.ndarray], convention: str, arms: tuple[Arm, Arm], rounding: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Action and state as recorded in a convention, and the action in degrees that was meant."""
    action, state = (
        write_values(degrees, convention, arm, rounding) for degrees, arm in zip(motion, arms, strict=True)
    )
    if convention != "normalized":
        return action, state, motion[0]
    # A normalised action means shares of the follower's range, whichever arm gave it.
    return action, state, np.column_stack([action[:, :5] / 100 * arms[1].half, motion[0][:, 5]])


KINDS = (
    *("degrees", "degrees_v1", "normalized", "scaled", *RADIANS),
    *("leader degrees follower normalized", "leader normalized follower degrees"),
    *("leader radians follower degrees", "leader normalized follower radians"),
    *("half radians half degrees", "half degrees_v1 half degrees", "half normalized half degrees"),
    *("few radians rest degrees", "few degrees rest radians", "few degrees_v1 rest degrees"),
    *("few normalized rest degrees", "few degrees rest normalized"),
)


def worst_error(recorded: Recorded, found: Detection) -> float:
    """The largest mean error of a body joint in degrees, over action and state of the episodes in use."""
    used = np.ones(len(recorded.episode_length), bool)
    used[[position for position, _ in found.unlike]] = False
    rows = np.repeat(used, recorded.episode_length)
    pairs = (
        (recorded.action, recorded.true_action, found.action),
        (recorded.state, recorded.true_state, found.state),
    )
    return max(
        float(np.abs(to_degrees(values.astype(np.float64), of) - meant)[rows, :5].mean(axis=0).max())
        for values, meant, of in pairs
    )


def cells() -> Iterator[tuple[str, str, str, str, int, int]]:
    """kind, names, start, rounding, episodes, frames of every cell of the matrix."""
    return itertools.product(KINDS, NAMES, STARTS, ROUNDINGS, EPISODES, FRAMES)


def judge(seed: int, cell: tuple[str, str, str, str, int, int]) -> tuple[str, str]:
    """`right`, `wrong`, `unknown` or `native` for one recording of a cell, and the evidence."""
    kind, names, start, rounding, episodes, frames = cell
    rng = np.random.default_rng([seed, *(hash_of(str(part)) for part in cell)])
    recorded = record(rng, kind, episodes, frames, start, rounding)
    found = detect_convention(
        NAMES[names],
        recorded.action,
        recorded.state,
        robot_type=recorded.robot_type,
        episode_length=recorded.episode_length,
    )
    if found.convention in ("unknown", "native"):
        return found.convention, found.evidence
    return ("wrong" if worst_error(recorded, found) > WRONG else "right"), found.evidence


def hash_of(text: str) -> int:
    """A number of a text that is the same in every process."""
    return int.from_bytes(text.encode()[:7].ljust(7), "little") ^ len(text)


def is_textbook(cell: tuple[str, str, str, str, int, int]) -> bool:
    """A recording as LeRobot makes it: its own names, folded start, encoder steps, two seconds and more."""
    kind, names, start, rounding, _, frames = cell
    return TEXTBOOK.get(kind) == names and start == "folded" and rounding == "encoder" and frames >= 60


@dataclass
class MatrixConfig:
    """Recordings for each cell of the matrix, and the seed of their random numbers."""

    count: int = 2
    seed: int = 1


def run(config: MatrixConfig, progress: Callable[[], None] = lambda: None) -> dict[str, Counter[str]]:
    """Answers by kind of recording, and of the textbook ones."""
    table: dict[str, Counter[str]] = {kind: Counter() for kind in (*KINDS, "textbook")}
    for cell in cells():
        for number in range(config.count):
            answer, _ = judge(config.seed * 1000 + number, cell)
            table[cell[0]][answer] += 1
            if is_textbook(cell):
                table["textbook"][answer] += 1
        progress()
    return table


def main() -> None:
    """Print the table."""
    table = run(parse_flags(MatrixConfig, sys.argv[1:], "joint_conventions.py"))
    print("| recordings | number | right | wrong | unknown |\n|---|---|---|---|---|")
    rows = [*table.items(), ("all", sum((table[kind] for kind in KINDS), Counter()))]
    for kind, counts in rows:
        total = counts.total()
        shares = " | ".join(f"{counts[answer] / total:.2%}" for answer in ("right", "wrong", "unknown"))
        print(f"| {kind} | {total} | {shares} |")


if __name__ == "__main__":
    main()
