"""Descriptions of environments: one table for each, checked against policies and simulators.

The table says under which names the environment's cameras, state and actions appear in a dataset recorded in
it. Training on such a dataset and rolling a policy out therefore agree on names, sizes and units.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from depi.datasets.recording.joints import JOINTS
from depi.errors import UserError
from depi.evaluation.config import DRAWN_SETUPS, EnvironmentConfig
from depi.sim.gym_tasks import GYM_TASKS, GymTask
from depi.sim.setup import Camera, Setup, random_setup, read_setups
from depi.sim.tasks import find_task

DEFAULT_CAMERAS = ("front", "wrist")
# What to install where a simulator's package is missing.
EXTRAS = {
    "so101": "uv pip install 'depi[sim]'",
    "pusht": "uv pip install 'lerobot[pusht]'",
    "aloha": "uv pip install 'lerobot[aloha]'",
    "libero": "uv pip install 'lerobot[libero]'",
    "metaworld": "uv pip install 'lerobot[metaworld]'",
}


@dataclass(frozen=True)
class EnvTable:
    """The names, sizes and units of an environment's observations and actions in datasets.

    Attributes:
        cameras: dataset key, such as `observation.images.top` -> path in the environment's observation, such
            as `pixels/top`: uint8 (H, W, 3).
        state: paths whose values, one after another, are `observation.state`.
        state_names, action_names: a name for each number, so their counts are the dimensions.
        convention: units: `degrees` (canonical joints of an SO-101) or `native`, the environment's own.
        fps: control steps per second.
        success: the key of `info` that says whether the task is done.
        max_steps: an episode is truncated after this many.
        instruction: the task's text, None where the environment gives it at each reset.
        robot_type: as datasets name it.
        recorded_convention: the units in which this rig's owner would record; `degrees` or as `convention`.
    """

    cameras: Mapping[str, str]
    state: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    fps: int
    max_steps: int
    instruction: str | None = None
    convention: str = "native"
    success: str = "is_success"
    robot_type: str = "unknown"
    recorded_convention: str | None = None

    @property
    def state_dim(self) -> int:
        """How many numbers the state has."""
        return len(self.state_names)

    @property
    def action_dim(self) -> int:
        """How many numbers an action has."""
        return len(self.action_names)

    def features(self, images: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
        """LeRobot's features of a dataset recorded here; `images` are shapes (H, W, 3) by camera key."""
        vectors = {"observation.state": self.state_names, "action": self.action_names}
        features: dict[str, dict[str, Any]] = {
            key: {"dtype": "float32", "shape": (len(names),), "names": list(names)}
            for key, names in vectors.items()
        }
        for key in self.cameras:
            axes = ["height", "width", "channels"]
            features[key] = {"dtype": "video", "shape": tuple(images[key]), "names": axes}
        return features


def resolve(env: Any) -> EnvironmentConfig:
    """The settings of an environment with all defaults, from `depi eval`'s flags or LeRobot's `EnvConfig`.

    Raises:
        UserError: unknown task or setups.
    """
    if not isinstance(env, EnvironmentConfig):
        env = _from_lerobot(env)
    if not env.type:
        env = dataclasses.replace(env, type="so101")
    defaults: dict[str, Any] = {}
    if env.type == "so101":
        defaults = {"task": "touch", "fps": 10, "cameras": list(DEFAULT_CAMERAS)}
    if env.type in TABLES:
        task, table = next(iter(TABLES[env.type].items()))
        size = (384, 384) if env.type == "pusht" else (480, 640)
        defaults = {"task": task, "fps": table.fps, "episode_length": table.max_steps}
        defaults |= {"observation_height": size[0], "observation_width": size[1]}
        if env.fps not in (None, table.fps):
            raise UserError(
                f"--env.fps={env.fps}: {env.type} has {table.fps} steps per second, no other rate"
            )
    env = dataclasses.replace(
        env, **{name: value for name, value in defaults.items() if getattr(env, name) is None}
    )
    if env.setups != "standard" and env.type != "so101":
        raise UserError(f"--env.setups goes with --env.type=so101, not {env.type}")
    chosen = env.cameras is not None and tuple(env.cameras) != DEFAULT_CAMERAS
    if chosen and (env.type != "so101" or env.setups != "standard"):
        raise UserError("--env.cameras goes with --env.type=so101 and --env.setups=standard alone")
    if env.options and env.type == "so101":
        raise UserError("--env.options goes with other environments than --env.type=so101")
    for name in ("episode_length", "fps", "observation_height", "observation_width"):
        value = getattr(env, name)
        if value is not None and value < 1:
            raise UserError(f"--env.{name} must be at least 1, not {value}")
    if env.type == "so101":
        find_task(env.task or "")
        so101_setup(env, 0)
    elif env.type in TABLES and env.task not in TABLES[env.type]:
        raise UserError(f"--env.task={env.task} is none of {', '.join(TABLES[env.type])}")
    return env


def _from_lerobot(env: Any) -> EnvironmentConfig:
    """LeRobot's configuration of an environment as one of `depi eval`."""
    import draccus

    kind = env.type
    names = {field.name for field in dataclasses.fields(EnvironmentConfig)} - {"options"}
    known = {name: getattr(env, name) for name in names - {"type"} if hasattr(env, name)}
    if kind == "so101":
        return EnvironmentConfig(type=kind, **known)
    if kind in TABLES:
        if env.obs_type != "pixels_agent_pos":
            raise UserError(f"--env.obs_type={env.obs_type} has no cameras or no state: use pixels_agent_pos")
        return EnvironmentConfig(type=kind, **known)
    encoded = draccus.encode(env)
    options = {name: value for name, value in encoded.items() if name not in ("type", "features", "task")}
    return EnvironmentConfig(type=kind, task=env.task, options=options)


