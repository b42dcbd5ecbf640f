"""A family of policies that DePi does not know, as a developer adds one."""

import dataclasses
from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig

from depi.policies.configuration_depi_pi0 import DepiPi0Config
from depi.policies.convert import own_layout
from depi.policies.family_pi0 import FAMILY as PI0
from depi.policies.pi0 import Pi0Policy


@PreTrainedConfig.register_subclass("toy")
@dataclass
class ToyConfig(DepiPi0Config):
    pass


class ToyPolicy(Pi0Policy):
    config_class, name = ToyConfig, "toy"


FAMILY = dataclasses.replace(
    PI0,
    name="toy",
    configs={"toy": ToyConfig},
    policy=ToyPolicy,
    layout=own_layout,
    stock=(),
    about="A toy `{type}`",
    output=lambda config: f"- Toys: {config.chunk_size}.",
)
