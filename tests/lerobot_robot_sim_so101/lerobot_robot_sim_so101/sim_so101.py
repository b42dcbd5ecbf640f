"""The simulated arm: it moves when an action is sent, by one control period, however long that takes."""

from typing import Any

import numpy as np
from lerobot.robots import Robot
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from depi.datasets.recording.joints import JOINTS
from depi.sim.env import make_env
from depi.sim.setup import Camera, Setup
from lerobot_robot_sim_so101.config_sim_so101 import SimSo101Config

KEYS = tuple(f"{joint}.pos" for joint in JOINTS)


class SimSo101(Robot):
    """An SO-101 in degrees with the zero mid-range, gripper 0 to 100, as `so101_follower` is by default."""

    config_class = SimSo101Config
    name = "sim_so101"

    def __init__(self, config: SimSo101Config):
        super().__init__(config)
        self.config = config
        self.cameras = dict.fromkeys(config.views)
        self._env = None

    @property
    def observation_features(self) -> dict[str, Any]:
        frame = (self.config.height, self.config.width, 3)
        return {**dict.fromkeys(KEYS, float), **dict.fromkeys(self.config.views, frame)}

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(KEYS, float)

    @property
    def is_connected(self) -> bool:
        return self._env is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass

    def connect(self, calibrate: bool = True) -> None:
        if self.is_connected:
            raise DeviceAlreadyConnectedError(f"{self} is already connected")
        config = self.config
        cameras = tuple(Camera(view, view) for view in config.views)
        setup = Setup(cameras, config.width, config.height, fps=config.fps)
        self._env = make_env(config.task, setup)
        self._observation, _ = self._env.reset(seed=config.seed)

    def get_observation(self) -> dict[str, Any]:
        self._refuse_unconnected()
        state, images = self._observation["state"], self._observation["images"]
        return {**{key: float(value) for key, value in zip(KEYS, state, strict=True)}, **images}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self._refuse_unconnected()
        space = self._env.action_space
        target = np.clip([action[key] for key in KEYS], space.low, space.high)
        self._observation, *_ = self._env.step(target)
        return {key: float(value) for key, value in zip(KEYS, target, strict=True)}

    def disconnect(self) -> None:
        self._refuse_unconnected()
        self._env.close()
        self._env = None

    def _refuse_unconnected(self) -> None:
        if not self.is_connected:
            raise DeviceNotConnectedError(f"{self} is not connected")
