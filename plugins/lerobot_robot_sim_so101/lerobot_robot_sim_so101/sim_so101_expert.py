"""A scripted expert in the place of a leader arm."""

from typing import Any

from lerobot.teleoperators import Teleoperator
from lerobot.utils.errors import DeviceNotConnectedError

from depi.sim.expert import Expert
from lerobot_robot_sim_so101.config_sim_so101_expert import SimSo101ExpertConfig
from lerobot_robot_sim_so101.sim_so101 import KEYS, SimSo101, connected


class SimSo101Expert(Teleoperator):
    """It looks into the simulation of the arm that is connected in the same process, and solves its task."""

    config_class = SimSo101ExpertConfig
    name = "sim_so101_expert"

    def __init__(self, config: SimSo101ExpertConfig):
        super().__init__(config)
        self.config = config
        self._connected = False
        self._expert: Expert | None = None
        self._episode = 0
        self._rested = 0

    @property
    def action_features(self) -> dict[str, type]:
        """float per joint."""
        return dict.fromkeys(KEYS, float)

    @property
    def feedback_features(self) -> dict[str, type]:
        """None."""
        return {}

    @property
    def is_connected(self) -> bool:
        """Whether it may be asked for actions."""
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        """Always."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Nothing but the state: LeRobot connects the robot later."""
        self._connected = True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_action(self) -> dict[str, float]:
        """The next target, degrees by `<joint>.pos`."""
        if not connected:
            raise DeviceNotConnectedError("the expert moves --robot.type=sim_so101 only, and there is none")
        arm = connected[-1]
        if self._episode == arm.episode and self._is_rested(arm):
            arm.begin_episode()
        if self._episode != arm.episode:
            self._expert, self._episode, self._rested = Expert(arm.env), arm.episode, 0
            self._expert.reset()
        assert self._expert is not None
        target = self._expert()
        return {key: float(value) for key, value in zip(KEYS, target, strict=True)}

    def _is_rested(self, arm: SimSo101) -> bool:
        """Whether the task has been done for as long as the configuration says."""
        self._rested += arm.success
        rest = self.config.repeat_after_s
        return rest > 0 and self._rested > rest * arm.config.fps

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """Nothing to do."""

    def disconnect(self) -> None:
        """Forget the arm."""
        self._connected = False
        self._expert, self._episode = None, 0
