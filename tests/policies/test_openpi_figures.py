"""openpi's own JAX code computed these figures, at a small size: with its parameters DePi computes the same.

`make_openpi_figures.py` wrote them, where openpi and jax are; here neither is needed.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from safetensors.torch import save_file
from small_pi0 import both_families

from depi.policies import make_policy, pack_batch
from depi.policies.convert import lerobot_name, load_weights
from depi.policies.families import family

# Relative error in float32. The largest of pi0, 7e-5, is jax's: beside float64 DePi's own is below 4e-6.
TOLERANCE = 1e-4
GRAIN = 1 / 128  # of which the file has multiples
CAMERAS = {
    f"observation.images.{name}": name for name in ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
}
SIZES = {
    "image_resolution": (14, 14),
    "patch_size": 7,
    "vision_width": 16,
    "vision_depth": 2,
    "vision_heads": 2,
    "vision_mlp_dim": 24,
    "vocab_size": 40,
    "width": 16,
    "mlp_dim": 20,
    "expert_width": 12,
    "expert_mlp_dim": 18,
    "depth": 2,
    "num_heads": 4,
    "num_kv_heads": 1,
    "head_dim": 6,
    "chunk_size": 5,
    "n_action_steps": 5,
}


@pytest.fixture(scope="module")
def figures():
    with np.load(Path(__file__).with_name("openpi_figures.npz")) as file:
        return {name: torch.from_numpy(value) if value.ndim else value.item() for name, value in file.items()}


def named(figures, what):
    """Tensors by the names of openpi's PyTorch layout."""
    shapes = json.loads(figures[f"{what}/names"])
    parts = figures[f"{what}/values"].split([math.prod(shape) for shape in shapes.values()])
    return {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


@pytest.fixture
def policy(figures, kind, tmp_path):
    data = SimpleNamespace(state_dim=32, action_dim=32, camera_slots=tuple(CAMERAS))
    policy = make_policy(family(kind).configs[kind](device="cpu", **SIZES), data)
    parameters = named(figures, f"{kind.removeprefix('depi_')}/parameters")
    path = tmp_path / "model.safetensors"
    save_file({name: value.float() * GRAIN for name, value in parameters.items()}, path)
    load_weights(path, policy.model, policy.layout)
    return policy


@pytest.fixture
def batch(figures, kind):
    inputs = {name.removeprefix("inputs/"): value for name, value in figures.items()}
    theirs = kind.removeprefix("depi_")
    return {
        **{key: inputs[name].permute(0, 3, 1, 2) for key, name in CAMERAS.items()},
        **{f"{key}_is_pad": ~inputs[f"{name}_mask"] for key, name in CAMERAS.items()},
        OBS_STATE: inputs["state"],
        ACTION: inputs["actions"],
        OBS_LANGUAGE_TOKENS: inputs["tokens"].long(),
        OBS_LANGUAGE_ATTENTION_MASK: inputs["token_mask"],
        "noise": figures[f"{theirs}/noise"],
        "time": figures[f"{theirs}/time"],
    }


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()


@both_families
@pytest.mark.parametrize("how", ["padded", "packed"])
def test_loss_and_gradients(figures, policy, batch, kind, how):
    if how == "packed":
        batch = pack_batch(policy.config, batch)
    loss, _ = policy.forward(batch, reduction="none")
    theirs = kind.removeprefix("depi_")
    assert relative_error(loss, figures[f"{theirs}/loss"].mean(dim=1)) < TOLERANCE
    loss.mean().backward()
    expected = named(figures, f"{theirs}/gradients")
    for name, parameter in policy.model.named_parameters():
        gradient = expected.pop(lerobot_name(name, SIZES["depth"]))
        if name.startswith("vision") and name.endswith("k_proj.bias"):
            # It shifts all scores of a query alike: its true gradient is zero.
            assert max(parameter.grad.abs().max(), gradient.abs().max()) < 1e-6, name
        else:
            assert relative_error(parameter.grad, gradient) < TOLERANCE, name
    # What DePi has not got never influences the output.
    assert expected.keys() <= policy.layout.unused.keys()
    assert all((gradient == 0).all() for gradient in expected.values())


@both_families
def test_sampled_actions(figures, policy, batch, kind):
    """Ten Euler steps, as there by default."""
    actions = policy.predict_action_chunk(batch, noise=figures["inputs/noise_to_sample_from"])
    assert relative_error(actions, figures[f"{kind.removeprefix('depi_')}/sampled"]) < TOLERANCE
