"""LoRA and frozen parts: what is trained, what is kept in memory, what is on disk."""

import pytest
import torch
from lerobot.configs.default import PeftConfig
from safetensors.torch import load_file, save_file
from small_pi0 import both_families

from depi.errors import UserError
from depi.files import read_json, write_json
from depi.policies import load_policy, make_policy, make_processors
from depi.policies.adapters import (
    add_adapters,
    around_the_suffix,
    hold_frozen_in_bfloat16,
    load_adapters,
    lora_layers,
    save_adapters,
)
from depi.policies.factory import save_checkpoint
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


def test_adapters_need_a_checkpoint(make_config, data):
    with pytest.raises(UserError, match="use_peft needs a checkpoint"):
        make_policy(make_config(use_peft=True), data)


@both_families
def test_fresh_adapters_change_nothing(base, batch):
    before = base.forward(batch)[0]
    add_adapters(base.model, PeftConfig(r=4))
    assert torch.equal(base.forward(batch)[0], before)


@both_families
def test_only_adapters_and_small_projections_learn(adapted, batch):
    before = values(adapted)
    losses = train(adapted, batch, steps=20)
    assert losses[-1] < 0.7 * losses[0]
    moved = {name for name, value in values(adapted).items() if not torch.equal(value, before[name])}
    around = tuple(around_the_suffix(adapted.model))
    assert moved == {name for name in before if ".lora_" in name or name.startswith(around)}
    # Seven matrices in each layer, but in the last one of the language model only keys and values; and those
    # that modulate pi0.5's norms.
    modulations = 2 * 3 + 1 if adapted.name == "depi_pi05" else 0
    assert len(lora_layers(adapted.model)) == 3 * 7 + 2 * 7 + 2 + modulations
    assert {parameter.dtype for parameter in adapted.get_optim_params()} == {torch.float32}


@both_families
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


@both_families
def test_adapters_alone_are_a_checkpoint_too(adapted, batch, stats, tokenizer, tmp_path):
    train(adapted, batch)
    expected = adapted.predict_action_chunk(batch)
    (tmp_path / "adapter").mkdir()
    save_checkpoint(tmp_path / "adapter", adapted, *make_processors(adapted.config, stats), adapters=True)
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


@both_families
def test_compiling_and_recomputing_change_nothing(adapted, batch):
    for layer in lora_layers(adapted.model).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)

    def gradients():
        adapted.zero_grad()
        adapted.forward(batch)[0].backward()
        return [parameter.grad for parameter in adapted.get_optim_params()]

    expected = gradients()
    assert all(gradient.abs().max() > 0 for gradient in expected)
    adapted.model.set_recompute(0.5)
    torch.testing.assert_close(gradients(), expected)
    adapted.model.compile_layers(backend="aot_eager")
    torch.testing.assert_close(gradients(), expected, rtol=1e-4, atol=1e-6)


@both_families
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
    around = tuple(around_the_suffix(base.model))
    assert kept_in_float32 == {
        name
        for name, _ in base.model.named_parameters()
        if ("norm" in name and "modulation" not in name)
        or "position" in name
        or ".lora_" in name
        or name.startswith(around)
    }


def test_names_may_be_lerobots(base):
    """What LeRobot adapts by default, in its own words: queries and values of the expert, the projections."""
    around = around_the_suffix(base.model)
    projections = "state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out"
    targets = rf"(.*\.gemma_expert\..*\.self_attn\.(q|v)_proj|model\.({projections}))"
    add_adapters(base.model, PeftConfig(target_modules=targets, full_training_modules=[]))
    assert set(lora_layers(base.model)) == {
        *(f"suffix.layers.{layer}.{name}_proj" for layer in range(3) for name in "qv"),
        *around,
    }
    assert all(".lora_" in name for name, value in base.model.named_parameters() if value.requires_grad)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["suffix.layers.1.q_proj", "fc1"], {"suffix.layers.1.q_proj", "vision.layers.0.fc1"}),
        (["language_model.layers.2.self_attn.k_proj"], {"prefix.last_layer.k_proj"}),
        (r"vision.*fc2", {"vision.layers.0.fc2"}),
    ],
)
def test_chosen_targets(make_config, data, targets, names):
    model = make_policy(make_config(vision_depth=1), data).model
    add_adapters(model, PeftConfig(target_modules=targets))
    assert set(lora_layers(model)) == names


