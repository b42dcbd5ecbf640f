"""LeRobot's own pi0 and pi0.5 at reduced size: their classes, patched; configurations and batches."""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE

from depi.models.pi0 import Pi0Dimensions
from depi.models.pi05 import Pi05Dimensions
from depi.policies.families import family

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from lerobot_pi0 import FAMILIES, lerobot_sizes, stock_of  # noqa: F401  FAMILIES is for tests

CAMERAS = tuple(f"observation.images.{slot}" for slot in range(3))

# Attention in LeRobot's code insists on 8 heads.
SIZES = {
    "image_size": 28,
    "patch_size": 14,
    "vision_width": 48,
    "vision_depth": 2,
    "vision_heads": 4,
    "vision_mlp_dim": 72,
    "vocab_size": 500,
    "width": 64,
    "mlp_dim": 96,
    "expert_width": 40,
    "expert_mlp_dim": 80,
    "depth": 3,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 16,
    "chunk_size": 6,
}
REDUCED = {"pi0": Pi0Dimensions(**SIZES), "pi05": Pi05Dimensions(**SIZES)}


@contextmanager
def reduced_sizes(name="pi0"):
    """Inside, a family has the sizes of `REDUCED`, in LeRobot and in DePi; gives LeRobot's policy class."""
    reduced = REDUCED[name]
    with lerobot_sizes(reduced), pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(reduced), "full", lambda **_: reduced)
        yield stock_of(reduced).policy


def make_config(name="pi0"):
    visual = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 28, 28))
    return family(name).configs[name](
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
