"""RECAP's value function: see `Family`."""

from lerobot.policies.pi0.processor_pi0 import make_pi0_pre_post_processors

from depi.models.value import ValueDimensions, ValueNetwork
from depi.policies.configuration_value import SIZE_NAMES, ValueConfig
from depi.policies.convert import own_layout
from depi.policies.families import Family
from depi.policies.trust import PI0_STEPS
from depi.policies.value import ValuePolicy


def dimensions(config: ValueConfig) -> ValueDimensions:
    """The network's sizes; ValueError where they do not fit together."""
    sizes = {name: getattr(config, name) for name in SIZE_NAMES}
    return ValueDimensions(
        image_size=config.image_resolution[0],
        state_dim=config.max_state_dim,
        bins=config.number_of_bins,
        **sizes,
    )


def _output(config: ValueConfig) -> str:
    return (
        f"- Value: -1 to 0 in {config.number_of_bins} bins: minus the frames that are left to success, "
        f"and {config.c_fail:g} more before a failure, divided by {config.reward_normalizer:g}."
    )


FAMILY = Family(
    name="value",
    configs={"value": ValueConfig},
    policy=ValuePolicy,
    network=ValueNetwork,
    dimensions=dimensions,
    layout=own_layout,
    processors=make_pi0_pre_post_processors,
    allowed=PI0_STEPS,
    needs=("return",),
    acts=False,
    about="A value function: how far from success a frame is, from images, joints and instruction",
    output=_output,
    usage=(
        "depi value plot --policy.path=THIS_REPOSITORY_OR_FOLDER --dataset.repo_id=YOU/NAME --episode=0",
        "depi advantage --policy.path=THIS_REPOSITORY_OR_FOLDER --dataset.repo_id=YOU/NAME",
    ),
)
