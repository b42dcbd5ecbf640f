"""What `depi estimate` says, against what a step really keeps."""

from types import SimpleNamespace
from weakref import WeakSet

import pytest
import torch
from lerobot.configs.default import PeftConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from small_pi0 import both_families, make_network

from depi.models.scene import Observation
from depi.policies import DepiPi0Config, make_policy
from depi.policies.adapters import add_adapters, hold_frozen_in_bfloat16
from depi.policies.families import family
from depi.training.config import TrainConfig
from depi.training.estimate import activation_bytes, estimate_memory, estimate_run, model_to_train
from depi.training.optimizer import make_optimizer

SIZES = {
    "width": 192,
    "mlp_dim": 640,
    "expert_width": 96,
    "expert_mlp_dim": 320,
    "vision_width": 160,
    "vision_mlp_dim": 480,
    "vision_depth": 4,
    "depth": 6,
    "chunk_size": 20,
}
IMAGES, WORDS, BATCH, STATE = 2, 24, 3, 32


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
        torch.zeros(BATCH, STATE),
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


@both_families
@pytest.mark.parametrize("recompute", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("frozen", [(), ("vision",), ("vision", "image_proj", "token_embedding", "prefix")])
def test_activations(recompute, frozen, kind):
    model = make_network(kind, state_dim=STATE, **SIZES)
    model.set_recompute(recompute)
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    active = [stack for stack in ("vision", "prefix", "suffix") if stack not in frozen]
    d, shape = model.dimensions, {"batch_size": BATCH, "images": IMAGES, "words": WORDS}
    kinds, _ = activation_bytes(d, **shape, recompute=recompute, active=active, cuda=False)
    measured = kept_bytes(model)
    print(f"{sum(kinds.values())} estimated, {measured} measured")
    assert sum(kinds.values()) == pytest.approx(measured, rel=0.15), kinds


@pytest.mark.parametrize("recompute", [0.0, 0.5])
def test_activations_in_float8(recompute):
    model = make_network("depi_pi0", state_dim=STATE, **SIZES)
    model.set_recompute(recompute)
    shape = {"batch_size": BATCH, "images": IMAGES, "words": WORDS, "recompute": recompute, "cuda": False}
    plain = kept_bytes(model)
    model.use_float8()
    kept = kept_bytes(model)
    without, _ = activation_bytes(model.dimensions, **shape)
    kinds, _ = activation_bytes(model.dimensions, **shape, float8=True)
    saved = without["language model"] - kinds["language model"]
    print(f"{saved} estimated, {plain - kept} measured to be saved")
    assert saved == sum(without.values()) - sum(kinds.values()) > 0
    assert saved == pytest.approx(plain - kept, rel=0.15)


@both_families
@pytest.mark.parametrize(
    ("flags", "peft"),
    [
        ({}, None),
        ({"train_expert_only": True}, None),
        ({"freeze_vision_encoder": True, "dtype": "bfloat16"}, None),
        ({"dtype": "bfloat16"}, PeftConfig(r=4)),
    ],
)
def test_what_is_exact(flags, peft, kind):
    """Weights, gradients and optimizer state, against real ones."""
    data = SimpleNamespace(state_dim=6, action_dim=6, camera_slots=("observation.images.0",))
    policy = make_policy(family(kind).configs[kind](device="cpu", **flags), data)
    if peft is not None:
        add_adapters(policy.model, peft)
    if policy.config.dtype == "bfloat16":
        hold_frozen_in_bfloat16(policy.model)
    optimizer = make_optimizer(policy)
    for parameter in policy.get_optim_params():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [v for values in optimizer.state.values() for v in values.values() if v.ndim]
    estimate = estimate_memory(model_to_train(policy.config, peft), batch_size=2)
    assert estimate.weights == size(policy.parameters())
    assert estimate.gradients == size(p.grad for p in policy.get_optim_params())
    assert estimate.optimizer == size(state)


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def estimate_full(peft=None, shards=1, recompute=0.0, accumulated=False, **flags):
    model = model_to_train(PI0Config(**flags), peft)
    return estimate_memory(model, batch_size=8, shards=shards, recompute=recompute, accumulated=accumulated)


def test_sharding_splits_what_it_can():
    alone, sharded = estimate_full(), estimate_full(shards=8)
    assert (sharded.weights, sharded.gradients, sharded.optimizer) == tuple(
        size // 8 for size in (alone.weights, alone.gradients, alone.optimizer)
    )
    assert sharded.activations == alone.activations
    assert sharded.compute_copies == pytest.approx(alone.compute_copies, rel=0.01)
    again = estimate_full(shards=8, recompute=0.5)
    assert again.compute_copies < 0.3 * sharded.compute_copies
    added_up = estimate_full(shards=8, accumulated=True)
    assert added_up.gradients == alone.gradients


def test_adapters_and_frozen_parts():
    whole = estimate_full(dtype="bfloat16")
    adapted = estimate_full(dtype="bfloat16", peft=PeftConfig(r=16))
    assert adapted.trainable < whole.trainable / 50
    assert adapted.weights < 0.6 * whole.weights
    assert adapted.activations["vision"] == 0 < adapted.activations["language model"]
    expert = estimate_full(dtype="bfloat16", train_expert_only=True)
    assert expert.activations["language model"] == expert.activations["vision"] == 0
    everywhere = estimate_full(peft=PeftConfig(target_modules="all-linear"))
    assert everywhere.activations["vision"] > 0


def test_a_moving_average_is_counted():
    config = TrainConfig(policy=DepiPi0Config(device="cpu"))
    model = model_to_train(config.policy, None)
    without = estimate_run(config, model)
    config.ema.decay = 0.99
    averaged = estimate_run(config, model)
    assert averaged.total - without.total == averaged.average == 4 * averaged.trainable
