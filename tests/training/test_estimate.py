"""What `depi estimate` says, against what a step really keeps."""

import json
from types import SimpleNamespace
from weakref import WeakSet

import pytest
import torch
from lerobot.configs.default import PeftConfig

from depi.cli import main
from depi.errors import UserError
from depi.models.pi0 import Observation, Pi0, Pi0Dimensions
from depi.policies import DepiPi0Config, make_policy
from depi.training.estimate import activation_bytes, adapter_parameters, estimate_memory, estimate_policy

SIZES = Pi0Dimensions.tiny(
    width=192, mlp_dim=640, expert_width=96, expert_mlp_dim=320, vision_width=160, vision_mlp_dim=480,
    vision_depth=4, depth=6, chunk_size=20,
)  # fmt: skip
IMAGES, WORDS, BATCH = 2, 24, 3


class Saved:
    """A tensor that the graph keeps; it goes when the graph drops it."""

    def __init__(self, tensor):
        self.tensor = tensor


def kept_bytes(model):
    """Bytes that a forward pass keeps for the backward pass, weights and their bfloat16 copies apart."""
    shapes = {tuple(parameter.shape) for parameter in model.parameters()}
    alive = WeakSet()
    cache = []
    model.prefix.register_forward_hook(lambda module, args, out: cache.extend(out))

    def keep(tensor):
        saved = Saved(tensor)
        alive.add(saved)
        return saved

    d = model.dimensions
    observation = Observation(
        torch.zeros(BATCH, IMAGES, 3, d.image_size, d.image_size, dtype=torch.uint8),
        torch.ones(BATCH, IMAGES, dtype=torch.bool),
        torch.zeros(BATCH, WORDS, dtype=torch.int64),
        torch.ones(BATCH, WORDS, dtype=torch.bool),
        torch.zeros(BATCH, d.state_dim),
    )
    actions = torch.zeros(BATCH, d.chunk_size, d.action_dim)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved.tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        loss = model(observation, actions, actions, torch.full((BATCH,), 0.5)).mean()
    assert loss.requires_grad
    tensors = [saved.tensor for saved in alive]
    # A recomputed layer of the expert holds the prefix's keys and values by itself, not in the graph.
    share = model.suffix.recompute
    for number, keys_values in enumerate(cache):
        if int((number + 1) * share) > int(number * share):
            tensors.extend(keys_values)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if tuple(tensor.shape) not in shapes and tuple(tensor.shape[::-1]) not in shapes
    }
    return sum(storages.values())


@pytest.mark.parametrize("recompute", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("frozen", [(), ("vision",), ("vision", "image_proj", "token_embedding", "prefix")])
def test_activations(recompute, frozen):
    model = Pi0(SIZES)
    model.init_weights()
    model.set_recompute(recompute)
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    active = [stack for stack in ("vision", "prefix", "suffix") if stack not in frozen]
    kinds, _ = activation_bytes(
        SIZES, batch_size=BATCH, images=IMAGES, words=WORDS, recompute=recompute, active=active, cuda=False
    )
    measured = kept_bytes(model)
    print(f"{sum(kinds.values())} estimated, {measured} measured")
    assert sum(kinds.values()) == pytest.approx(measured, rel=0.15), kinds


def test_what_is_exact():
    """Weights, gradients and optimizer state, against real ones."""
    data = SimpleNamespace(state_dim=6, action_dim=6, camera_slots=("observation.images.0",))
    for flags in ({}, {"train_expert_only": True}, {"freeze_vision_encoder": True}):
        policy = make_policy(DepiPi0Config(device="cpu", **flags), data)
        optimizer = torch.optim.AdamW(policy.get_optim_params())
        for parameter in policy.get_optim_params():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        state = [v for values in optimizer.state.values() for v in values.values() if v.ndim]
        estimate = estimate_policy(policy.config, batch_size=2)
        assert estimate.weights == sum(p.numel() * 4 for p in policy.parameters())
        assert estimate.gradients == sum(p.grad.numel() * 4 for p in policy.get_optim_params())
        assert estimate.optimizer == sum(v.numel() * 4 for v in state)


def test_sharding_splits_what_it_can():
    alone = estimate_memory(Pi0Dimensions.full(), batch_size=8)
    ddp = estimate_memory(Pi0Dimensions.full(), batch_size=8, num_processes=8)
    full = estimate_memory(Pi0Dimensions.full(), batch_size=8, num_processes=8, sharding="full")
    assert ddp.total == alone.total + alone.gradients
    assert (full.weights, full.gradients, full.optimizer) == tuple(
        size // 8 for size in (alone.weights, alone.gradients, alone.optimizer)
    )
    assert full.activations == alone.activations
    assert full.compute_copies < alone.compute_copies


def test_adapters():
    d = Pi0Dimensions.full()
    per_layer = (1024 + 2048) + (1024 + 256)  # q and v of the expert
    projections = (32 + 1024) * 3 + (2048 + 1024) + (1024 + 1024)
    found = adapter_parameters(d, PeftConfig(r=16))
    assert found["suffix"] == 16 * 18 * per_layer
    assert sum(found.values()) == 16 * (18 * per_layer + projections)
    expert = estimate_memory(d, batch_size=1, adapters=found)
    assert expert.activations["language model"] == expert.activations["vision"] == 0
    everywhere = adapter_parameters(d, PeftConfig(target_modules="all-linear"))
    assert estimate_memory(d, batch_size=1, adapters=everywhere).activations["vision"] > 0
    for peft, message in (
        (PeftConfig(target_modules=["nothing"]), "matches no layer"),
        (PeftConfig(target_modules="("), "no regular expression"),
        (PeftConfig(method_type="MISS"), "only LORA"),
    ):
        with pytest.raises(UserError, match=message):
            adapter_parameters(d, peft)


def test_command(capsys):
    flags = ["estimate", "--policy.type=pi0", "--policy.dtype=bfloat16"]
    assert main([*flags, "--batch_size=8", "--recompute=1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["fits_gb"]["80"] is True
    assert report["fits_gb"]["40"] is False
    assert 3.1e9 < report["parameters"] < 3.2e9
    assert main([*flags, "--policy.train_expert_only=true", "--batch_size=2", "--peft.r=16"]) == 0
    out = capsys.readouterr().out
    assert "action expert" in out
    assert "24 GB: yes" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no policy"),
        (["--policy.type=act"], "no policy that DePi trains"),
        (["--policy.type=pi0", "--sharding=half"], "none of none, full"),
        (["--policy.type=pi0", "--recompute=2"], "0 to 1"),
        (["--policy.type=pi0", "--batch_size=0"], "at least 1"),
    ],
)
def test_command_refuses(flags, message, capsys):
    assert main(["estimate", *flags]) == 2
    assert message in capsys.readouterr().err
