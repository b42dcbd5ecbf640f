"""Stock LeRobot's pi0 with random weights, in any size and without the Hub, to compare DePi with.

At the published size nothing in LeRobot is changed. For other sizes its size tables are replaced while the
policy is built; what it computes stays the same.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import lerobot.policies.pi0.modeling_pi0 as lerobot_pi0
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from depi.models.pi0 import Pi0Dimensions
from depi.policies import Pi0Policy, make_policy
from depi.policies.configuration_depi_pi0 import DepiPi0Config

CAMERAS = tuple(f"observation.images.{slot}" for slot in range(3))
JOINTS = 6
PADDED_TOKENS = 48
LEROBOT_HEADS = 8  # a literal in LeRobot's attention

# Small enough for a processor, in about the proportions of the published size.
REDUCED = Pi0Dimensions.tiny(
    image_size=112,
    vision_width=160,
    vision_depth=4,
    vision_mlp_dim=600,
    vocab_size=4096,
    width=256,
    mlp_dim=2048,
    expert_width=128,
    expert_mlp_dim=512,
    num_heads=LEROBOT_HEADS,
)
# For tests of the scripts: the figures mean nothing.
SMOKE = Pi0Dimensions.tiny(
    image_size=28, vision_width=32, vision_mlp_dim=48, width=32, mlp_dim=64, depth=2, num_heads=LEROBOT_HEADS
)
SIZES = {"full": Pi0Dimensions.full(), "reduced": REDUCED, "smoke": SMOKE}


@dataclass
class Data:
    """An SO-101's dataset, as far as a policy needs to know it."""

    state_dim: int = JOINTS
    action_dim: int = JOINTS
    camera_slots: tuple[str, ...] = CAMERAS


def make_lerobot(d: Pi0Dimensions, device: str, **settings: Any) -> PI0Policy:
    """LeRobot's policy with random weights, created on `device` ("meta" is fine), in training mode.

    Args:
        d: sizes; 8 heads, as LeRobot has them.
        device: where to make the weights.
        settings: fields of `PI0Config`, such as `dtype`, `compile_model`, `gradient_checkpointing`.
    """
    if d.num_heads != LEROBOT_HEADS:
        raise ValueError(f"LeRobot's pi0 has {LEROBOT_HEADS} heads, not {d.num_heads}")
    visual = PolicyFeature(type=FeatureType.VISUAL, shape=(3, d.image_size, d.image_size))
    config = PI0Config(
        device="cpu",
        image_resolution=(d.image_size, d.image_size),
        chunk_size=d.chunk_size,
        n_action_steps=d.chunk_size,
        max_state_dim=d.state_dim,
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
        return PI0Policy(config).train()


def make_depi(d: Pi0Dimensions, device: str, **settings: Any) -> Pi0Policy:
    """DePi's policy of the same size with random weights, in training mode; `settings` are config fields."""
    if d == SIZES["full"]:
        config = PI0Config(device="cpu", **settings)
    else:
        fields = {name: value for name, value in vars(d).items() if hasattr(DepiPi0Config, name)}
        config = DepiPi0Config(
            device="cpu",
            **fields,
            image_resolution=(d.image_size, d.image_size),
            n_action_steps=d.chunk_size,
            max_state_dim=d.state_dim,
            max_action_dim=d.action_dim,
            **settings,
        )
    return make_policy(config, Data(), device=device).train()


def make_batch(
    d: Pi0Dimensions, cameras: Tensor, prompt_tokens: Tensor, device: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """A random processed batch as DePi's pipeline makes it, images in uint8.

    Args:
        d: sizes.
        cameras: int64 [B], cameras that each sample has; the last slots stay empty.
        prompt_tokens: int64 [B], length of each prompt, of 48.
        device: where to put it.
        generator: of the processor.
    """
    size = len(cameras)
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
        OBS_LANGUAGE_TOKENS: torch.randint(1, d.vocab_size, (size, PADDED_TOKENS), generator=generator),
        OBS_LANGUAGE_ATTENTION_MASK: torch.arange(PADDED_TOKENS) < prompt_tokens[:, None],
    }
    return {key: value.to(device) for key, value in batch.items()}


def for_lerobot(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What LeRobot makes of the same batch: float images 0..1, and no word about which cameras are absent."""
    return {
        key: value.float() / 255 if value.dtype == torch.uint8 else value
        for key, value in batch.items()
        if not key.endswith("_is_pad")
    }


@contextmanager
def lerobot_sizes(d: Pi0Dimensions) -> Iterator[None]:
    """Inside, LeRobot builds `pi0` in the sizes `d`."""
    if d == SIZES["full"]:
        yield
        return
    vlm_class = lerobot_pi0.PaliGemmaForConditionalGenerationWithPiGemma
    expert_class = lerobot_pi0.PiGemmaForCausalLM

    def gemma_config(variant: str) -> lerobot_pi0.GemmaConfig:
        widths = (d.width, d.mlp_dim) if variant == "gemma_2b" else (d.expert_width, d.expert_mlp_dim)
        return lerobot_pi0.GemmaConfig(widths[0], d.depth, widths[1], d.num_heads, d.num_kv_heads, d.head_dim)

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
            stack.enter_context(patch.object(lerobot_pi0, name, replacement))
        yield
