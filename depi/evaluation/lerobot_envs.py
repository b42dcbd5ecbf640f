"""Environments of LeRobot's factory as one gymnasium environment; used only in a separate process."""

import logging
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from lerobot.envs.configs import EnvConfig as LeRobotEnvConfig
from lerobot.envs.configs import HubEnvConfig
from lerobot.envs.factory import make_env
from lerobot.envs.utils import preprocess_observation
from lerobot.utils.constants import ACTION, OBS_STATE

from depi.errors import UserError
from depi.evaluation.config import EnvironmentConfig
from depi.evaluation.environments import EXTRAS
from depi.other_programs import VALUES


def known_types() -> list[str]:
    """The types in LeRobot's registry, without those that run code of the Hub."""
    choices = LeRobotEnvConfig.get_known_choices()
    return sorted(name for name, cls in choices.items() if not issubclass(cls, HubEnvConfig))


class LeRobotEnv(gym.Env):
    """The tasks of one LeRobot environment, one after another: episode i plays task i modulo their number.

    Observations are `pixels`, camera name -> uint8 (H, W, 3), and `agent_pos`, float32, both as LeRobot's own
    evaluation makes them, with the environment's processors.

    Raises:
        UserError: unknown type or options, or its package is missing.
    """

    def __init__(self, config: EnvironmentConfig):
        self._config = _lerobot_config(config)
        try:
            suites = make_env(self._config, n_envs=1, use_async_envs=False)
        except (ImportError, ModuleNotFoundError) as error:
            remedy = EXTRAS.get(config.type, f"uv pip install 'lerobot[{config.type}]'")
            raise UserError(
                f"--env.type={config.type} needs a package that is missing ({error}): {remedy}"
            ) from None
        self._envs = [vector.envs[0] for tasks in suites.values() for vector in tasks.values()]
        self._before, self._after = self._config.get_env_processors()
        self.turn = 0
        self.metadata = {"render_fps": self._config.fps}
        self.action_space = self._envs[0].action_space
        first, _ = self.reset(seed=0)
        pictures: dict[str, gym.Space] = {
            name: spaces.Box(0, 255, image.shape, np.uint8) for name, image in first["pixels"].items()
        }
        state = spaces.Box(-np.inf, np.inf, first["agent_pos"].shape, np.float32)
        self.observation_space = spaces.Dict({"pixels": spaces.Dict(pictures), "agent_pos": state})

    @property
    def _env(self) -> gym.Env:
        return self._envs[self.turn % len(self._envs)]

    @property
    def task_description(self) -> str:
        """The instruction of the current task."""
        for name in ("task_description", "task"):
            text = getattr(self._env.unwrapped, name, None)
            if isinstance(text, str) and text:
                return text
        return ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begin an episode of the task whose `turn` it is, from the start that belongs to the turn."""
        env: Any = self._env.unwrapped
        if hasattr(env, "init_state_id"):
            # LIBERO counts its resets itself, so episodes would depend on the number of processes.
            env.init_state_id = self.turn // len(self._envs)
        observation, info = self._env.reset(seed=seed, options=options)
        return self._observe(observation), info

    def step(self, action):
        """Take one step; the action is float32 (action_dim,)."""
        batch = {ACTION: torch.from_numpy(np.asarray(action, np.float32))[None]}
        taken = self._after(batch)[ACTION][0].numpy()
        observation, reward, terminated, truncated, info = self._env.step(taken)
        return self._observe(observation), reward, terminated, truncated, info

    def render(self):
        """The image that LeRobot records in videos."""
        return self._env.render()

    def close(self) -> None:
        """Close all tasks."""
        for env in self._envs:
            env.close()

    def _observe(self, observation: Any) -> dict[str, Any]:
        seen = self._before(preprocess_observation(_with_batch(observation)))
        state = seen.get(OBS_STATE)
        pixels = {
            key.removeprefix("observation.").removeprefix("images."): _to_uint8(value[0])
            for key, value in seen.items()
            if key.startswith("observation.image")
        }
        if state is None or not pixels:
            raise UserError(f"--env.type={self._config.type} gives no cameras or no state: {', '.join(seen)}")
        return {"pixels": pixels, "agent_pos": state[0].numpy().astype(np.float32)}


def _lerobot_config(config: EnvironmentConfig) -> LeRobotEnvConfig:
    import draccus

    if config.type not in known_types():
        gone = VALUES["env.type"].get(config.type)
        why = f": {gone}" if gone else f" is none of {', '.join(known_types())}"
        raise UserError(f"--env.type={config.type}{why}")
    fields: dict[str, Any] = dict(config.options)
    for name in ("task", "fps", "episode_length", "observation_height", "observation_width"):
        if getattr(config, name) is not None:
            fields[name] = getattr(config, name)
    logging.getLogger("lerobot").setLevel(logging.WARNING)
    try:
        return draccus.decode(LeRobotEnvConfig.get_choice_class(config.type), fields)
    except Exception as error:  # the errors of draccus have no common class
        raise UserError(f"--env.type={config.type}: {' '.join(str(error).split())}") from None


def _with_batch(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_batch(inner) for key, inner in value.items()}
    return np.asarray(value)[None]


def _to_uint8(image: torch.Tensor) -> np.ndarray:
    """Float 0..1 (3, H, W), as LeRobot makes it, back to uint8 (H, W, 3), exactly."""
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
