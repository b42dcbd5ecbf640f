"""The simulated arm: it moves when an action is sent, by one control period, however long that takes."""

import time
from typing import Any

import numpy as np
from lerobot.robots import Robot
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from depi.datasets.recording.joints import JOINTS
from depi.sim.env import make_env
from depi.sim.setup import Camera, Setup
from lerobot_robot_sim_so101.config_sim_so101 import SimSo101Config

KEYS = tuple(f"{joint}.pos" for joint in JOINTS)

connected: list["SimSo101"] = []
"""The arms of this process; the expert moves the last one."""


class SimSo101(Robot):
    """An SO-101 in degrees with the zero mid-range, gripper 0 to 100, as `so101_follower` is by default.

    Attributes:
        env: the `depi.sim` environment, None while not connected.
        episode: counts the episodes that were begun.
        success: the task is done, after the last action.
    """

    config_class = SimSo101Config
    name = "sim_so101"

    def __init__(self, config: SimSo101Config):
        super().__init__(config)
        self.config = config
        self.cameras = dict.fromkeys(config.views)
        self.env: Any = None
        self.episode = 0
        self.success = False
        self._acted = 0.0

    @property
    def observation_features(self) -> dict[str, Any]:
        """float per joint, (height, width, 3) per camera."""
        frame = (self.config.height, self.config.width, 3)
        return {**dict.fromkeys(KEYS, float), **dict.fromkeys(self.config.views, frame)}

    @property
    def action_features(self) -> dict[str, type]:
        """float per joint."""
        return dict.fromkeys(KEYS, float)

    @property
    def is_connected(self) -> bool:
        """Whether there is a simulation."""
        return self.env is not None

    @property
    def is_calibrated(self) -> bool:
        """Always: the simulated joints are exact."""
        return True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def connect(self, calibrate: bool = True) -> None:
        """Build the scene and begin the first episode."""
        if self.is_connected:
            raise DeviceAlreadyConnectedError(f"{self} is already connected")
        config = self.config
        cameras = tuple(Camera(view, view) for view in config.views)
        setup = Setup(cameras, config.width, config.height, fps=config.fps)
        self.env = make_env(config.task, setup)
        connected.append(self)
        self.begin_episode()

    def begin_episode(self) -> None:
        """Put the arm into its home position and the cube elsewhere."""
        self._observation, _ = self.env.reset(seed=self.config.seed + self.episode)
        self.episode, self.success = self.episode + 1, False
        self._acted = time.monotonic()

    def get_observation(self) -> dict[str, Any]:
        """Joints in degrees by `<joint>.pos`, images uint8 [H, W, 3] by camera."""
        self._refuse_unconnected()
        pause = self.config.new_episode_after_s
        if pause and time.monotonic() - self._acted > pause:
            self.begin_episode()
        state, images = self._observation["state"], self._observation["images"]
        return {**{key: float(value) for key, value in zip(KEYS, state, strict=True)}, **images}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        """Move for one control period towards these joints; returns them as far as the arm can follow."""
        self._refuse_unconnected()
        space = self.env.action_space
        target = np.clip([action[key] for key in KEYS], space.low, space.high)
        self._observation, _, self.success, _, _ = self.env.step(target)
        self._acted = time.monotonic()
        return {key: float(value) for key, value in zip(KEYS, target, strict=True)}

    def disconnect(self) -> None:
        """End the simulation."""
        self._refuse_unconnected()
        self.env.close()
        self.env = None
        connected.remove(self)

    def _refuse_unconnected(self) -> None:
        if not self.is_connected:
            raise DeviceNotConnectedError(f"{self} is not connected")
