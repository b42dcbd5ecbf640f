"""What can be set with `--robot.*`."""

from dataclasses import dataclass, field

from lerobot.robots import RobotConfig


@RobotConfig.register_subclass("sim_so101")
@dataclass(kw_only=True)
class SimSo101Config(RobotConfig):
    """A simulated arm at a table with a cube.

    Attributes:
        task: touch or pick_lift.
        views: each is a camera: wrist, front, side or top.
        width, height: pixels of every camera.
        fps: control steps per second; give LeRobot's command the same.
        seed: of the first episode; it says where the cube lies. Each further episode has the next one.
        new_episode_after_s: where no action came for so many seconds, as while `lerobot-record` saves an
            episode, the arm goes home and the cube is put elsewhere; 0: never.
    """

    task: str = "touch"
    views: list[str] = field(default_factory=lambda: ["front", "wrist"])
    width: int = 64
    height: int = 48
    fps: int = 10
    seed: int = 0
    new_episode_after_s: float = 0.0
