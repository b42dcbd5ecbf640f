"""The optimizer is LeRobot's preset, in one kernel."""

import copy

import pytest
import torch
from small_pi0 import make_batch, make_small

from depi.training.optimizer import make_optimizer


def steps(policy, optimizer, count=5):
    batch = make_batch()
    for _ in range(count):
        optimizer.zero_grad()
        policy.forward(batch)[0].backward()
        optimizer.step()


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
