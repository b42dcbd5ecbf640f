"""Policy configurations: LeRobot's own for the published pi0, DePi's for every other size."""

import dataclasses
from dataclasses import dataclass
from typing import Protocol

from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.utils.constants import ACTION, OBS_STATE

from depi.errors import UserError
from depi.models.pi0 import Pi0Dimensions

EXPERT_SIZES = {"gemma_300m": (1024, 4096), "gemma_2b": (2048, 16_384)}  # width, MLP size
LARGEST_SIZE = 1 << 20  # no honest configuration has a larger number in it


@PreTrainedConfig.register_subclass("depi_pi0")
@dataclass
class DepiPi0Config(PI0Config):
    """pi0 in any size; the defaults train on a laptop's processor. LeRobot's `pi0` is the published size."""

    image_resolution: tuple[int, int] = (84, 84)
    patch_size: int = 14
    vision_width: int = 128
    vision_depth: int = 2
    vision_heads: int = 4
    vision_mlp_dim: int = 256
    vocab_size: int = 1024
    width: int = 128
    mlp_dim: int = 256
    expert_width: int = 128
    expert_mlp_dim: int = 256
    depth: int = 4
    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {field.name for field in dataclasses.fields(Pi0Dimensions)} & set(vars(self))
        for name in sorted(sizes - {"min_period", "max_period"}):
            value = getattr(self, name)
            if not 0 < value <= LARGEST_SIZE:
                raise ValueError(f"{name} must be between 1 and {LARGEST_SIZE}, not {value}")
        if max(self.depth, self.vision_depth) > 1000:
            raise ValueError(f"{max(self.depth, self.vision_depth)} layers are too many: at most 1000")


def dimensions_of(config: PI0Config) -> Pi0Dimensions:
    """The network's sizes for either configuration class.

    Raises:
        UserError: the configuration asks for something that DePi does not do.
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
    try:
        if isinstance(config, DepiPi0Config):
            names = {field.name for field in dataclasses.fields(Pi0Dimensions)} - set(shared)
            return Pi0Dimensions(**shared, **{name: getattr(config, name) for name in names})
        width, mlp_dim = EXPERT_SIZES[config.action_expert_variant]
        return Pi0Dimensions.full(**shared, expert_width=width, expert_mlp_dim=mlp_dim)
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


class TrainingData(Protocol):
    """What a policy needs to know about a dataset."""

    state_dim: int
    action_dim: int
    camera_slots: tuple[str, ...]  # batch keys


def set_features(config: PI0Config, data: TrainingData) -> None:
    """Tell `config` what the data looks like.

    pi0's weights do not depend on it: a checkpoint keeps working with other cameras and other vectors.

    Raises:
        UserError: state or action have more numbers than the policy has room for, or there is no camera.
    """
    for name, size, room in (
        ("state", data.state_dim, config.max_state_dim),
        ("action", data.action_dim, config.max_action_dim),
    ):
        if not 0 < size <= room:
            raise UserError(f"the data's {name} has {size} numbers, the policy has room for 1 to {room}")
    if not data.camera_slots:
        raise UserError("pi0 needs at least one camera, and the data has none")
    visual = PolicyFeature(type=FeatureType.VISUAL, shape=(3, *config.image_resolution))
    config.input_features = {
        **dict.fromkeys(data.camera_slots, visual),
        OBS_STATE: PolicyFeature(type=FeatureType.STATE, shape=(data.state_dim,)),
    }
    config.output_features = {ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(data.action_dim,))}
