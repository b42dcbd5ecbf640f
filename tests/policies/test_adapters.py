"""LoRA and frozen parts: what is trained, what is kept in memory, what is on disk."""

import pytest
import torch
from lerobot.configs.default import PeftConfig
from safetensors.torch import load_file

from depi.errors import UserError
from depi.policies import load_policy, make_policy, make_processors
from depi.policies.adapters import (
    FULLY_TRAINED,
    add_adapters,
    hold_frozen_in_bfloat16,
    load_adapters,
    lora_layers,
    save_adapters,
)
from depi.policies.factory import save_adapter_checkpoint
from depi.training.optimizer import make_optimizer


@pytest.fixture
def base(policy, tmp_path):
    """A checkpoint to adapt."""
    policy.save_pretrained(tmp_path / "base")
    policy.config.pretrained_path = tmp_path / "base"
    return policy


@pytest.fixture
def adapted(base):
    add_adapters(base.model, PeftConfig(r=4, lora_alpha=8))
    return base


def train(policy, batch, steps=3, lr=1e-2):
    policy.config.optimizer_lr = lr
    optimizer = make_optimizer(policy)
    losses = []
    for _ in range(steps):
        with policy.autocast():
            loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def values(policy):
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def saved_sizes(run):
    """Sizes of the tensors, weights excepted, that autograd keeps while `run` runs."""
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter) and not tensor._is_view():
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return kept, result


def test_fresh_adapters_change_nothing(base, batch):
    before = base.forward(batch)[0]
    add_adapters(base.model, PeftConfig(r=4))
    assert torch.equal(base.forward(batch)[0], before)


def test_only_adapters_and_small_projections_learn(adapted, batch):
    before = values(adapted)
    losses = train(adapted, batch, steps=20)
    assert losses[-1] < 0.7 * losses[0]
    moved = {name for name, value in values(adapted).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".lora_" in name or name.startswith(FULLY_TRAINED)}
    # Seven matrices in each layer, but in the last one of the language model only keys and values.
    assert len(lora_layers(adapted.model)) == 3 * 7 + 2 * 7 + 2
    assert {parameter.dtype for parameter in adapted.get_optim_params()} == {torch.float32}


def test_a_merged_checkpoint_acts_like_the_adapted_policy(adapted, batch, tmp_path):
    train(adapted, batch)
    expected = adapted.predict_action_chunk(batch)
    adapted.save_pretrained(tmp_path / "merged")
    merged = load_policy(tmp_path / "merged")
    torch.testing.assert_close(merged.predict_action_chunk(batch), expected, rtol=1e-4, atol=1e-5)
    original, now = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert {name: value.shape for name, value in original.items()} == {
        name: value.shape for name, value in now.items()
    }
    assert {value.dtype for value in now.values()} == {torch.float32}
    base = load_policy(tmp_path / "base").predict_action_chunk(batch)
    assert (base - expected).abs().max() > 0.01


def test_adapters_alone_are_a_checkpoint_too(adapted, batch, stats, tokenizer, tmp_path):
    train(adapted, batch)
    expected = adapted.predict_action_chunk(batch)
    (tmp_path / "adapter").mkdir()
    save_adapter_checkpoint(tmp_path / "adapter", adapted, *make_processors(adapted.config, stats))
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded = load_policy(tmp_path / "adapter")
    assert not loaded.config.use_peft
    torch.testing.assert_close(loaded.predict_action_chunk(batch), expected, rtol=1e-4, atol=1e-5)


def test_adapters_come_back_exactly_on_the_same_base_only(adapted, batch, make_config, data, tmp_path):
    train(adapted, batch)
    save_adapters(tmp_path, adapted.model, tmp_path / "base")
    again = load_policy(tmp_path / "base")
    add_adapters(again.model, PeftConfig(r=4, lora_alpha=8))
    hold_frozen_in_bfloat16(again.model)
    load_adapters(again.model, tmp_path)
    for mine, theirs in zip(adapted.get_optim_params(), again.get_optim_params(), strict=True):
        assert torch.equal(mine, theirs)
    other_base = make_policy(make_config(), data)
    add_adapters(other_base.model, PeftConfig(r=4, lora_alpha=8))
    with pytest.raises(UserError, match="other base weights"):
        load_adapters(other_base.model, tmp_path)
    other_rank = load_policy(tmp_path / "base")
    add_adapters(other_rank.model, PeftConfig(r=5))
    with pytest.raises(UserError, match="other adapters"):
        load_adapters(other_rank.model, tmp_path)


@pytest.mark.parametrize("recompute", [0.5, 1.0])
def test_compiling_and_recomputing_change_nothing(adapted, batch, recompute):
    for layer in lora_layers(adapted.model).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)

    def gradients():
        adapted.zero_grad()
        adapted.forward(batch)[0].backward()
        return [parameter.grad for parameter in adapted.get_optim_params()]

    expected = gradients()
    assert all(gradient.abs().max() > 0 for gradient in expected)
    adapted.model.set_recompute(recompute)
    torch.testing.assert_close(gradients(), expected)
    adapted.model.compile_layers(backend="aot_eager")
    torch.testing.assert_close(gradients(), expected, rtol=1e-4, atol=1e-6)


def test_frozen_weights_in_bfloat16_compute_the_same(base, make_config, batch):
    """Autocast rounds the others to the same numbers; only the scaled token embedding is rounded twice."""
    base.config.dtype = "bfloat16"
    add_adapters(base.model, PeftConfig(r=4))
    embedding = base.model.token_embedding.weight
    embedding.data = embedding.data.bfloat16().float()
    with base.autocast():
        before = base.forward(batch)[0]
    prefix = base.model.prefix.layers[0].mlp.gate_proj.base_layer.weight
    hold_frozen_in_bfloat16(base.model)
    assert prefix.dtype == embedding.dtype == torch.bfloat16
    with base.autocast():
        torch.testing.assert_close(base.forward(batch)[0], before, rtol=2e-3, atol=0)
    kept_in_float32 = {
        name for name, parameter in base.model.named_parameters() if parameter.dtype == torch.float32
    }
    assert kept_in_float32 == {
        name
        for name, _ in base.model.named_parameters()
        if "norm" in name or "position" in name or ".lora_" in name or name.startswith(FULLY_TRAINED)
    }
