"""A simulated SO-101 for LeRobot: `--robot.type=sim_so101`, `--teleop.type=sim_so101_expert`."""

from lerobot_robot_sim_so101.config_sim_so101 import SimSo101Config
from lerobot_robot_sim_so101.config_sim_so101_expert import SimSo101ExpertConfig
from lerobot_robot_sim_so101.sim_so101 import SimSo101
from lerobot_robot_sim_so101.sim_so101_expert import SimSo101Expert

__all__ = ["SimSo101", "SimSo101Config", "SimSo101Expert", "SimSo101ExpertConfig"]
