"""Rollouts as LeRobot datasets: `DatasetWriter(root, repo_id).append(trajectory)`, then `finish()`.

    with DatasetWriter(root, "me/rollouts") as writer:
        roll_out(config, policy, processors, on_episode=writer.append)

Trajectories are kept in a temporary folder until `finish` (which the context calls when nothing was raised),
one file each, written atomically. So after a kill a new writer of the same folder continues, and an episode
that is appended again replaces the old one. `finish` writes the LeRobot v3.0 dataset with
LeRobot's own writer and gives it the name `root` only when it is complete. Frames have the columns
`next.reward`, `next.done` and `next.success` besides images, state and action.
"""

import dataclasses
import json
import shutil
from collections.abc import Container
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from depi.errors import UserError
from depi.evaluation.environments import EnvTable
from depi.evaluation.messages import Trajectory
from depi.files import atomic_write

REWARD, DONE, SUCCESS = "next.reward", "next.done", "next.success"


class DatasetWriter:
    """Collects trajectories of one environment and writes them as a dataset.

    Args:
        root: the dataset's folder, which must not exist yet.
        repo_id: user/name of the dataset.
        temporary: the folder of trajectories until then; None: a hidden folder beside `root`.
        codec: of its videos.

    Raises:
        UserError: `root` exists.
    """

    def __init__(self, root: Path, repo_id: str, *, temporary: Path | None = None, codec: str = "h264"):
        self.root, self._repo_id, self._codec = Path(root), repo_id, codec
        if self.root.exists():
            raise UserError(f"{self.root} exists already: remove it or choose another folder")
        self._temporary = temporary or self.root.with_name(f".{self.root.name}.episodes")

    @property
    def indices(self) -> list[int]:
        """Numbers of the episodes that exist."""
        return sorted(int(path.stem) for path in self._temporary.glob("*.npz") if path.stem.isdecimal())

    def append(self, trajectory: Trajectory) -> None:
        """Write a trajectory to a file named by its `index`; when this returns, it is on the disk."""
        values: dict[str, Any] = {
            "states": trajectory.states,
            "actions": trajectory.actions,
            "rewards": trajectory.rewards,
            **{f"image:{key}": images for key, images in trajectory.images.items()},
        }
        names = ("index", "seed", "success", "task", "fps", "terminated")
        head = {name: getattr(trajectory, name) for name in names}
        head["table"] = dataclasses.asdict(trajectory.table)
        path = self._temporary / f"{trajectory.index:06d}.npz"
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, head=np.array(json.dumps(head)), **values)

    def finish(self, wanted: Container[int] | None = None) -> Path:
        """Write the dataset, remove the temporary folder, and return `root`.

        Args:
            wanted: numbers of the episodes to write, those that exist; None: all.

        Raises:
            UserError: there is no episode, or they do not have the same cameras, sizes and rate.
        """
        from depi.sim.v30 import V30Writer
        from depi.sim.writing import finalized

        indices = [index for index in self.indices if wanted is None or index in wanted]
        if not indices:
            raise UserError(f"{self.root} is not written: no episode has been recorded for it")
        first = self._read(indices[0])
        shape = _shape(first)
        # Beside `root`, so that it can be renamed.
        folder = self.root.with_name(f".{self.root.name}.draft")
        shutil.rmtree(folder, ignore_errors=True)
        self.root.parent.mkdir(parents=True, exist_ok=True)
        try:
            new = V30Writer(
                folder, self._repo_id, _features(first), first.fps, self._codec, first.table.robot_type
            )
            with finalized(new) as writer:
                for index in indices:
                    trajectory = self._read(index)
                    if _shape(trajectory) != shape:
                        raise UserError(
                            f"{self.root}: episode {index} has other cameras, sizes or another rate than "
                            f"episode {indices[0]}"
                        )
                    writer.add_episode(_columns(trajectory), trajectory.images, trajectory.task)
            folder.rename(self.root)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self._temporary)
        return self.root

    def _read(self, index: int) -> Trajectory:
        with np.load(self._temporary / f"{index:06d}.npz", allow_pickle=False) as values:
            head = json.loads(str(values["head"]))
            table: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in head.pop("table").items()
            }
            images = {
                name.removeprefix("image:"): values[name]
                for name in values.files
                if name.startswith("image:")
            }
            return Trajectory(
                states=values["states"],
                actions=values["actions"],
                rewards=values["rewards"],
                images=images,
                table=EnvTable(**table),
                **head,
            )

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()


def _shape(trajectory: Trajectory) -> tuple[Any, ...]:
    images = {key: pixels.shape[1:] for key, pixels in trajectory.images.items()}
    return images, trajectory.states.shape[1], trajectory.actions.shape[1], trajectory.fps


def _features(trajectory: Trajectory) -> dict[str, dict[str, Any]]:
    shapes = {key: (*pixels.shape[1:3], 3) for key, pixels in trajectory.images.items()}
    kinds = {REWARD: "float32", DONE: "bool", SUCCESS: "bool"}
    return {
        **trajectory.table.features(shapes),
        **{key: {"dtype": kind, "shape": (1,), "names": None} for key, kind in kinds.items()},
    }


def _columns(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Float32 (T, D) states and actions, and reward, end and success of each step, (T, 1)."""
    last = np.arange(len(trajectory.rewards)) == len(trajectory.rewards) - 1
    return {
        "observation.state": trajectory.states,
        "action": trajectory.actions,
        REWARD: trajectory.rewards[:, None],
        DONE: last[:, None],
        SUCCESS: (last & trajectory.success)[:, None],
    }
