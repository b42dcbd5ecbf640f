"""Scripted experts of gym-pusht and gym-aloha, recorded with the features of the datasets on the Hub."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from depi.errors import UserError
from depi.sim.gl import select_backend
from depi.sim.v30 import V30Writer
from depi.sim.writing import Recording, check_counts, finalized, new_folder, successes, write_card

# gym-pusht imports pygame, which imports what setuptools is about to drop.
warnings.filterwarnings("ignore", "pkg_resources is deprecated")


class GymExpert(Protocol):
    """A scripted policy that reads the simulator's state."""

    def reset(self, seed: int) -> None:
        """Plan the episode that has just begun."""

    def act(self) -> NDArray[np.float32]:
        """Return the next action."""


@dataclass(frozen=True)
class GymTask:
    """A task of a gymnasium environment, with the settings of the original dataset on the Hub.

    Attributes:
        name: as `--task` takes it. text: the instruction. robot_type: of the dataset.
        camera: the dataset's key. size: its (height, width) in pixels. fps: of control and recording.
        names: of the numbers of state and action.
        max_steps: an episode is truncated after this many.
        make: builds environment and expert from the size.
    """

    name: str
    text: str
    robot_type: str
    camera: str
    size: tuple[int, int]
    fps: int
    names: tuple[str, ...]
    max_steps: int
    make: Callable[[tuple[int, int]], tuple[Any, GymExpert]]

    def features(self, size: tuple[int, int]) -> dict[str, dict[str, Any]]:
        """LeRobot features: camera, state, action, and how each step ended."""
        vector = {"dtype": "float32", "shape": (len(self.names),), "names": {"motors": list(self.names)}}
        axes = ["height", "width", "channels"]
        return {
            self.camera: {"dtype": "video", "shape": (*size, 3), "names": axes},
            "observation.state": vector,
            "action": vector,
            "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
            "next.done": {"dtype": "bool", "shape": (1,), "names": None},
            "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        }


@dataclass(frozen=True)
class GymEpisode:
    """One episode of T steps: `columns` are arrays (T, D) by feature key, `images` uint8 (T, H, W, 3)."""

    seed: int
    success: bool
    columns: dict[str, NDArray[Any]]
    images: NDArray[np.uint8]


def _make_pusht(size: tuple[int, int]) -> tuple[Any, GymExpert]:
    from gym_pusht.envs import PushTEnv

    from depi.sim.pusht import PushTExpert

    env = PushTEnv(obs_type="pixels_agent_pos", observation_height=size[0], observation_width=size[1])
    return env, PushTExpert(env)


def _make_aloha(size: tuple[int, int]) -> tuple[Any, GymExpert]:
    select_backend()  # before dm_control is imported
    from depi.sim.aloha import TransferEnv, TransferExpert

    env = TransferEnv(observation_height=size[0], observation_width=size[1])
    return env, TransferExpert(env)


_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
GYM_TASKS = {
    task.name: task
    for task in (
        GymTask(
            "pusht",
            "Push the T-shaped block onto the T-shaped target.",
            robot_type="2d pointer",
            camera="observation.image",
            size=(96, 96),
            fps=10,
            names=("motor_0", "motor_1"),
            max_steps=300,
            make=_make_pusht,
        ),
        GymTask(
            "aloha_transfer_cube",
            "Pick up the cube with the right arm and transfer it to the left arm.",
            robot_type="aloha",
            camera="observation.images.top",
            size=(480, 640),
            fps=50,
            names=tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _ARM),
            max_steps=400,
            make=_make_aloha,
        ),
    )
}


def play_gym(env: Any, expert: GymExpert, seed: int, max_steps: int) -> GymEpisode:
    """Reset an environment with `seed` and let its expert act until success or `max_steps`."""
    observation, _ = env.reset(seed=seed)
    expert.reset(seed)
    rows: dict[str, list[Any]] = {
        key: [] for key in ("observation.state", "action", "next.reward", "next.done", "next.success")
    }
    images: list[NDArray[np.uint8]] = []
    success = False
    while not success and len(images) < max_steps:
        action = expert.act()
        images.append(_picture(observation["pixels"]))
        rows["observation.state"].append(observation["agent_pos"])
        observation, reward, _, _, info = env.step(action)
        success = bool(info["is_success"])
        rows["action"].append(action)
        rows["next.reward"].append([reward])
        rows["next.done"].append([success or len(images) == max_steps])
        rows["next.success"].append([success])
    types = {"next.done": bool, "next.success": bool}
    columns = {key: np.array(values, types.get(key, np.float32)) for key, values in rows.items()}
    return GymEpisode(seed, success, columns, np.stack(images))


def record_gym_dataset(
    task: GymTask,
    repo_id: str,
    root: Path,
    *,
    episodes: int,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    codec: str = "av1",
    text: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Recording:
    """Record successful episodes of a task's expert under `root` as a LeRobot v3.0 dataset.

    The folder appears complete or not at all. `size` is (height, width), by default the task's; `text`
    replaces the instruction; `progress` is called with the number of episodes done.

    Raises:
        UserError: the folder exists, a package is missing, a negative seed, or the expert keeps failing.
    """
    check_counts(episodes, seed)
    size = size or task.size
    if min(size) < 16 or any(side % 2 for side in size):
        raise UserError(f"{size[1]}x{size[0]} pixels: both must be even and at least 16")
    frames, failed = 0, list[int]()
    with new_folder(root) as folder:
        found = _successes(task, size, episodes, seed, failed)
        first = next(found)  # nothing is written before the environment works
        new = V30Writer(folder, repo_id, task.features(size), task.fps, codec, task.robot_type)
        with finalized(new) as writer:
            for done, episode in enumerate(chain([first], found), 1):
                instruction = task.text if text is None else text
                writer.add_episode(episode.columns, {task.camera: episode.images}, instruction)
                frames += len(episode.images)
                if progress:
                    progress(done)
        write_card(folder, repo_id, task.robot_type)
    return Recording(repo_id, root, episodes, frames, tuple(failed))


def _successes(
    task: GymTask, size: tuple[int, int], episodes: int, seed: int, failed: list[int]
) -> Iterator[GymEpisode]:
    try:
        env, expert = task.make(size)
    except ModuleNotFoundError as error:
        raise UserError(f"{task.name} needs the package {error.name}: install depi[sim]") from None

    def play_seed(seed: int) -> GymEpisode | None:
        episode = play_gym(env, expert, seed, task.max_steps)
        return episode if episode.success else None

    try:
        yield from successes(task.name, play_seed, episodes, seed, failed)
    finally:
        env.close()


def _picture(pixels: Any) -> NDArray[np.uint8]:
    return pixels["top"] if isinstance(pixels, dict) else pixels
