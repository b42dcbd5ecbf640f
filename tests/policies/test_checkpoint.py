"""Checkpoint folders: there and back, and everything that can be wrong with one."""

import json
import logging
import shutil

import pytest
import torch
from huggingface_hub import HfApi
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from safetensors.torch import load_file, save_file

from depi.errors import UserError
from depi.models.pi0 import Pi0, Pi0Dimensions
from depi.policies import (
    convert,
    load_config,
    load_policy,
    load_processors,
    make_processors,
    preprocess,
    save_checkpoint,
    set_features,
)
from depi.policies.convert import (
    EMBEDDING,
    EXPERT,
    LANGUAGE,
    TIED_HEAD,
    lerobot_name,
    save_weights,
    unused_shapes,
)
from depi.policies.processors import save_processors


@pytest.fixture
def folder(policy, stats, tokenizer, tmp_path):
    """A checkpoint folder."""
    pre, post = make_processors(policy.config, stats)
    save_checkpoint(tmp_path / "checkpoint", policy, pre, post)
    return tmp_path / "checkpoint"


def rewrite_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def same_weights(first, second):
    pairs = zip(first.model.named_parameters(), second.model.named_parameters(), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


def test_there_and_back(policy, folder, raw_batch):
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "policy_preprocessor.json",
        "policy_postprocessor.json",
    } < names
    loaded = load_policy(folder)
    assert same_weights(loaded, policy)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    pre, post = load_processors(folder)
    batch = preprocess(raw_batch, pre)
    with torch.no_grad():
        assert policy.eval().forward(batch)[0] == loaded.forward(batch)[0]
    actions = post(loaded.predict_action_chunk(batch))
    torch.testing.assert_close(actions, loaded.predict_action_chunk(batch) * 30 + 10)


def test_training_goes_on_after_loading(folder, batch):
    """What was loaded changes in memory, not on disk."""
    before = (folder / "model.safetensors").read_bytes()
    loaded = load_policy(folder)
    optimizer = torch.optim.AdamW(loaded.get_optim_params(), lr=1e-2)
    loss = loaded.forward(batch)[0]
    loss.backward()
    optimizer.step()
    assert loaded.forward(batch)[0] < loss
    assert (folder / "model.safetensors").read_bytes() == before


def test_folder_of_a_training_step(policy, folder):
    step = folder.parent / "000100"
    step.mkdir()
    shutil.move(folder, step / "pretrained_model")
    assert same_weights(load_policy(step), policy)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_names_without_prefix_and_tied_embedding(policy, folder, prefix):
    def strip(weights):
        del weights[f"model.{EMBEDDING}"]
        for name in list(weights):
            weights[prefix + name.removeprefix("model.")] = weights.pop(name)

    rewrite_weights(folder, strip)
    assert same_weights(load_policy(folder), policy)


def test_bfloat16_file_becomes_float32(policy, folder):
    rewrite_weights(folder, lambda weights: weights.update({k: v.bfloat16() for k, v in weights.items()}))
    loaded = load_policy(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(
        loaded.model.image_proj.weight, policy.model.image_proj.weight, rtol=0.01, atol=0
    )


def test_missing_and_unexpected_names(folder):
    def damage(weights):
        del weights["model.state_proj.bias"]
        del weights["model.action_out_proj.weight"]
        weights["model.surprise"] = torch.zeros(1)

    rewrite_weights(folder, damage)
    with pytest.raises(UserError, match=r"3 tensors differ: missing .*; missing .*; unexpected surprise"):
        load_policy(folder)


def test_one_parameter_under_two_names(folder):
    """Which of them would be meant?"""
    name = "paligemma_with_expert.paligemma.multi_modal_projector.linear.bias"
    rewrite_weights(folder, lambda weights: weights.update({name: torch.zeros(48)}))
    with pytest.raises(UserError, match=r"holds .*multi_modal_projector.linear.bias twice, as .* and as"):
        load_policy(folder)


@pytest.mark.parametrize("strict", [True, False])
def test_quantised_weights_are_refused(folder, strict):
    key = "model.state_proj.bias"
    rewrite_weights(folder, lambda weights: weights.update({key: weights[key].to(torch.int8)}))
    with pytest.raises(UserError, match=r"state_proj\.bias has dtype I8"):
        load_policy(folder, strict=strict)


def test_not_strict_names_what_is_random(folder, policy, caplog):
    rewrite_weights(folder, lambda weights: weights.pop("model.state_proj.weight"))
    with caplog.at_level(logging.WARNING):
        loaded = load_policy(folder, strict=False)
    assert "missing state_proj.weight" in caplog.text
    assert torch.equal(loaded.model.state_proj.bias, policy.model.state_proj.bias)
    assert 0 < loaded.model.state_proj.weight.std() < 1


def test_shapes_always_count(folder):
    rewrite_weights(folder, lambda weights: weights.update({"model.state_proj.weight": torch.zeros(3, 2)}))
    for strict in (True, False):
        with pytest.raises(
            UserError, match=r"state_proj.weight has shape \[3, 2\], the policy needs \[40, 32\]"
        ):
            load_policy(folder, strict=strict)


@pytest.mark.parametrize("size", [0, 5, 1000, 40_000])
def test_truncated_weights(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        load_policy(folder)


def test_missing_files(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="does not exist"):
        load_policy(folder)
    (folder / "policy_postprocessor.json").unlink()
    with pytest.raises(UserError, match=r"policy_postprocessor.json does not exist"):
        load_processors(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config.json"):
        load_policy(folder)
    for name in (tmp_path / "nothing", "./nothing", "nothing"):
        with pytest.raises(UserError, match="neither a folder nor a Hub repository"):
            load_policy(name)


def test_other_policy_type(folder):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"type": "tdmpc"}))
    with pytest.raises(UserError, match="policy type 'tdmpc'; DePi knows pi0, depi_pi0"):
        load_policy(folder)
    for content in ([], {}, {"type": ["pi0"]}, {"type": {"pi0": 1}}):
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="names no policy type"):
            load_policy(folder)


