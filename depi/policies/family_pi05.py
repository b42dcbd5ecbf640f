"""pi0.5, in the published size and in any other: see `Family`."""

import dataclasses

from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.processor_pi05 import make_pi05_pre_post_processors

from depi.models.flow import FlowDimensions
from depi.models.pi05 import Pi05, Pi05Dimensions
from depi.policies.configuration_depi_pi05 import DepiPi05Config
from depi.policies.configuration_sizes import flow_dimensions, refuse_unsupported
from depi.policies.family_pi0 import FAMILY as PI0
from depi.policies.pi05 import Pi05Policy
from depi.policies.trust import PI05_STEPS


def dimensions(config: PI05Config) -> FlowDimensions:
    """The network's sizes.

    Raises:
        UserError: the configuration asks for something that DePi does not do.
        ValueError: sizes do not fit together.
    """
    refuse_unsupported(config)
    return flow_dimensions(config, Pi05Dimensions)


FAMILY = dataclasses.replace(
    PI0,
    name="pi05",
    configs={"pi05": PI05Config, "depi_pi05": DepiPi05Config},
    policy=Pi05Policy,
    network=Pi05,
    dimensions=dimensions,
    processors=make_pi05_pre_post_processors,
    allowed=PI05_STEPS,
    stock=("pi05",),
)
