"""The configuration of pi0.5 in any size; see `configuration_depi_pi0` for its name."""

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi05.configuration_pi05 import PI05Config

from depi.policies.configuration_sizes import AnySize


@PreTrainedConfig.register_subclass("depi_pi05")
@dataclass
class DepiPi05Config(AnySize, PI05Config):
    """pi0.5 in any size; the defaults train on a laptop. LeRobot's `pi05` is the published size."""
