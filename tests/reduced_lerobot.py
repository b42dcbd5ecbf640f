"""LeRobot's own pi0 at reduced size: its classes, patched, and a configuration and a batch for them."""

from contextlib import contextmanager

import lerobot.policies.pi0.modeling_pi0 as lerobot_pi0
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE

from depi.models.pi0 import Pi0Dimensions

CAMERAS = tuple(f"observation.images.{slot}" for slot in range(3))

# Attention in LeRobot's code insists on 8 heads.
REDUCED = Pi0Dimensions(
    image_size=28,
    patch_size=14,
    vision_width=48,
    vision_depth=2,
    vision_heads=4,
    vision_mlp_dim=72,
    vocab_size=500,
    width=64,
    mlp_dim=96,
    expert_width=40,
    expert_mlp_dim=80,
    depth=3,
    num_heads=8,
    num_kv_heads=2,
    head_dim=16,
    chunk_size=6,
)


@contextmanager
def reduced_sizes():
    """Inside, `pi0` has the sizes of `REDUCED`, both in LeRobot and in DePi."""
    d = REDUCED
    vlm_class = lerobot_pi0.PaliGemmaForConditionalGenerationWithPiGemma
    expert_class = lerobot_pi0.PiGemmaForCausalLM

    def gemma_config(variant):
        width, mlp_dim = (d.width, d.mlp_dim) if variant == "gemma_2b" else (d.expert_width, d.expert_mlp_dim)
        return lerobot_pi0.GemmaConfig(width, d.depth, mlp_dim, d.num_heads, d.num_kv_heads, d.head_dim)

    def reduced_vlm(config):
        config.text_config.vocab_size = d.vocab_size
        config.vision_config.num_hidden_layers = d.vision_depth
        config.vision_config.num_attention_heads = d.vision_heads
        config.vision_config.hidden_size = d.vision_width
        config.vision_config.intermediate_size = d.vision_mlp_dim
        config.vision_config.projection_dim = d.width
        return vlm_class(config)

    def reduced_expert(config):
        config.vocab_size = d.vocab_size
        return expert_class(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot_pi0, "get_gemma_config", gemma_config)
        patch.setattr(lerobot_pi0, "PaliGemmaForConditionalGenerationWithPiGemma", reduced_vlm)
        patch.setattr(lerobot_pi0, "PiGemmaForCausalLM", reduced_expert)
        patch.setattr(Pi0Dimensions, "full", lambda **_: d)
        yield


def make_config():
    visual = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 28, 28))
    return PI0Config(
        device="cpu",
        image_resolution=(28, 28),
        chunk_size=6,
        n_action_steps=6,
        input_features={
            **dict.fromkeys(CAMERAS, visual),
            OBS_STATE: PolicyFeature(type=FeatureType.STATE, shape=(6,)),
        },
        output_features={ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(6,))},
    )


def make_batch(batch_size=3):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([[5], [48], [1]])[:batch_size]
    return {
        **{key: torch.rand(batch_size, 3, 28, 28, generator=generator) for key in CAMERAS},
        OBS_STATE: torch.randn(batch_size, 6, generator=generator),
        ACTION: torch.randn(batch_size, 6, 6, generator=generator),
        OBS_LANGUAGE_TOKENS: torch.randint(1, 500, (batch_size, 48), generator=generator),
        OBS_LANGUAGE_ATTENTION_MASK: torch.arange(48)[None] < lengths,
        "noise": torch.randn(batch_size, 6, 32, generator=generator),
        "time": torch.rand(batch_size, generator=generator),
    }
