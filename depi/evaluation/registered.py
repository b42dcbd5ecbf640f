"""DePi's simulated SO-101 among the environments that LeRobot's `--env.type` chooses from."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.envs.configs import EnvConfig


@EnvConfig.register_subclass("so101")
@dataclass
class So101EnvConfig(EnvConfig):
    """The tasks of `depi sim`, with cameras by their kind: front, wrist, top or side."""

    task: str | None = "touch"
    fps: int = 10
    cameras: list[str] = field(default_factory=lambda: ["front", "wrist"])
    # standard; a rig drawn for each episode, seen or unseen; or a JSON file with a list of rigs.
    setups: str = "standard"
    episode_length: int | None = None
    observation_height: int | None = None
    observation_width: int | None = None

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Nothing: `depi.sim.env.make_env` makes it, not gymnasium."""
        return {}
