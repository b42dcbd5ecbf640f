"""Policy configurations: LeRobot's own for the published pi0, DePi's for every other size."""

import dataclasses
from typing import Protocol, overload

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.utils.constants import ACTION, OBS_STATE

from depi.errors import UserError
from depi.models.pi0 import Pi0, Pi0Dimensions
from depi.models.value import ValueDimensions, ValueNetwork
from depi.policies.configuration_depi_pi0 import DepiPi0Config
from depi.policies.configuration_value import SIZE_NAMES, ValueConfig

EXPERT_SIZES = {"gemma_300m": (1024, 4096), "gemma_2b": (2048, 16_384)}  # width, MLP size


@overload
def dimensions_of(config: ValueConfig) -> ValueDimensions: ...
@overload
def dimensions_of(config: PI0Config) -> Pi0Dimensions: ...
def dimensions_of(config: PI0Config | ValueConfig) -> Pi0Dimensions | ValueDimensions:
    """The network's sizes for any configuration class.

    Raises:
        UserError: the configuration asks for something that DePi does not do.
    """
    if isinstance(config, ValueConfig):
        return _value_dimensions(config)
    refuse_unsupported(config)
    shared = {
        "image_size": config.image_resolution[0],
        "chunk_size": config.chunk_size,
        "state_dim": config.max_state_dim,
        "action_dim": config.max_action_dim,
        "min_period": config.min_period,
        "max_period": config.max_period,
    }
    try:
        if isinstance(config, DepiPi0Config):
            names = {field.name for field in dataclasses.fields(Pi0Dimensions)} - set(shared)
            return Pi0Dimensions(**shared, **{name: getattr(config, name) for name in names})
        width, mlp_dim = EXPERT_SIZES[config.action_expert_variant]
        return Pi0Dimensions.full(**shared, expert_width=width, expert_mlp_dim=mlp_dim)
    except ValueError as error:
        raise UserError(f"the policy configuration does not fit together: {error}") from None


def _value_dimensions(config: ValueConfig) -> ValueDimensions:
    height, width = config.image_resolution
    if height != width:
        raise UserError(f"policy configuration: image_resolution {height}x{width} is not square")
    sizes = {name: getattr(config, name) for name in SIZE_NAMES}
    try:
        return ValueDimensions(
            image_size=height, state_dim=config.max_state_dim, bins=config.number_of_bins, **sizes
        )
    except ValueError as error:
        raise UserError(f"the policy configuration does not fit together: {error}") from None


def refuse_unsupported(config: PI0Config) -> None:
    """Raise a UserError for settings that would otherwise be ignored."""
    height, width = config.image_resolution
    problems = {
        f"image_resolution {height}x{width} is not square": height != width,
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


def freeze_parts(model: Pi0 | ValueNetwork, config: PI0Config | ValueConfig) -> None:
    """Freeze what `freeze_vision_encoder` and `train_expert_only` say."""
    frozen: list[torch.nn.Module] = []
    if config.freeze_vision_encoder:
        frozen = [model.vision]
    if isinstance(model, Pi0) and config.train_expert_only:
        frozen = [model.vision, model.image_proj, model.token_embedding, model.prefix]
    for part in frozen:
        part.requires_grad_(False)


class TrainingData(Protocol):
    """What a policy needs to know about a dataset."""

    state_dim: int
    action_dim: int
    camera_slots: tuple[str, ...]  # batch keys


def set_features(config: PI0Config | ValueConfig, data: TrainingData) -> None:
    """Tell `config` what the data looks like.

    Weights do not depend on it: a checkpoint keeps working with other cameras and other vectors. A value
    function sees no actions.

    Raises:
        UserError: state or action have more numbers than the policy has room for, or there is no camera.
    """
    rooms = [("state", data.state_dim, config.max_state_dim)]
    outputs = {}
    if isinstance(config, PI0Config):
        rooms.append(("action", data.action_dim, config.max_action_dim))
        outputs[ACTION] = PolicyFeature(type=FeatureType.ACTION, shape=(data.action_dim,))
    for name, size, room in rooms:
        if not 0 < size <= room:
            raise UserError(f"the data's {name} has {size} numbers, the policy has room for 1 to {room}")
    if not data.camera_slots:
        raise UserError("the policy needs at least one camera, and the data has none")
    visual = PolicyFeature(type=FeatureType.VISUAL, shape=(3, *config.image_resolution))
    config.input_features = {
        **dict.fromkeys(data.camera_slots, visual),
        OBS_STATE: PolicyFeature(type=FeatureType.STATE, shape=(data.state_dim,)),
    }
    config.output_features = outputs
