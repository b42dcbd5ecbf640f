"""LeRobot's own pi0 at reduced size: its classes, patched, and a configuration and a batch for them."""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE

from depi.models.pi0 import Pi0Dimensions

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from lerobot_pi0 import lerobot_sizes

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
    with lerobot_sizes(REDUCED), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pi0Dimensions, "full", lambda **_: REDUCED)
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
