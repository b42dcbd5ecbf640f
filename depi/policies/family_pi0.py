"""pi0, in the published size and in any other: see `Family`."""

from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.processor_pi0 import make_pi0_pre_post_processors

from depi.models.flow import FlowDimensions
from depi.models.pi0 import Pi0, Pi0Dimensions
from depi.policies.configuration_depi_pi0 import DepiPi0Config
from depi.policies.configuration_sizes import flow_dimensions, refuse_unsupported
from depi.policies.convert import lerobot_layout
from depi.policies.families import Family
from depi.policies.pi0 import Pi0Policy
from depi.policies.trust import PI0_STEPS


def dimensions(config: PI0Config) -> FlowDimensions:
    """The network's sizes.

    Raises:
        UserError: the configuration asks for something that DePi does not do.
        ValueError: sizes do not fit together.
    """
    refuse_unsupported(config)
    return flow_dimensions(config, Pi0Dimensions)


def _output(config: PI0Config) -> str:
    names = config.action_feature_names or []
    line = f"- Action: chunks of {config.chunk_size} steps of {len(names)} joints: {', '.join(names)}."
    if not config.use_relative_actions:
        return line
    absolute = ", ".join(config.relative_exclude_joints) or "none"
    return (
        f"{line} The network's actions are relative to the state at the chunk's first step (absolute: "
        f"{absolute}); the saved processors turn whole chunks into absolute ones, single actions of later "
        "steps they cannot, so do not run it with `lerobot-eval`."
    )


FAMILY = Family(
    name="pi0",
    configs={"pi0": PI0Config, "depi_pi0": DepiPi0Config},
    policy=Pi0Policy,
    network=Pi0,
    dimensions=dimensions,
    layout=lerobot_layout,
    processors=make_pi0_pre_post_processors,
    allowed=PI0_STEPS,
    needs=("flow",),
    stock=("pi0",),
    about="A `{type}` vision-language-action policy",
    output=_output,
)
