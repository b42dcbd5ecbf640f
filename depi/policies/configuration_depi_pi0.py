"""The configuration of pi0 in any size.

LeRobot's factory finds what belongs to a policy type by module name: from `configuration_depi_pi0` it goes to
`modeling_depi_pi0` for the policy and to `processor_depi_pi0` for its pipelines.
"""

import dataclasses
from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config

from depi.models.pi0 import Pi0Dimensions
from depi.policies.choices import OwnChoices
from depi.policies.configuration import LARGEST

LARGEST_DEPTH = 1000


@PreTrainedConfig.register_subclass("depi_pi0")
@dataclass
class DepiPi0Config(OwnChoices, PI0Config):
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
            if not 0 < value <= LARGEST:
                raise ValueError(f"{name} must be between 1 and {LARGEST}, not {value}")
        if max(self.depth, self.vision_depth) > LARGEST_DEPTH:
            raise ValueError(
                f"{max(self.depth, self.vision_depth)} layers are too many: at most {LARGEST_DEPTH}"
            )
