"""A small value network with random weights."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from depi.policies.configuration_value import ValueConfig
from depi.policies.factory import make_policy, save_checkpoint
from depi.policies.processors import make_processors

SMALL_VALUE = {
    "size": "tiny",
    "image_resolution": (28, 28),
    "vision_width": 32,
    "vision_mlp_dim": 48,
    "vision_heads": 2,
    "vision_depth": 1,
    "width": 48,
    "mlp_dim": 80,
    "depth": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "c_fail": 50.0,
    "reward_normalizer": 100.0,
}
SLOTS = tuple(f"observation.images.{slot}" for slot in range(3))


def save_small_value(folder: Path) -> Path:
    """Save it as a checkpoint, and return the folder; the tokenizer must be on the Hub."""
    torch.manual_seed(0)
    data = SimpleNamespace(state_dim=6, action_dim=6, camera_slots=SLOTS)
    policy = make_policy(ValueConfig(device="cpu", **SMALL_VALUE), data)
    # As drawn, the last layer is near zero and all values are alike.
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    stats = {"observation.state": {"mean": np.zeros(6), "std": np.full(6, 30.0)}}
    save_checkpoint(folder, policy, *make_processors(policy.config, stats))
    return folder
