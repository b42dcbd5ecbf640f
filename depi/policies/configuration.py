"""What a configuration of any family says: the network's sizes, what is frozen, what the data looks like."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE

from depi.errors import UserError, one_line
from depi.models.scene import SceneDimensions, SceneReader
from depi.policies.families import family_of

COUNTS = (
    *("n_obs_steps", "chunk_size", "horizon", "action_chunk_size", "n_action_steps", "num_inference_steps"),
    *("max_state_dim", "max_action_dim", "tokenizer_max_length"),
)
"""Fields of configurations that count something which there must be at least one of."""
MOST_COUNTED = 4096
"""Memory and time grow with these, with some by the square."""
MOST_PIXELS = 4096 * 2160
LARGEST = 1 << 20
"""No honest configuration has larger numbers in it."""
LARGEST_DEPTH = 1000
LONGEST_NAME = 200


def dimensions_of(config: Any) -> SceneDimensions:
    """The network's sizes for any configuration class.

    Raises:
        UserError: the configuration asks for something that DePi does not do.
    """
    if not family_of(config).own:
        return family_of(config).dimensions(config)  # which says why there are none
    height, width = config.image_resolution
    if height != width:
        raise UserError(f"policy configuration: image_resolution {height}x{width} is not square")
    try:
        return family_of(config).dimensions(config)
    except ValueError as error:
        raise UserError(f"the policy configuration does not fit together: {error}") from None


def check_fields(config: Any, what: object) -> None:
    """Refuse fields that draccus lets pass and that would stop a policy with an error of torch.

    Args:
        config: of any class.
        what: the file that it comes from, for the message.

    Raises:
        UserError: a count is none or too large, features are none or have an impossible name or size, or
            torch has no such compile mode.
    """
    for name in COUNTS:
        value = getattr(config, name, 1)
        left_out = value is None and getattr(type(config), name, 1) is None
        if not left_out and (type(value) is not int or not 1 <= value <= MOST_COUNTED):
            raise UserError(
                f"{what}: {name} must be an integer of 1 to {MOST_COUNTED}, not {one_line(repr(value), 40)}"
            )
    for name in ("input_features", "output_features"):
        features = getattr(config, name)
        if not isinstance(features, dict):
            raise UserError(f"{what}: {name} must be an object, not {features!r}")
        for key, feature in features.items():
            if len(key) > LONGEST_NAME or not key.isprintable():
                shown = one_line(repr(key), 80)
                raise UserError(f"{what}: {name} has a name that is too long or not printable: {shown}")
            _check_shape(feature, f"{what}: the shape of {one_line(key, 80)} in {name}")
    if getattr(config, "compile_model", False):
        modes = [None, *torch._inductor.list_mode_options()]
        if config.compile_mode not in modes:
            shown = one_line(repr(config.compile_mode), 40)
            raise UserError(f"{what}: compile_mode {shown} is none of {modes[1:]}")


def _check_shape(feature: PolicyFeature, what: str) -> None:
    sizes, visual = feature.shape, feature.type is FeatureType.VISUAL
    most = MOST_PIXELS if visual else MOST_COUNTED
    if not sizes or not all(type(size) is int and 1 <= size <= most for size in sizes):
        raise UserError(f"{what} is {one_line(list(sizes), 80)}, not integers of 1 to {most}")
    if visual and (len(sizes) != 3 or sizes[0] > 4 or math.prod(sizes[1:]) > MOST_PIXELS):
        raise UserError(
            f"{what} is {one_line(list(sizes), 80)}, not channels, height and width of an image of at most "
            f"{MOST_PIXELS} pixels"
        )


def freeze_parts(model: SceneReader, config: Any) -> None:
    """Freeze what `freeze_vision_encoder` and `train_expert_only` say."""
    frozen: list[torch.nn.Module] = []
    if config.freeze_vision_encoder:
        frozen = [model.vision]
    if getattr(config, "train_expert_only", False):
        frozen = [model.vision, model.image_proj, model.token_embedding, model.language_model]
    for part in frozen:
        part.requires_grad_(False)


class TrainingData(Protocol):
    """What a policy needs to know about a dataset."""

    state_dim: int
    action_dim: int
    camera_slots: tuple[str, ...]  # batch keys


class SizedData(TrainingData, Protocol):
    """What LeRobot's policies need to know besides: DePi's own scale images themselves."""

    image_sizes: Sequence[tuple[int, int]]  # height and width in pixels, of each slot


def set_features(config: Any, data: TrainingData) -> None:
    """Tell `config` what the data looks like.

    The weights of DePi's own networks do not depend on it: a checkpoint keeps working with other cameras and
    other vectors. A family that does not act sees no actions.

    Raises:
        UserError: state or action have more numbers than the policy has room for, or there is no camera.
    """
    family = family_of(config)
    rooms = [("state", data.state_dim, config.max_state_dim if family.own else MOST_COUNTED)]
    outputs = {}
    if family.acts:
        rooms.append(("action", data.action_dim, config.max_action_dim if family.own else MOST_COUNTED))
        outputs[ACTION] = PolicyFeature(type=FeatureType.ACTION, shape=(data.action_dim,))
    for name, size, room in rooms:
        if not 0 < size <= room:
            raise UserError(f"the data's {name} has {size} numbers, the policy has room for 1 to {room}")
    if not data.camera_slots:
        raise UserError("the policy needs at least one camera, and the data has none")
    sizes = (
        [config.image_resolution] * len(data.camera_slots)
        if family.own
        else cast(SizedData, data).image_sizes
    )
    images = {
        slot: PolicyFeature(type=FeatureType.VISUAL, shape=(3, *size))
        for slot, size in zip(data.camera_slots, sizes, strict=True)
    }
    learned = list(config.input_features or ())
    if images.keys() <= set(learned):  # the weights of a checkpoint know its cameras by their order
        images = {key: images[key] for key in learned if key in images}
    config.input_features = {
        **images,
        OBS_STATE: PolicyFeature(type=FeatureType.STATE, shape=(data.state_dim,)),
    }
    config.output_features = outputs
