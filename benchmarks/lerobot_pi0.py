"""Stock LeRobot's pi0 and pi0.5 with random weights, in any size, without the Hub, to compare DePi with.

At the published size nothing in LeRobot is changed. For other sizes its size tables are replaced while the
policy is built; what it computes stays the same.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from depi.models.flow import FlowDimensions
from depi.models.pi0 import Pi0Dimensions
from depi.models.pi05 import Pi05Dimensions
from depi.policies import Pi0Policy, make_policy
from depi.policies.families import family
from depi.policies.measured_tokenizer import LONGEST_PROMPT

CAMERAS = tuple(f"observation.images.{slot}" for slot in range(3))
JOINTS = 6
LEROBOT_HEADS = 8  # a literal in LeRobot's attention

# Small enough for a processor, in about the proportions of the published size.
REDUCED = {
    "image_size": 112,
    "vision_width": 160,
    "vision_depth": 4,
    "vision_mlp_dim": 600,
    "vocab_size": 4096,
    "width": 256,
    "mlp_dim": 2048,
    "expert_width": 128,
    "expert_mlp_dim": 512,
    "num_heads": LEROBOT_HEADS,
}
# For tests of the scripts: the figures mean nothing.
SMOKE = {
    "image_size": 28,
    "vision_width": 32,
    "vision_mlp_dim": 48,
    "width": 32,
    "mlp_dim": 64,
    "depth": 2,
    "num_heads": LEROBOT_HEADS,
}


@dataclass(frozen=True)
class Stock:
    """A family as LeRobot has it.

    padded_tokens: length to which it pads prompts.
    said_tokens: length of a prompt beside the task's own tokens.
    """

    name: str
    dimensions: type[FlowDimensions]
    module: ModuleType
    policy: type[PreTrainedPolicy]
    padded_tokens: int
    said_tokens: int

    @property
    def sizes(self) -> dict[str, FlowDimensions]:
        """The published size, a reduced one, and one for tests of the scripts."""
        kind = self.dimensions
        return {"full": kind.full(), "reduced": kind.tiny(**REDUCED), "smoke": kind.tiny(**SMOKE)}


FAMILIES = {
    "pi0": Stock("pi0", Pi0Dimensions, modeling_pi0, modeling_pi0.PI0Policy, 48, 0),
    # About, with PaliGemma's tokenizer: "Task: , State: ... ;\nAction: " of six joints.
    "pi05": Stock("pi05", Pi05Dimensions, modeling_pi05, modeling_pi05.PI05Policy, 200, 34),
}
SIZES: dict[str, Any] = FAMILIES["pi0"].sizes


def stock_of(d: FlowDimensions) -> Stock:
    """The family whose sizes these are."""
    return next(stock for stock in FAMILIES.values() if type(d) is stock.dimensions)


@dataclass
class Data:
    """An SO-101's dataset, as far as a policy needs to know it."""

    state_dim: int = JOINTS
    action_dim: int = JOINTS
    camera_slots: tuple[str, ...] = CAMERAS


def make_lerobot(d: FlowDimensions, device: str, **settings: Any) -> PreTrainedPolicy:
    """LeRobot's policy with random weights, created on `device` ("meta" is fine), in training mode.

    Args:
        d: sizes; 8 heads, as LeRobot has them.
        device: where to make the weights.
        settings: fields of its configuration, such as `dtype`, `compile_model`, `gradient_checkpointing`.
    """
    if d.num_heads != LEROBOT_HEADS:
        raise ValueError(f"LeRobot's pi0 has {LEROBOT_HEADS} heads, not {d.num_heads}")
    stock = stock_of(d)
    visual = PolicyFeature(type=FeatureType.VISUAL, shape=(3, d.image_size, d.image_size))
    config = PreTrainedConfig.get_choice_class(stock.name)(
        device="cpu",
        image_resolution=(d.image_size, d.image_size),
        chunk_size=d.chunk_size,
        n_action_steps=d.chunk_size,
        max_action_dim=d.action_dim,
        input_features={
            **dict.fromkeys(CAMERAS, visual),
            OBS_STATE: PolicyFeature(type=FeatureType.STATE, shape=(JOINTS,)),
        },
        output_features={ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(JOINTS,))},
        **settings,
    )
    config.device = device
    # Made where they stay: 4 B parameters drawn on a processor and moved take minutes.
    with lerobot_sizes(d), torch.device(device):
        return stock.policy(config).train()


