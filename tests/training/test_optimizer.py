"""The optimizer is LeRobot's preset, in one kernel."""

import copy

import pytest
import torch
from small_pi0 import make_batch, make_small

from depi.training import optimizer
from depi.training.optimizer import clipped_step, make_optimizer


def steps(policy, taken, count=5):
    batch = make_batch()
    for _ in range(count):
        taken.zero_grad()
        policy.forward(batch)[0].backward()
        taken.step()


def test_same_values_and_same_steps_as_lerobots_preset():
    policy = make_small(optimizer_lr=2.5e-5)
    reference = copy.deepcopy(policy)
    mine = make_optimizer(policy)
    preset = reference.config.get_optimizer_preset()
    theirs = preset.build(reference.get_optim_params())
    for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"):
        assert mine.defaults[name] == theirs.defaults[name], name
    assert (preset.lr, preset.betas, preset.weight_decay) == (2.5e-5, (0.9, 0.95), 0.01)
    assert mine.defaults["fused"]
    assert not theirs.defaults["fused"]
    before = copy.deepcopy(policy)
    for _ in range(5):
        for one, other in zip(policy.parameters(), reference.parameters(), strict=True):
            one.grad = torch.randn_like(one) * 10 ** (torch.rand_like(one) * -6)
            other.grad = one.grad.clone()
        mine.step()
        theirs.step()
    for start, one, other in zip(
        before.parameters(), policy.parameters(), reference.parameters(), strict=True
    ):
        assert (other - start).abs().mean() > 1e-5
        torch.testing.assert_close(one - start, other - start, rtol=1e-3, atol=2.5e-7)


def ignore_what_is_told(monkeypatch):
    """A kernel that ignores divisor and bad steps, as that of MPS does."""
    take = torch.optim.AdamW.step

    def step(self):
        for told in ("grad_scale", "found_inf"):
            self.__dict__.pop(told, None)
        take(self)

    monkeypatch.setattr(optimizer.AdamW, "step", step)
    monkeypatch.setattr(optimizer, "HEEDING_DEVICES", ())


@pytest.mark.parametrize("heeding", [True, False])
@pytest.mark.parametrize(("limit", "size"), [(1.0, 3.0), (1.0, 1e-6), (1e9, 3.0), (0.0, 3.0)])
def test_a_step_clips_as_pytorch_does(monkeypatch, heeding, limit, size):
    """In the kernel of the optimizer, or before it where that kernel ignores what it should divide by."""
    if not heeding:
        ignore_what_is_told(monkeypatch)
    policy = make_small()
    reference = copy.deepcopy(policy)
    mine, theirs = make_optimizer(policy), make_optimizer(reference)
    for _ in range(3):
        for one, other in zip(policy.parameters(), reference.parameters(), strict=True):
            one.grad = size * torch.randn_like(one)
            other.grad = one.grad.clone()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in policy.parameters()])
        clipped_step(mine, norm, limit, torch.tensor(0.0))
        torch.nn.utils.clip_grad_norm_(reference.parameters(), limit or torch.inf)
        theirs.step()
    for one, other in zip(policy.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
        for name, value in mine.state[one].items():
            torch.testing.assert_close(value, theirs.state[other][name], rtol=1e-5, atol=1e-9)


def test_the_kernel_of_mps_is_told_nothing():
    assert set(optimizer.FUSED_DEVICES) - set(optimizer.HEEDING_DEVICES) == {"mps"}


@pytest.mark.parametrize("heeding", [True, False])
@pytest.mark.parametrize("limit", [1.0, 0.0])
def test_a_bad_step_changes_nothing(monkeypatch, heeding, limit):
    if not heeding:
        ignore_what_is_told(monkeypatch)
    policy = make_small()
    mine = make_optimizer(policy)
    steps(policy, mine, 2)
    before = copy.deepcopy([list(policy.parameters()), mine.state_dict()["state"]])
    for parameter in policy.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    clipped_step(mine, torch.tensor(torch.nan), limit, torch.tensor(1.0))
    torch.testing.assert_close(
        [list(policy.parameters()), mine.state_dict()["state"]], before, rtol=0, atol=0
    )


@pytest.mark.parametrize("flag", ["freeze_vision_encoder", "train_expert_only"])
def test_frozen_parameters_have_no_state(flag):
    policy = make_small(**{flag: True})
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    optimizer = make_optimizer(policy)
    steps(policy, optimizer, 1)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    assert len(optimizer.state) == len(trained) < len(list(policy.parameters()))
    moved = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def test_trained_parameters_must_be_float32():
    policy = make_small().bfloat16()
    with pytest.raises(ValueError, match="float32"):
        make_optimizer(policy)
