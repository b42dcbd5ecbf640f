"""The environments behind an evaluation, as their own processes drive them. Imports neither torch nor LeRobot
unless the environment is one of LeRobot's."""

import contextlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from depi.errors import UserError
from depi.evaluation.config import EnvironmentConfig
from depi.evaluation.environments import EXTRAS, EnvTable, check_observation, find_table, so101_setup
from depi.sim.gl import REMEDY, select_backend

# An episode of a gym environment without a limit of its own is truncated after this many steps.
DEFAULT_STEPS = 1000


class Simulator:
    """One gymnasium environment, and the table of the episode that runs in it."""

    def __init__(self, config: EnvironmentConfig):
        self.config = config
        self.table: EnvTable | None = None
        self._env: gym.Env | None = None
        self._made_for: Any = None
        self._checked = False

    @property
    def env(self) -> gym.Env:
        """The environment of the current episode."""
        assert self._env is not None
        return self._env

    def open(self, seed: int) -> EnvTable:
        """Make the environment of an episode, or reuse the one before.

        Raises:
            UserError: it cannot be made, or differs from its table.
        """
        key = so101_setup(self.config, seed) if self.config.type == "so101" else None
        if self._env is None or key != self._made_for:
            self.close()
            self._env, self._made_for = self._make(seed), key
            self._checked = False
        table = find_table(self.config, seed) or self._table_of_spaces()
        _check_spaces(table, self.env)
        self.table = table
        return table

    def reset(self, index: int, seed: int) -> Any:
        """Begin an episode and return its first observation."""
        table = self.open(seed)
        if hasattr(self.env.unwrapped, "turn"):
            self.env.unwrapped.turn = index
        observation, _ = self.env.reset(seed=seed)
        if not self._checked:
            check_observation(table, observation)
            self._checked = True
        return observation

    def look(self, wanted: bool) -> None:
        """Set whether the next observations need images; some environments always draw them."""
        env = self.env.unwrapped
        if hasattr(env, "with_images"):
            env.with_images = wanted

    def frame(self) -> np.ndarray | None:
        """The rendered scene, uint8 (H, W, 3); None where the environment does not render."""
        with contextlib.suppress(Exception):
            frame = np.asarray(self.env.render())
            if frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
                return frame
        return None

    def instruction(self) -> str:
        """The task's text.

        Raises:
            UserError: neither flag nor environment gives it.
        """
        assert self.table is not None
        if self.table.instruction is not None:
            return self.table.instruction
        env = self.env.unwrapped
        for name in ("task_description", "instruction"):
            text = getattr(env, name, None)
            if isinstance(text, str) and text:
                return text
        return ""

    def close(self) -> None:
        """Close the environment."""
        if self._env is not None:
            with contextlib.suppress(Exception):
                self._env.close()
        self._env = None

    def _make(self, seed: int) -> gym.Env:
        config = self.config
        if config.type != "pusht" and select_backend() == "disable" and config.type == "aloha":
            raise UserError(f"the simulator cannot render on this machine: {REMEDY}")
        try:
            if config.type == "so101":
                from depi.sim.env import make_env

                setup = so101_setup(config, seed)
                return make_env(config.task or "", setup, seed=seed, max_steps=config.episode_length)
            return _make_gym(config) if _is_gym(config.type) else _make_lerobot(config)
        except ModuleNotFoundError as error:
            remedy = EXTRAS.get(config.type, "install it, or correct the id")
            raise UserError(f"--env.type={config.type}: {error}; {remedy}") from None

    def _table_of_spaces(self) -> EnvTable:
        """The table of an unknown environment, from its spaces and gym's usual names."""
        space, actions = self.env.observation_space, self.env.action_space
        if not isinstance(actions, spaces.Box) or len(actions.shape) != 1:
            raise UserError(f"--env.type={self.config.type}: actions must be a vector, not {actions}")
        cameras = _cameras(space)
        if not isinstance(space, spaces.Dict) or "agent_pos" not in space.spaces or not cameras:
            raise UserError(
                f"--env.type={self.config.type}: observations must be a dict with `agent_pos` (a vector) and "
                f"`pixels` (a picture or a dict of them), not {space}"
            )
        state = int(np.prod(space["agent_pos"].shape or ()))
        limit = self.config.episode_length or (self.env.spec.max_episode_steps if self.env.spec else None)
        stated, fps = self.env.metadata.get("render_fps"), self.config.fps
        rate = stated or fps
        if not rate:
            raise UserError(f"--env.type={self.config.type} does not state its rate: give --env.fps")
        if stated and fps and round(stated) != fps:
            raise UserError(f"--env.fps={fps}: {self.config.type} says that its rate is {stated:g}")
        return EnvTable(
            cameras=cameras,
            state=("agent_pos",),
            state_names=tuple(f"state_{number}" for number in range(state)),
            action_names=tuple(f"action_{number}" for number in range(actions.shape[0])),
            fps=round(rate),
            max_steps=limit or DEFAULT_STEPS,
            instruction=self.config.instruction,
        )


def _is_gym(name: str) -> bool:
    """Whether it is an environment of gymnasium's registry, or one that gymnasium imports (`module:id`)."""
    return name in ("pusht", "aloha") or ":" in name or "/" in name or "-v" in name


def _make_lerobot(config: EnvironmentConfig) -> gym.Env:
    from depi.evaluation.lerobot_envs import LeRobotEnv

    return LeRobotEnv(config)


def _cameras(space: gym.Space) -> dict[str, str]:
    pixels = space.spaces.get("pixels") if isinstance(space, spaces.Dict) else None
    if isinstance(pixels, spaces.Dict):
        return {f"observation.images.{name}": f"pixels/{name}" for name in pixels.spaces}
    return {"observation.image": "pixels"} if pixels is not None else {}


def _make_gym(config: EnvironmentConfig) -> gym.Env:
    """A gymnasium environment: pusht, aloha, or any id."""
    arguments: dict[str, Any] = dict(config.options)
    name = config.type
    if config.type in ("pusht", "aloha"):
        __import__(f"gym_{config.type}")
        name = f"gym_{config.type}/{config.task}"
        arguments = {"obs_type": "pixels_agent_pos", "render_mode": "rgb_array", **arguments}
    elif config.task is not None:
        arguments["task"] = config.task
    for flag in ("observation_height", "observation_width"):
        if getattr(config, flag) is not None:
            arguments[flag] = getattr(config, flag)
    if config.episode_length is not None:
        arguments["max_episode_steps"] = config.episode_length
    try:
        env = gym.make(name, disable_env_checker=True, **arguments)
    except gym.error.Error as error:
        raise UserError(f"--env.type={config.type}: {' '.join(str(error).split())}") from None
    except TypeError as error:
        raise UserError(f"--env.type={config.type} does not take these --env flags: {error}") from None
    if config.type == "aloha":
        from depi.sim.aloha import only_top_camera

        only_top_camera(env.unwrapped)
    return env


def _check_spaces(table: EnvTable, env: gym.Env) -> None:
    """Raise a UserError where an environment differs from its table."""
    shape = env.action_space.shape
    if shape != (table.action_dim,):
        raise UserError(f"the environment's actions have the shape {shape}, expected ({table.action_dim},)")
