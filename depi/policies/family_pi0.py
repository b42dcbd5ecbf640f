"""pi0, in the published size and in any other: see `Family`."""

import dataclasses

from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.processor_pi0 import make_pi0_pre_post_processors

from depi.errors import UserError
from depi.models.pi0 import Pi0, Pi0Dimensions
from depi.policies.configuration_depi_pi0 import DepiPi0Config
from depi.policies.convert import lerobot_layout
from depi.policies.families import Family
from depi.policies.pi0 import Pi0Policy
from depi.policies.trust import PI0_STEPS

EXPERT_SIZES = {"gemma_300m": (1024, 4096), "gemma_2b": (2048, 16_384)}  # width, MLP size


def dimensions(config: PI0Config) -> Pi0Dimensions:
    """The network's sizes.

    Raises:
        UserError: the configuration asks for something that DePi does not do.
        ValueError: sizes do not fit together.
    """
    refuse_unsupported(config)
    shared = {
        "image_size": config.image_resolution[0],
        "chunk_size": config.chunk_size,
        "state_dim": config.max_state_dim,
        "action_dim": config.max_action_dim,
        "min_period": config.min_period,
        "max_period": config.max_period,
    }
    if isinstance(config, DepiPi0Config):
        names = {field.name for field in dataclasses.fields(Pi0Dimensions)} - set(shared)
        return Pi0Dimensions(**shared, **{name: getattr(config, name) for name in names})
    width, mlp_dim = EXPERT_SIZES[config.action_expert_variant]
    return Pi0Dimensions.full(**shared, expert_width=width, expert_mlp_dim=mlp_dim)


def refuse_unsupported(config: PI0Config) -> None:
    """Raise a UserError for settings that would otherwise be ignored."""
    problems = {
        f"paligemma_variant {config.paligemma_variant} is not available; use gemma_2b": (
            config.paligemma_variant != "gemma_2b"
        ),
        "time_sampling_beta_beta other than 1 is not available": config.time_sampling_beta_beta != 1.0,
        f"n_obs_steps {config.n_obs_steps} is not available; pi0 sees one observation": config.n_obs_steps
        != 1,
    }
    for problem, present in problems.items():
        if present:
            raise UserError(f"policy configuration: {problem}")


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
