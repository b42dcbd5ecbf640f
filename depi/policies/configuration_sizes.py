"""Configurations of networks in any size: the fields that pi0 and pi0.5 have for it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from depi.errors import UserError
from depi.models.flow import FlowDimensions
from depi.policies.choices import OwnChoices
from depi.policies.configuration import LARGEST, LARGEST_DEPTH

EXPERT_SIZES = {"gemma_300m": (1024, 4096), "gemma_2b": (2048, 16_384)}  # width, MLP size


@dataclass
class AnySize(OwnChoices):
    """Sizes, and DePi's choices, beside a LeRobot configuration; the defaults train on a laptop."""

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

    # Networks of this size learn from nothing with 40 times the rate of the published weights' fine-tuning.
    optimizer_lr: float = 1e-3
    scheduler_decay_lr: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        sizes = {field.name for field in dataclasses.fields(FlowDimensions)} & set(vars(self))
        for name in sorted(sizes - {"min_period", "max_period"}):
            value = getattr(self, name)
            if not 0 < value <= LARGEST:
                raise ValueError(f"{name} must be between 1 and {LARGEST}, not {value}")
        if max(self.depth, self.vision_depth) > LARGEST_DEPTH:
            raise ValueError(
                f"{max(self.depth, self.vision_depth)} layers are too many: at most {LARGEST_DEPTH}"
            )


def flow_dimensions(config: Any, kind: type[FlowDimensions]) -> FlowDimensions:
    """The sizes of a network of `kind`: those of the fields, or the published ones.

    Raises:
        ValueError: they do not fit together.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    sizes = {
        "image_size": config.image_resolution[0],
        "chunk_size": config.chunk_size,
        "state_dim": config.max_state_dim,
        "action_dim": config.max_action_dim,
        "min_period": config.min_period,
        "max_period": config.max_period,
    }
    shared = {name: size for name, size in sizes.items() if name in names}
    if isinstance(config, AnySize):
        return kind(**shared, **{name: getattr(config, name) for name in names - set(shared)})
    width, mlp_dim = EXPERT_SIZES[config.action_expert_variant]
    return kind.full(**shared, expert_width=width, expert_mlp_dim=mlp_dim)


def refuse_unsupported(config: Any) -> None:
    """Raise a UserError for settings of a LeRobot configuration that would otherwise be ignored."""
    problems = {
        f"paligemma_variant {config.paligemma_variant} is not available; use gemma_2b": (
            config.paligemma_variant != "gemma_2b"
        ),
        "time_sampling_beta_beta other than 1 is not available": config.time_sampling_beta_beta != 1.0,
        f"n_obs_steps {config.n_obs_steps} is not available; only 1 is": config.n_obs_steps != 1,
    }
    for problem, present in problems.items():
        if present:
            raise UserError(f"policy configuration: {problem}")