def test_overrides(folder):
    assert load_policy(folder, config_overrides=["--n_action_steps=2"]).config.n_action_steps == 2
    for flag, message in (
        ("--n_action_steps=99", "cannot be greater than chunk_size"),
        ("--no_such_field=1", "no_such_field"),
        ("--depth=many", "many"),
        ("--width=-3", "width must be between"),
    ):
        with pytest.raises(UserError, match=message):
            load_policy(folder, config_overrides=[flag])
    with pytest.raises(UserError, match="does not fit the policy"):
        load_policy(folder, config_overrides=["--depth=4"])


def test_fine_tuning_on_other_data(folder, data):
    data.camera_slots, data.state_dim = ("observation.image",), 2
    loaded = load_policy(folder, data=data)
    assert list(loaded.config.image_features) == ["observation.image"]
    assert loaded.config.robot_state_feature.shape == (2,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compile_model": True, "compile_mode": "evil"}, "compile_mode 'evil' is none of"),
        ({"compile_model": True, "compile_mode": {"a": 1}}, "compile_mode .* is none of"),
        ({"n_action_steps": -1}, "n_action_steps must be an integer of 1 to 4096, not -1"),
        ({"max_state_dim": None}, "max_state_dim must be an integer"),
        ({"max_action_dim": 2**70}, "max_action_dim must be an integer"),
        ({"input_features": None}, "input_features must be an object, not None"),
        ({"image_resolution": None}, "image_resolution"),
        ({"input_features": {"observation.state": {"type": ["STATE"], "shape": [6]}}}, "input_features"),
        (
            {"input_features": {"observation.state": {"type": "STATE", "shape": [-1]}}},
            r"the shape of observation.state in input_features is \[-1\]",
        ),
    ],
)
def test_fields_of_wrong_types_and_sizes_are_named(folder, change, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        load_policy(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(folder, number):
    rewrite_weights(folder, lambda weights: weights["model.action_out_proj.weight"][0, :1].fill_(number))
    with pytest.raises(UserError, match=r"in 1 of .* tensors, first action_out_proj.weight"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("observation.state.mean", [torch.nan] * 6, "mean of observation.state is NaN or infinite"),
        ("action.std", [torch.inf] * 6, "std of action is NaN or infinite"),
        ("action.std", [1.0] * 5, "std of action has 5 numbers, and config.json says 6"),
        ("observation.state.std", [-1.0] * 6, "mean and std of observation.state give a negative spread"),
    ],
)
@pytest.mark.parametrize("which", ["pre", "post"])
def test_statistics_that_cannot_be_are_refused(folder, tokenizer, which, name, value, message):
    (path,) = folder.glob(f"policy_{which}processor*normalizer*.safetensors")
    save_file(load_file(path) | {name: torch.tensor(value)}, path)
    with pytest.raises(UserError, match=message) as caught:
        load_processors(folder)
    assert f"policy_{which}processor.json" in str(caught.value)


def test_statistics_without_spread_are_said(folder, tokenizer, caplog):
    (path,) = folder.glob("policy_preprocessor*normalizer*.safetensors")
    stats = load_file(path)
    stats["observation.state.std"][2:4] = 0
    save_file(stats, path)
    load_processors(folder)
    assert "mean and std of observation.state give no spread in numbers [2, 3]" in caplog.text


def test_processor_files_are_checked(folder):
    path = folder / "policy_preprocessor.json"
    content = json.loads(path.read_text())
    for step, message in (
        ({"class": "os.system", "config": {}}, "not part of depi_pi0: os.system"),
        (
            {"registry_name": "normalizer_processor", "state_file": "../../other.safetensors"},
            "plain file name",
        ),
        ("step", "no list of steps"),
    ):
        path.write_text(json.dumps(content | {"steps": [*content["steps"], step]}))
        with pytest.raises(UserError, match=message):
            load_processors(folder)


def test_every_lerobot_name_is_there():
    """Names of a published `pi0`: 27 vision layers of 16, 18 + 18 Gemma layers of 9, and the rest."""
    with torch.device("meta"):
        model = Pi0(Pi0Dimensions.full())
    ours = {lerobot_name(name, 18) for name in model.state_dict()}
    unused = set(unused_shapes(model.dimensions))
    assert not ours & unused
    rest = (
        5 + 2 + 1 + 2 + 2 + 10
    )  # patches and vision norm; projector; tokens; norms; heads; action projections
    assert len(ours | unused) == 27 * 16 + 2 * 18 * 9 + rest
    for name in (
        LANGUAGE + "layers.17.self_attn.k_proj.weight",
        LANGUAGE + "layers.3.post_attention_layernorm.weight",
        EXPERT + "model.layers.17.mlp.down_proj.weight",
        EXPERT + "model.norm.weight",
        "action_time_mlp_out.bias",
    ):
        assert name in ours


def test_restored_parts(policy, folder):
    exported = load_file(folder / "model.safetensors")
    assert torch.equal(exported[f"model.{TIED_HEAD}"], policy.model.token_embedding.weight)
    for name, shape in unused_shapes(policy.model.dimensions).items():
        assert tuple(exported[f"model.{name}"].shape) == shape
        assert name == TIED_HEAD or not exported[f"model.{name}"].any()


def test_saving_converts_and_gathers(policy, tmp_path):
    """Weights in another dtype or layout are written as float32, in the right order."""
    state = {name: value.double() for name, value in policy.state_dict().items()}
    weight = "model.state_proj.weight"
    state[weight] = state[weight].t().contiguous().t()
    save_weights(tmp_path / "model.safetensors", state, policy.layout)
    exported = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in exported.values()} == {torch.float32}
    assert torch.equal(exported[weight], policy.model.state_proj.weight)


