"""What can be set with `--teleop.*`."""

from dataclasses import dataclass

from lerobot.teleoperators import TeleoperatorConfig


@TeleoperatorConfig.register_subclass("sim_so101_expert")
@dataclass(kw_only=True)
class SimSo101ExpertConfig(TeleoperatorConfig):
    """A scripted expert in the place of a leader arm, for the simulated arm of the same process.

    Attributes:
        repeat_after_s: when the task is done and the arm has rested for so many seconds, begin a new episode;
            0: rest until the arm begins one (`--robot.new_episode_after_s`).
    """

    repeat_after_s: float = 0.0
