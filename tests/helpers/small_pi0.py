"""A very small pi0 and batches for it, for tests of several folders."""

from types import SimpleNamespace

import torch
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE

from depi.policies import DepiPi0Config, Pi0Policy, make_policy

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


def make_small(**changes) -> Pi0Policy:
    torch.manual_seed(0)
    data = SimpleNamespace(state_dim=6, action_dim=6, camera_slots=CAMERAS)
    return make_policy(DepiPi0Config(device="cpu", **{**SIZES, **changes}), data)


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
