"""float32 weights, bfloat16 compute, float32 sums: what a small step of training needs."""

import copy

import pytest
import torch
from small_pi0 import make_batch, make_small

from depi.models.attention import attention, attention_bias
from depi.models.flow import time_embedding
from depi.models.gemma import RMSNorm
from depi.training.optimizer import make_optimizer

LR = 2.5e-5


@pytest.fixture
def policy():
    return make_small(dtype="bfloat16", optimizer_lr=LR)


def loss_of(policy, batch, bfloat16=True):
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return policy.forward(batch)[0]


def test_a_step_of_the_usual_size_survives(policy):
    """Every weight moves by what AdamW says, to a hundredth; in bfloat16 nearly none moves at all."""
    batch = make_batch()
    weight = policy.model.suffix.layers[1].mlp.up_proj.weight
    optimizer = make_optimizer(policy)
    assert optimizer.defaults["lr"] == LR
    start, first, second, expected = weight.detach().double(), 0.0, 0.0, weight.detach().double()
    rounded = torch.nn.Parameter(weight.detach().bfloat16())
    lossy = torch.optim.AdamW([rounded], lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(1, 6):
        optimizer.zero_grad()
        loss_of(policy, batch).backward()
        gradient = weight.grad.double()
        first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
        direction = (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        expected = expected * (1 - LR * 0.01) - LR * direction
        rounded.grad = weight.grad.bfloat16()
        optimizer.step()
        lossy.step()
    moved = weight.detach().double() - start
    assert moved.abs().median() > 3 * LR
    torch.testing.assert_close(moved, expected - start, rtol=0.01, atol=0.01 * LR)
    assert (weight.detach() != start).float().mean() > 0.999
    large = start.abs() > 0.02  # bfloat16 has steps of at least 6e-5 there
    assert large.float().mean() > 0.5
    assert (rounded.detach()[large] == start[large].bfloat16()).float().mean() > 0.9


def test_nothing_that_is_kept_between_steps_is_bfloat16(policy):
    optimizer = make_optimizer(policy)
    loss_of(policy, make_batch()).backward()
    optimizer.step()
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in policy.parameters()} == {torch.float32}
    kept = [value for state in optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in kept} == {torch.float32}


def test_gradients_add_up_in_float32(policy):
    """A hundred times the same gradient is a hundred times it; in bfloat16 such a sum stops growing."""
    batch = make_batch()
    loss_of(policy, batch).backward()
    once = [parameter.grad.clone() for parameter in policy.parameters()]
    for _ in range(99):
        loss_of(policy, batch).backward()
    for parameter, gradient in zip(policy.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 100 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("bfloat16", "tolerance"), [(False, 1e-4), (True, 0.02)])
def test_micro_batches_add_up_to_the_batch(policy, bfloat16, tolerance):
    batch = make_batch()
    loss_of(policy, batch, bfloat16).backward()
    whole = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
    policy.zero_grad()
    for sample in range(4):
        micro = {key: value[sample : sample + 1] for key, value in batch.items()}
        (loss_of(policy, micro, bfloat16) / 4).backward()
    parts = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
    assert (parts - whole).norm() < tolerance * whole.norm()


def test_bfloat16_loss_and_gradient_are_close_to_float32(policy):
    """Loss within 1%, gradient within 5% of its length."""
    for seed in range(4):
        found = {}
        for bfloat16 in (False, True):
            policy.zero_grad()
            loss = loss_of(policy, make_batch(seed=seed), bfloat16)
            loss.backward()
            gradient = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
            found[bfloat16] = loss.detach(), gradient
        assert found[True][0].dtype == torch.float32
        assert (found[True][0] - found[False][0]).abs() < 0.01 * found[False][0]
        assert (found[True][1] - found[False][1]).norm() < 0.05 * found[False][1].norm()


def test_bfloat16_training_follows_float32(policy):
    batch = make_batch()
    ends = []
    for bfloat16 in (False, True):
        twin = copy.deepcopy(policy)
        twin.config.optimizer_lr = 1e-3
        optimizer = make_optimizer(twin)
        start = loss_of(twin, batch, bfloat16).item()
        for _ in range(30):
            optimizer.zero_grad()
            loss_of(twin, batch, bfloat16).backward()
            optimizer.step()
        ends.append(loss_of(twin, batch, bfloat16).item())
    assert ends[0] < 0.7 * start
    assert abs(ends[1] - ends[0]) < 0.05 * ends[0]


def test_dtypes_inside(policy):
    """bfloat16 between layers and in their products; float32 where state, actions and time go in and out."""
    model = policy.model
    seen = {}

    def note(name):
        return lambda module, inputs, output: seen.update({name: (inputs[0].dtype, output_dtype(output))})

    def output_dtype(output):
        while isinstance(output, tuple):
            output = output[0]
        return output.dtype

    stacks = {"vision": model.vision.layers, "prefix": model.prefix.layers, "suffix": model.suffix.layers}
    for name, layers in stacks.items():
        for number, layer in enumerate(layers):
            layer.register_forward_hook(note(f"{name}.{number}"))
    for layer in (*model.prefix.layers, *model.suffix.layers):
        layer.mlp.up_proj.register_forward_hook(note("product"))
    outer = ("state_proj", "action_in_proj", "action_time_mlp_in", "action_time_mlp_out", "action_out_proj")
    for name in outer:
        getattr(model, name).register_forward_hook(note(name))
    loss = loss_of(policy, make_batch())
    assert loss.dtype == torch.float32
    for name, dtypes in seen.items():
        assert set(dtypes) == ({torch.float32} if name in outer else {torch.bfloat16}), name
    assert len(seen) == 2 + 2 + 3 + 1 + 5


def test_norms_are_computed_in_float32():
    norm = RMSNorm(256)
    torch.nn.init.normal_(norm.weight, std=0.1)
    x = (torch.randn(8, 256) * 100).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), norm(x.float()).bfloat16())


def test_softmax_and_its_sums_are_float32():
    """Large scores of bfloat16 vectors are off by a rounding of the result, and not by one of the scores."""
    q, k, v = (torch.randn(1, length, 2, 64).bfloat16() for length in (8, 1024, 1024))
    q = q * 4
    bias = attention_bias(torch.ones(1, 1, 1024, dtype=torch.bool), 1, torch.bfloat16)
    scores = torch.einsum("blhd,bkhd->bhlk", q.double(), k.double()) / 8
    exact = torch.einsum("bhlk,bkhd->blhd", scores.softmax(dim=3), v.double()).flatten(2)
    rough = torch.einsum("bhlk,bkhd->blhd", scores.bfloat16().double().softmax(dim=3), v.double()).flatten(2)
    error = (attention(q, k, v, bias).double() - exact).norm()
    assert error < 2**-8 * exact.norm()
    assert (rough - exact).norm() > 3 * error


def test_time_is_embedded_in_float32():
    """Two moments that bfloat16 cannot tell apart."""
    with torch.autocast("cpu", torch.bfloat16):
        near, far = time_embedding(torch.tensor([0.999, 0.9991]), 32, 4e-3, 4.0)
    assert near.dtype == torch.float32
    assert torch.tensor(0.999).bfloat16() == torch.tensor(0.9991).bfloat16()
    assert (near - far).abs().max() > 0.1