def so101_setup(env: EnvironmentConfig, seed: int) -> Setup:
    """The rig of one episode of so101: the standard one, drawn from the seed, or one of a file's.

    Every rig is controlled at `--env.fps`, because the policy decides the rate.

    Raises:
        UserError: an impossible camera, rate or size, or a file without setups.
    """
    fps = env.fps or 10
    size: dict[str, Any] = {}
    if env.observation_height is not None:
        size["height"] = env.observation_height
    if env.observation_width is not None:
        size["width"] = env.observation_width
    if env.setups == "standard":
        kinds = DEFAULT_CAMERAS if env.cameras is None else env.cameras
        setup = Setup(cameras=tuple(Camera(kind, kind) for kind in kinds))
    elif env.setups in DRAWN_SETUPS:
        setup = random_setup(seed, env.setups)
    else:
        setups = _setups_of_file(env.setups)
        setup = setups[seed % len(setups)]
    if not setup.cameras:
        raise UserError("the environment has no camera, the policy needs at least one: --env.cameras")
    return dataclasses.replace(setup, fps=fps, **size)


@functools.lru_cache
def _setups_of_file(name: str) -> tuple[Setup, ...]:
    if not Path(name).exists():
        raise UserError(f"--env.setups={name} is neither standard, {', '.join(DRAWN_SETUPS)} nor a file")
    return read_setups(Path(name))


def so101_table(env: EnvironmentConfig, seed: int) -> EnvTable:
    """The table of one episode of so101."""
    setup = so101_setup(env, seed)
    task = find_task(env.task or "")
    names = tuple(f"{joint}.pos" for joint in JOINTS)
    return EnvTable(
        cameras={f"observation.images.{camera.name}": f"images/{camera.name}" for camera in setup.cameras},
        state=("state",),
        state_names=names,
        action_names=names,
        fps=setup.fps,
        max_steps=env.episode_length or round(task.max_seconds * setup.fps),
        instruction=env.instruction or task.instruction(setup),
        convention="degrees",
        robot_type=setup.robot_type,
        recorded_convention=setup.convention,
    )


def _gym_table(task: GymTask, picture: str) -> EnvTable:
    return EnvTable(
        cameras={task.camera: picture},
        state=("agent_pos",),
        state_names=task.names,
        action_names=task.names,
        fps=task.fps,
        max_steps=task.max_steps,
        instruction=task.text,
        robot_type=task.robot_type,
    )


_ALOHA = _gym_table(GYM_TASKS["aloha_transfer_cube"], "pixels/top")
# Environments whose table is known beforehand: type -> task -> table. so101's depends on the rig.
TABLES: dict[str, dict[str, EnvTable]] = {
    "pusht": {"PushT-v0": _gym_table(GYM_TASKS["pusht"], "pixels")},
    "aloha": {
        "AlohaTransferCube-v0": _ALOHA,
        "AlohaInsertion-v0": dataclasses.replace(_ALOHA, instruction="Insert the peg into the socket."),
    },
}


def find_table(env: EnvironmentConfig, seed: int = 0) -> EnvTable | None:
    """The table of an episode, or None where only the environment knows it (LeRobot's others, gym ids).

    Args:
        env: as `resolve` gives it.
        seed: of the episode; so101's rigs depend on it with `--env.setups=seen` or `unseen`.
    """
    if env.type == "so101":
        return so101_table(env, seed)
    table = TABLES.get(env.type, {}).get(env.task or "")
    if table is None:
        return None
    return dataclasses.replace(
        table,
        max_steps=env.episode_length or table.max_steps,
        instruction=env.instruction or table.instruction,
    )


def look_up(observation: Any, path: str) -> Any:
    """The value at a path such as `pixels/top`; the empty path is the observation itself.

    Raises:
        UserError: the observation has no such key.
    """
    value = observation
    for part in path.split("/") if path else ():
        try:
            value = value[part]
        except (KeyError, TypeError, IndexError):
            raise UserError(
                f"the environment's observation has no {path!r}; it has {_names(observation)}"
            ) from None
    return value


def _names(observation: Any) -> str:
    if isinstance(observation, Mapping) or hasattr(observation, "keys"):
        return ", ".join(map(str, observation.keys())) or "nothing"
    return f"one {type(observation).__name__}"


def images_of(table: EnvTable, observation: Any) -> dict[str, np.ndarray]:
    """The cameras' pictures, uint8 (H, W, 3), by dataset key."""
    return {key: np.ascontiguousarray(look_up(observation, path)) for key, path in table.cameras.items()}


def state_of(table: EnvTable, observation: Any) -> np.ndarray:
    """The state, float32 (state_dim,)."""
    parts = [np.asarray(look_up(observation, path), np.float32).ravel() for path in table.state]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def check_observation(table: EnvTable, observation: Any) -> None:
    """Raise a UserError where an environment's first observation differs from its table."""
    for key, image in images_of(table, observation).items():
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"the environment's camera {key} gives {image.dtype} {image.shape}, not uint8 (H, W, 3)"
            )
    size = len(state_of(table, observation))
    if size != table.state_dim:
        raise UserError(f"the environment's state has {size} values, expected {table.state_dim}")
