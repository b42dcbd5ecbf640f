"""A very small pi0 or pi0.5 and batches for it, for tests of several folders."""

from types import SimpleNamespace

import pytest
import torch
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE

from depi.models.flow import FlowDimensions, FlowNetwork
from depi.models.gemma import ZeroLinear
from depi.models.pi0 import Pi0Dimensions
from depi.models.pi05 import Pi05Dimensions
from depi.policies import Pi0Policy, make_policy
from depi.policies.families import family

KINDS = ("depi_pi0", "depi_pi05")
both_families = pytest.mark.parametrize("kind", KINDS)

CAMERAS = ("observation.images.0", "observation.images.1")
SIZES = {
    "image_resolution": (28, 28),
    "vision_width": 32,
    "vision_mlp_dim": 48,
    "vision_heads": 2,
    "width": 48,
    "mlp_dim": 80,
    "expert_width": 40,
    "expert_mlp_dim": 56,
    "depth": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "chunk_size": 6,
    "n_action_steps": 6,
}


def make_small(kind: str = "depi_pi0", **changes) -> Pi0Policy:
    torch.manual_seed(0)
    data = SimpleNamespace(state_dim=6, action_dim=6, camera_slots=CAMERAS)
    config = family(kind).configs[kind](device="cpu", **{**SIZES, **changes})
    return liven(make_policy(config, data))


def make_network(kind: str, state_dim: int, **sizes) -> FlowNetwork:
    """A tiny network of a policy type, without the policy."""
    if kind == "depi_pi0":
        dimensions: FlowDimensions = Pi0Dimensions.tiny(**sizes, state_dim=state_dim)
    else:
        dimensions = Pi05Dimensions.tiny(**sizes)
    model = family(kind).network(dimensions)
    model.init_weights()
    return liven(model)


def liven[Part: torch.nn.Module](part: Part) -> Part:
    """Let a new pi0.5 look at its prefix, which its gates keep it from at first; pi0 stays as it is."""
    for module in part.modules():
        if isinstance(module, ZeroLinear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
            torch.nn.init.normal_(module.bias)
    return part


def make_batch(size: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """A processed batch with noise and time; the second camera is absent in every other sample."""
    draw = torch.Generator().manual_seed(seed)
    return {
        **{key: torch.rand(size, 3, 28, 28, generator=draw) for key in CAMERAS},
        f"{CAMERAS[1]}_is_pad": torch.arange(size) % 2 == 1,
        OBS_STATE: torch.randn(size, 6, generator=draw),
        ACTION: torch.randn(size, 6, 6, generator=draw),
        OBS_LANGUAGE_TOKENS: torch.randint(4, 700, (size, 8), generator=draw),
        OBS_LANGUAGE_ATTENTION_MASK: torch.arange(8)[None] < torch.tensor([[3], [8], [5], [1]])[:size],
        "noise": torch.randn(size, 6, 32, generator=draw),
        "time": torch.rand(size, generator=draw) * 0.999 + 0.001,
    }
