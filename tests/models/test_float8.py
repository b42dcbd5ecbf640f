"""Products in float8: near those in bfloat16, with the same weights, and only where they can be done."""

from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs.default import PeftConfig
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_TOKENS
from small_pi0 import CAMERAS, SIZES, both_families, make_batch, make_small
from torch import nn

from depi.errors import UserError
from depi.models.float8 import Float8Linear, takes_float8, to_float8, use_float8
from depi.policies.adapters import add_adapters, hold_frozen_in_bfloat16
from depi.training.run import check_float8

# Relative error of a product of random numbers: rounding to three bits, or to two for gradients.
FORWARD, BACKWARD = 0.045, 0.075


def relative_error(ours, theirs):
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()


def make_layer():
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(64, 96, bias=False))
    use_float8(part)
    return part


def results(layer, x, gradient):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    return out, *torch.autograd.grad(out, (x, *layer.parameters()), gradient)


@pytest.mark.parametrize("shape", [(48,), (41,), (1,), (3, 7)])
def test_a_layer_is_near_bfloat16(shape):
    """Also with numbers of tokens that are no multiple of 16."""
    layer = make_layer()
    x = torch.randn(*shape, 64, dtype=torch.bfloat16)
    gradient = torch.randn(*shape, 96, dtype=torch.bfloat16)
    found, expected = results(layer, x, gradient), results(layer.eval(), x, gradient)
    assert [(one.shape, one.dtype) for one in found] == [(one.shape, one.dtype) for one in expected]
    assert found[2].dtype == torch.float32
    assert 0.01 < relative_error(found[0], expected[0]) < FORWARD
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert relative_error(ours, theirs) < BACKWARD


@pytest.mark.parametrize("largest", [1e-20, 1e-6, 447.0, 448.0, 449.0, 3e4, 1e20])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_any_size_of_numbers_fits(largest, dtype):
    x = torch.linspace(-1, 1, 101)[:, None] * largest
    rounded, unit = to_float8(x, dtype)
    assert torch.isfinite(rounded.float()).all()
    assert torch.frexp(unit)[0] == 0.5, "a power of two"
    if largest > 1e-10:
        error = (rounded.float() * unit - x).abs() / x.abs().clamp(min=largest / 100)
        assert error.max() <= (1 / 16 if dtype == torch.float8_e4m3fn else 1 / 8)


def test_what_is_not_finite_stays_so():
    for bad in (torch.nan, torch.inf):
        x = torch.randn(16, 64).index_fill_(0, torch.tensor([3]), bad)
        assert not torch.isfinite(make_layer()(x)[3]).any()
    rounded, unit = to_float8(torch.zeros(2, 2), torch.float8_e4m3fn)
    assert (rounded.float() * unit == 0).all()


def test_compiled_code_gives_the_same_for_any_length():
    layer = make_layer()
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for length in (41, 64, 50):
        x = torch.randn(length, 64, dtype=torch.bfloat16)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=0)
    assert counted["unique_graphs"] - before == 1


@both_families
def test_a_policy_multiplies_so_while_it_trains(kind):
    plain, policy = (make_small(kind, dtype="bfloat16", float8=wanted).train() for wanted in (False, True))
    assert list(policy.state_dict()) == list(plain.state_dict())
    policy.load_state_dict(plain.state_dict())
    float8 = {name for name, part in policy.named_modules() if isinstance(part, Float8Linear)}
    assert len(float8) == 7 * (SIZES["depth"] - 1) + 2
    assert all(name.startswith("model.prefix.") for name in float8)
    batch = make_batch()
    with policy.autocast():
        losses = [each(batch)[0] for each in (plain, policy)]
        evaluated = [each.eval()(batch)[0] for each in (plain, policy)]
    assert losses[0] != losses[1]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.01)
    assert evaluated[0] == evaluated[1] == losses[0]
    for loss, each in zip(losses, (plain, policy), strict=True):
        loss.backward()
        assert all(p.grad.dtype == torch.float32 for p in each.parameters() if p.grad is not None)
    name = "model.prefix.layers.0.mlp.gate_proj.weight"
    gradients = [each.get_parameter(name).grad for each in (plain, policy)]
    assert relative_error(gradients[1], gradients[0]) < 0.4


