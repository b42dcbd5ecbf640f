"""Adapters between DePi and LeRobot's pi0 and pi0.5 at reduced size: either reads the other's files."""

import pytest
import torch
from lerobot.configs.default import PeftConfig
from peft import PeftModel, get_peft_model_state_dict
from reduced_lerobot import FAMILIES, make_batch, make_config, reduced_sizes
from safetensors.torch import load_file
from true_velocity import true_velocity_behind

from depi.policies import load_config, load_policy
from depi.policies.adapters import ADAPTER_WEIGHTS, add_adapters, save_adapters


@pytest.fixture(scope="module", params=["pi0", "pi05"])
def base(tmp_path_factory, request):
    """A folder with LeRobot's policy at reduced size; DePi and LeRobot think that it is the published one."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(1)
    with reduced_sizes(request.param) as policy_class:
        policy_class(make_config(request.param)).save_pretrained(folder)
        yield folder


def disturb(parameters):
    """What training would do."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def actions(policy):
    batch = make_batch()
    torch.manual_seed(3)
    noise = torch.randn(3, 6, 32)
    with true_velocity_behind(policy, noise):
        return policy.predict_action_chunk(batch, noise=noise)


def lerobot_policy(folder):
    """LeRobot's loader hides mismatches; here they are errors."""
    config = load_config(folder)
    policy = FAMILIES[config.type].policy(config)
    policy.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return policy.eval()


def test_lerobot_runs_what_depi_has_adapted(base, tmp_path):
    policy = load_policy(base)
    add_adapters(policy.model, PeftConfig(r=4))
    disturb(policy.parameters())
    expected = actions(policy)
    policy.save_pretrained(tmp_path)
    torch.testing.assert_close(actions(lerobot_policy(tmp_path)), expected, rtol=1e-3, atol=1e-4)
    assert (actions(lerobot_policy(base)) - expected).abs().max() > 0.1

    save_adapters(tmp_path, policy.model, base)
    wrapped = PeftModel.from_pretrained(lerobot_policy(base), str(tmp_path)).eval()
    mine = set(load_file(tmp_path / ADAPTER_WEIGHTS))
    assert mine == set(get_peft_model_state_dict(wrapped))
    torch.testing.assert_close(actions(wrapped), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("targets", [None, r".*(language_model|gemma_expert).*_proj", ["q_proj", "fc1"]])
def test_depi_runs_what_lerobot_has_adapted(base, tmp_path, targets):
    """LeRobot adapts also what never influences its output, and that changes nothing."""
    policy = lerobot_policy(base)
    policy.config.pretrained_path = base
    full = None if targets is None else ["action_in_proj"]
    flags = {"method_type": "LORA", "r": 4, "target_modules": targets, "full_training_modules": full}
    wrapped = policy.wrap_with_peft(peft_cli_overrides=flags)
    disturb(wrapped.parameters())
    expected = actions(wrapped.eval())
    wrapped.save_pretrained(tmp_path)
    policy.config.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path)
    torch.testing.assert_close(actions(loaded), expected, rtol=1e-3, atol=1e-4)
    assert (actions(load_policy(base)) - expected).abs().max() > 0.01
