"""The messages between an evaluation and the processes of its environments."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depi.evaluation.config import EnvironmentConfig
from depi.evaluation.environments import EnvTable


@dataclass(frozen=True)
class Open:
    """Make the environment; the answer is the first episode's EnvTable."""

    env: EnvironmentConfig
    seed: int


@dataclass(frozen=True)
class Begin:
    """Begin an episode; the answer is a Seen.

    Attributes:
        index, seed: the episode's.
        keep: send back the whole episode, as a Trajectory, in the end.
        video: the path of a video of the cameras.
        expert: plan this many actions of the scripted expert with every observation; 0: none.
    """

    index: int
    seed: int
    keep: bool = False
    video: Path | None = None
    expert: int = 0


@dataclass(frozen=True)
class Play:
    """Carry out float32 (n, action_dim) actions one after another, until the episode ends; -> Played."""

    actions: NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """An observation for a policy.

    Attributes:
        images: dataset camera key -> uint8 (H, W, 3).
        state: float32 (state_dim,) in the environment's units.
        task: the instruction.
        expert: the expert's next actions, float32 (n, action_dim); None unless asked for.
        table: the episode's, when it begins; else None.
    """

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    task: str
    expert: NDArray[np.float32] | None = None
    table: EnvTable | None = None


@dataclass(frozen=True)
class Trajectory:
    """One whole episode of T steps; row t holds the observation before the action of row t.

    Attributes:
        index, seed, success, task, fps: the episode's; `task` is its instruction.
        states: float32 (T, S), environment's units. actions: float32 (T, A), the same.
        rewards: float32 (T,).
        images: dataset camera key -> uint8 (T, H, W, 3).
        table: the names and sizes.
        terminated: whether the environment ended it, rather than the limit of steps.
    """

    index: int
    seed: int
    success: bool
    task: str
    fps: int
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    images: dict[str, NDArray[np.uint8]]
    table: EnvTable
    terminated: bool = True


@dataclass(frozen=True)
class Played:
    """The result of Play: the rewards, and either the next observation or the end of the episode.

    Attributes:
        rewards: one for each step taken.
        seen: None when the episode has ended.
        success: whether the task is done.
        last_frame: of an ended episode, uint8 (H, W, 3).
        trajectory: of an ended episode, where it was asked for.
    """

    rewards: list[float]
    seen: Seen | None
    success: bool
    last_frame: NDArray[np.uint8] | None = None
    trajectory: Trajectory | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Refused:
    """The environment cannot do what the user asked for; a sentence."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The environment raised an error; its name and first line."""

    reason: str


BEAT = "beat"