def test_published_size_is_lerobots_own_type(data, tmp_path):
    config = PI0Config(device="cpu")
    set_features(config, data)
    config.save_pretrained(tmp_path)
    stock = PreTrainedConfig.from_pretrained(tmp_path)
    assert type(stock) is PI0Config
    assert stock.image_features == config.image_features
    assert load_config(tmp_path) == stock


def test_revision_counts_for_config_weights_and_processors(hub, policy, folder, stats):
    api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
    api.create_repo("someone/pi0", repo_type="model")
    first = api.upload_folder(repo_id="someone/pi0", folder_path=folder).oid
    rewrite_weights(folder, lambda weights: weights.update({"model.state_proj.bias": torch.ones(40)}))
    policy.config.n_action_steps = 2
    policy.config._save_pretrained(folder)
    stats["action"]["mean"] += 5
    save_processors(folder, *make_processors(policy.config, stats))
    api.upload_folder(repo_id="someone/pi0", folder_path=folder)

    old, new = load_policy("someone/pi0", revision=first), load_policy("someone/pi0")
    assert same_weights(old, policy)
    assert (new.model.state_proj.bias == 1).all()
    assert (old.config.n_action_steps, new.config.n_action_steps) == (5, 2)
    zero = torch.zeros(1, 7, 6)
    (_, post_old), (_, post_new) = (
        load_processors("someone/pi0", revision=first),
        load_processors("someone/pi0"),
    )
    assert (post_old(zero) == 10).all()
    assert (post_new(zero) == 15).all()


def test_revisions_that_cannot_be(hub, folder):
    with pytest.raises(UserError, match="someone/nothing"):
        load_policy("someone/nothing")
    api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
    api.create_repo("someone/pi0", repo_type="model")
    api.upload_folder(repo_id="someone/pi0", folder_path=folder)
    with pytest.raises(UserError, match="nowhere"):
        load_policy("someone/pi0", revision="nowhere")
    with pytest.raises(UserError, match="is a folder: revision main"):
        load_policy(folder, revision="main")


def test_cuda_is_the_processs_own_device(monkeypatch):
    """To safetensors it would be the first one, for every process."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    named = [convert._numbered(device) for device in ("cuda", torch.device("cuda"), "cuda:1", "cpu")]
    assert named == ["cuda:3", "cuda:3", "cuda:1", "cpu"]