def test_frozen_parts_get_no_adapter(make_config, data, batch):
    policy = make_policy(make_config(train_expert_only=True), data)
    add_adapters(policy.model, PeftConfig(r=2))
    assert set(lora_layers(policy.model)) == {
        name
        for name, module in policy.model.named_modules()
        if name in lora_layers(policy.model) and name.startswith("suffix.")
    }
    assert len(lora_layers(policy.model)) == 3 * 7
    losses = train(policy, batch, steps=10)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"method_type": "MISS"}, "use LORA"),
        ({"init_type": "pissa"}, "init_type=pissa"),
        ({"r": 0}, "r must be at least 1"),
        ({"target_modules": "nothing"}, "matches no linear layer"),
        ({"target_modules": "("}, "no regular expression"),
        ({"full_training_modules": ["nothing"]}, "matches no module"),
    ],
)
def test_wrong_flags(policy, flags, message):
    with pytest.raises(UserError, match=message):
        add_adapters(policy.model, PeftConfig(**flags))
    assert not lora_layers(policy.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "MISS"}, "peft_type"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a number of at most 1000000, not '10000"),
        ({"lora_alpha": 1e308}, "lora_alpha must be a number"),
        ({"base_model_name_or_path": None}, "does not name the checkpoint"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "neither a folder nor a Hub repository"),
    ],
)
def test_adapter_files_are_checked(adapted, stats, tokenizer, tmp_path, change, message):
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_checkpoint(folder, adapted, *make_processors(adapted.config, stats), adapters=True)
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", config | change)
    with pytest.raises(UserError, match=message):
        load_policy(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors, key: tensors.pop(key), "without"),
        (lambda tensors, key: tensors.pop(key.replace("lora_B", "lora_A")), "without"),
        (
            lambda tensors, key: tensors.update({key.replace("lora_B", "lora_C"): tensors.pop(key)}),
            "nowhere|without",
        ),
        (lambda tensors, key: tensors.update({key: tensors[key][:, :1].clone()}), "do not fit together"),
        (lambda tensors, key: tensors.update({key: tensors[key][:1]}), "shape"),
        (
            lambda tensors, key: tensors.update({"base_model.model.model.x.weight": tensors[key].clone()}),
            "nowhere",
        ),
        (lambda tensors, key: tensors[key].fill_(torch.nan), "NaN or infinite, in 1 of .*q_proj.lora_B"),
    ],
)
def test_damaged_adapters_are_refused(adapted, stats, tokenizer, tmp_path, damage, message):
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_checkpoint(folder, adapted, *make_processors(adapted.config, stats), adapters=True)
    tensors = load_file(folder / "adapter_model.safetensors")
    damage(tensors, min(key for key in tensors if "self_attn.q_proj.lora_B" in key))
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=message):
        load_policy(folder)


def test_a_frozen_prefix_keeps_nothing_for_the_backward_pass(make_config, data, batch):
    """Of a frozen prefix only the keys and values that the expert reads stay; of a frozen tower nothing."""
    kept = {}
    for flag in ("train_expert_only", "freeze_vision_encoder"):
        policy = make_policy(make_config(**{flag: True, "dtype": "bfloat16"}), data)
        hold_frozen_in_bfloat16(policy.model)
        observation = policy.observe(batch)
        with policy.autocast():
            pixels = observation.images.flatten(0, 1).float() / 127.5 - 1
            assert saved_sizes(lambda model=policy.model, pixels=pixels: model.vision(pixels))[0] == {}
            sizes, prefix = saved_sizes(
                lambda model=policy.model, seen=observation: model.encode_prefix(seen)
            )
        kept[flag] = sum(sizes.values())
        assert all(part.requires_grad == (flag == "freeze_vision_encoder") for part in prefix.keys_values[1])
    assert kept["train_expert_only"] == 0
    assert kept["freeze_vision_encoder"] > 0


@pytest.mark.parametrize("flag", ["train_expert_only", "freeze_vision_encoder"])
def test_partly_frozen_checkpoints_are_whole_and_float32(make_config, data, batch, tmp_path, flag):
    policy = make_policy(make_config(**{flag: True, "dtype": "bfloat16", "depth": 2}), data)
    policy.save_pretrained(tmp_path / "before")
    hold_frozen_in_bfloat16(policy.model)
    if flag == "train_expert_only":
        policy.model.compile_layers(backend="aot_eager")
    losses = train(policy, batch, steps=10, lr=3e-3)
    assert losses[-1] < losses[0]
    policy.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert {value.dtype for value in after.values()} == {torch.float32}
    again = load_policy(tmp_path / "after")
    hold_frozen_in_bfloat16(again.model)
    for name, value in policy.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
        assert again.model.state_dict()[name].dtype == value.dtype
