"""What can be set with `--robot.*`."""

from dataclasses import dataclass, field

from lerobot.robots import RobotConfig


@RobotConfig.register_subclass("sim_so101")
@dataclass(kw_only=True)
class SimSo101Config(RobotConfig):
    """A simulated arm at a table with a cube."""

    task: str = "touch"
    # Each is a camera: "wrist", "front", "side" or "top".
    views: list[str] = field(default_factory=lambda: ["front", "wrist"])
    width: int = 64
    height: int = 48
    fps: int = 10
    seed: int = 0
