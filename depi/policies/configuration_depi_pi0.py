"""The configuration of pi0 in any size.

LeRobot's factory finds what belongs to a policy type by module name: from `configuration_depi_pi0` it goes to
`modeling_depi_pi0` for the policy and to `processor_depi_pi0` for its pipelines.
"""

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config

from depi.policies.configuration_sizes import AnySize


@PreTrainedConfig.register_subclass("depi_pi0")
@dataclass
class DepiPi0Config(AnySize, PI0Config):
    """pi0 in any size; the defaults train on a laptop's processor. LeRobot's `pi0` is the published size."""
