"""A simulated SO-101 behind LeRobot's robot interface: `--robot.type=sim_so101`."""

from lerobot_robot_sim_so101.config_sim_so101 import SimSo101Config
from lerobot_robot_sim_so101.sim_so101 import SimSo101

__all__ = ["SimSo101", "SimSo101Config"]