def make_depi(d: FlowDimensions, device: str, **settings: Any) -> Pi0Policy:
    """DePi's policy of the same size with random weights, in training mode; `settings` are config fields."""
    stock = stock_of(d)
    configs = family(stock.name).configs
    if d == stock.dimensions.full():
        config = configs[stock.name](device="cpu", **settings)
    else:
        kind = configs[f"depi_{stock.name}"]
        fields = {name: value for name, value in vars(d).items() if hasattr(kind, name)}
        config = kind(
            device="cpu",
            **fields,
            image_resolution=(d.image_size, d.image_size),
            n_action_steps=d.chunk_size,
            max_action_dim=d.action_dim,
            **settings,
        )
    return make_policy(config, Data(), device=device).train()


def make_batch(
    d: FlowDimensions, cameras: Tensor, prompt_tokens: Tensor, device: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """A random processed batch as DePi's pipeline makes it, images in uint8.

    Args:
        d: sizes.
        cameras: int64 [B], cameras that each sample has; the last slots stay empty.
        prompt_tokens: int64 [B], length of each prompt.
        device: where to put it.
        generator: of the processor.
    """
    size, padded = len(cameras), stock_of(d).padded_tokens
    image = (size, 3, d.image_size, d.image_size)
    present = torch.arange(len(CAMERAS)) < cameras[:, None]  # [B, C]
    batch = {}
    for slot, key in enumerate(CAMERAS):
        pixels = torch.randint(0, 256, image, dtype=torch.uint8, generator=generator)
        batch[key] = pixels * present[:, slot, None, None, None]
        batch[f"{key}_is_pad"] = ~present[:, slot]
    batch |= {
        OBS_STATE: torch.randn(size, JOINTS, generator=generator),
        ACTION: torch.randn(size, d.chunk_size, JOINTS, generator=generator),
        OBS_LANGUAGE_TOKENS: torch.randint(1, d.vocab_size, (size, padded), generator=generator),
        OBS_LANGUAGE_ATTENTION_MASK: torch.arange(padded) < prompt_tokens[:, None],
    }
    return {key: value.to(device) for key, value in batch.items()}


def as_from_robot(batch: Mapping[str, Any], words: int) -> dict[str, Any]:
    """The same batch as DePi's preprocessor makes it of a robot's frame: no camera is marked, and the host
    knows how many tokens the longest prompt has."""
    kept = {key: value for key, value in batch.items() if not key.endswith("_is_pad")}
    return kept | {LONGEST_PROMPT: words}


def for_lerobot(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What LeRobot makes of the same batch: float images 0..1, and no word about which cameras are absent."""
    return {
        key: value.float() / 255 if value.dtype == torch.uint8 else value
        for key, value in batch.items()
        if not key.endswith("_is_pad")
    }


@contextmanager
def lerobot_sizes(d: FlowDimensions) -> Iterator[None]:
    """Inside, LeRobot builds the family in the sizes `d`."""
    stock = stock_of(d)
    if d == stock.dimensions.full():
        yield
        return
    theirs: Any = stock.module
    vlm_class = theirs.PaliGemmaForConditionalGenerationWithPiGemma
    expert_class = theirs.PiGemmaForCausalLM

    def gemma_config(variant: str) -> Any:
        widths = (d.width, d.mlp_dim) if variant == "gemma_2b" else (d.expert_width, d.expert_mlp_dim)
        return theirs.GemmaConfig(widths[0], d.depth, widths[1], d.num_heads, d.num_kv_heads, d.head_dim)

    def vlm(config: Any) -> Any:
        config.text_config.vocab_size = d.vocab_size
        config.vision_config.patch_size = d.patch_size
        config.vision_config.num_hidden_layers = d.vision_depth
        config.vision_config.num_attention_heads = d.vision_heads
        config.vision_config.hidden_size = d.vision_width
        config.vision_config.intermediate_size = d.vision_mlp_dim
        config.vision_config.projection_dim = d.width
        return vlm_class(config)

    def expert(config: Any) -> Any:
        config.vocab_size = d.vocab_size
        return expert_class(config)

    with ExitStack() as stack:
        for name, replacement in (
            ("get_gemma_config", gemma_config),
            ("PaliGemmaForConditionalGenerationWithPiGemma", vlm),
            ("PiGemmaForCausalLM", expert),
        ):
            stack.enter_context(patch.object(theirs, name, replacement))
        yield