def test_recomputed_layers_give_the_same():
    gradients = []
    for recompute in (0.0, 1.0):
        policy = make_small(dtype="bfloat16", float8=True).train()
        policy.model.set_recompute(recompute)
        with policy.autocast():
            policy(make_batch())[0].backward()
        gradients.append(policy.model.prefix.layers[0].mlp.up_proj.weight.grad)
    assert torch.equal(*gradients)


def test_wrong_sizes_are_refused_and_nothing_is_changed():
    part = nn.Sequential(nn.Linear(64, 96, bias=False), nn.Linear(96, 40, bias=False))
    with pytest.raises(ValueError, match="1 has 96 inputs and 40 outputs, and float8 takes multiples of 16"):
        use_float8(part)
    assert type(part[0]) is nn.Linear
    with pytest.raises(UserError, match="float8: gate_proj has 48 inputs and 72 outputs"):
        make_small(float8=True, mlp_dim=72)


def test_it_is_refused_where_it_cannot_be_done():
    config = SimpleNamespace(float8=True, dtype="float32")
    with pytest.raises(UserError, match=r"goes with --policy\.dtype"):
        check_float8(config, torch.device("cpu"))
    config.dtype = "bfloat16"
    check_float8(config, torch.device("cpu"))
    with pytest.raises(UserError, match=r"compute capability 8\.9 or higher"):
        check_float8(config, torch.device("mps"))
    check_float8(SimpleNamespace(dtype="float32"), torch.device("mps"))


@pytest.mark.parametrize(("capability", "taken"), [((8, 0), False), ((8, 9), True), ((10, 0), True)])
def test_gpus_that_take_it(monkeypatch, capability, taken):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert takes_float8(torch.device("cuda")) is taken
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not takes_float8(torch.device("cuda"))


def test_adapters_go_with_it():
    """Frozen weights are rounded too, and the gradient passes them."""
    found = []
    for float8 in (False, True):
        policy = make_small(dtype="bfloat16", float8=float8).train()
        add_adapters(policy.model, PeftConfig(r=4))
        hold_frozen_in_bfloat16(policy.model)
        with policy.autocast():
            policy(make_batch())[0].backward()
        found.append({name: p.grad for name, p in policy.named_parameters() if p.requires_grad})
        assert any(isinstance(part, Float8Linear) for part in policy.modules()) is float8
    name = "model.prefix.layers.0.mlp.gate_proj.lora_B.default.weight"
    assert found[0].keys() == found[1].keys()
    assert 0 < relative_error(found[1][name], found[0][name]) < 0.4


def shown_and_told(number, size=8):
    """A batch whose actions lead from where a picture says to where the prompt says, with scatter."""
    draw = torch.Generator().manual_seed(number)
    parts = [make_batch(size // 2, seed) for seed in (number, number + 100_000)]
    batch = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    shade, word = torch.rand(size, generator=draw), torch.randint(0, 2, (size,), generator=draw)
    batch[CAMERAS[0]] = 0.2 * batch[CAMERAS[0]] + 0.8 * shade[:, None, None, None]
    batch[OBS_LANGUAGE_TOKENS][:, 0] = 4 + word
    share = torch.linspace(0, 1, 6)[None, :, None]
    start, end = (2 * value[:, None, None] - 1 for value in (shade, word))
    batch[ACTION] = start * (1 - share) + end * share + 0.3 * torch.randn(size, 6, 6, generator=draw)
    return batch


def loss_curve(float8, steps=500):
    policy = make_small(dtype="bfloat16", float8=float8).train()
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 1 - 0.9 * step / steps)
    )
    losses = []
    for step in range(steps):
        with policy.autocast():
            loss = policy(shown_and_told(step))[0]
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_losses_are_those_of_bfloat16():
    """Over 500 steps, to 1% of the mean of each hundred; the loss falls by half."""
    plain, ours = (
        [mean(losses[first : first + 100]) for first in range(0, 500, 100)]
        for losses in (loss_curve(False), loss_curve(True))
    )
    print([f"{one:.4f} {other:.4f} {other / one - 1:+.2%}" for one, other in zip(plain, ours, strict=True)])
    assert plain[-1] < 0.55 * plain[0]
    assert ours == pytest.approx(plain, rel=0.01)
