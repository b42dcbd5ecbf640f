"""The configuration of RECAP's value function, `--policy.type=value`.

It is registered with LeRobot like any policy: see `configuration_depi_pi0` for how LeRobot finds the rest.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config

from depi.errors import UserError, one_line
from depi.models.scene import SceneDimensions
from depi.models.value import ValueDimensions
from depi.policies.choices import attention_backends
from depi.policies.configuration import LARGEST, LARGEST_DEPTH

SIZES = {"full": ValueDimensions.full(), "tiny": ValueDimensions.tiny()}
# The sizes that are fields of the same name.
SIZE_NAMES = tuple(f.name for f in fields(SceneDimensions) if f.name != "image_size")


@PreTrainedConfig.register_subclass("value")
@dataclass
class ValueConfig(PreTrainedConfig):
    """What a frame is worth: a distribution over the normalised return that follows it.

    The defaults are the published size, about 680 M parameters: SigLIP So400m at 224 pixels and a language
    model of the size of Gemma 3 270M. Tiny: --policy.size=tiny, and any number can be given by itself.
    """

    # The value is one of so many bins, equally spaced over -1 to 0, both ends included.
    number_of_bins: int = 201
    # What a failure costs at its last step, in steps; every step before the last costs 1.
    c_fail: float = 1000.0
    # Returns are divided by this; no episode may be worth less than minus this.
    reward_normalizer: float = 1600.0
    # Take returns below -1 for -1, and count them, instead of refusing such data.
    clamp: bool = False
    # Spread the target over the two nearest bins, instead of the nearest alone.
    two_hot: bool = False

    # full, or tiny, which trains on a laptop's processor: what the numbers below are where they are 0.
    size: str = "full"
    image_resolution: tuple[int, int] = (0, 0)
    patch_size: int = 0
    vision_width: int = 0
    vision_depth: int = 0
    vision_heads: int = 0
    vision_mlp_dim: int = 0
    vocab_size: int = 0
    width: int = 0
    mlp_dim: int = 0
    depth: int = 0
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    max_state_dim: int = 32
    tokenizer_max_length: int = 48

    # A checkpoint of pi0 or of a value function: its vision tower is taken, and of the language model what
    # has the same shape. The rest begins at random; the log says what.
    init_from: Path | None = None
    freeze_vision_encoder: bool = False
    dtype: str = "float32"  # or bfloat16, to compute in; weights are float32
    gradient_checkpointing: bool = False
    compile_model: bool = False
    compile_mode: str = "max-autotune"
    # As the other policies of DePi have it.
    attention_backends: str = "varlen,flash,efficient,math"
    float8: bool = False
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
        }
    )
    # Names of the action's numbers in the data, which the value function does not see.
    action_feature_names: list[str] | None = None

    optimizer_lr: float = 5e-5
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 1_000
    scheduler_decay_steps: int = 80_000
    scheduler_decay_lr: float = 5e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        # draccus would hide what a ValueError says of a policy behind "could not instantiate".
        if self.size not in SIZES:
            raise UserError(f"size {self.size} is none of {', '.join(SIZES)}")
        sizes = asdict(SIZES[self.size])
        if not any(self.image_resolution):
            self.image_resolution = (sizes["image_size"], sizes["image_size"])
        for name in SIZE_NAMES:
            setattr(self, name, getattr(self, name) or sizes[name])
        for name in (*SIZE_NAMES, "max_state_dim", "tokenizer_max_length", "number_of_bins"):
            if not 0 < getattr(self, name) <= LARGEST:
                raise UserError(f"{name} must be between 1 and {LARGEST}, not {getattr(self, name)}")
        if max(self.depth, self.vision_depth) > LARGEST_DEPTH:
            raise UserError(
                f"{max(self.depth, self.vision_depth)} layers are too many: at most {LARGEST_DEPTH}"
            )
        if self.number_of_bins < 2:
            raise UserError("number_of_bins must be at least 2: both ends of the range are bins")
        if not (math.isfinite(self.c_fail) and self.c_fail >= 0):
            raise UserError(f"c_fail must be 0 or more, not {self.c_fail}")
        if not (math.isfinite(self.reward_normalizer) and self.reward_normalizer > 0):
            raise UserError(f"reward_normalizer must be positive, not {self.reward_normalizer}")
        if self.reward_normalizer < self.c_fail:
            raise UserError(
                f"c_fail {self.c_fail:g} alone is beyond reward_normalizer {self.reward_normalizer:g}: "
                "returns would fall outside of the bins"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype {one_line(self.dtype, 80)} is none of float32, bfloat16")
        attention_backends(self)

    def validate_features(self) -> None:
        """Raise a UserError without a camera or a state."""
        if not self.image_features or self.robot_state_feature is None:
            raise UserError("a value function needs a camera and a state")

    @property
    def chunk_size(self) -> int:
        """Actions that a sample has to hold; they are not looked at."""
        return 1

    @property
    def use_relative_actions(self) -> bool:
        """LeRobot's pipelines ask; there are no actions."""
        return False

    # AdamW and a cosine after a warm-up, from the fields above.
    get_optimizer_preset = PI0Config.get_optimizer_preset
    get_scheduler_preset = PI0Config.get_scheduler_preset

    @property
    def observation_delta_indices(self) -> None:
        """One observation."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """No actions."""
        return []

    @property
    def reward_delta_indices(self) -> None:
        """Rewards follow from success and length."""
        return None
