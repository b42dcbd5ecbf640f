"""Checkpoints of openpi and of LeRobot before 0.4: the same network comes out, or a sentence says why not."""

import json

import pytest
import torch
from huggingface_hub import HfApi
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors.torch import load_file, save_file
from small_pi0 import both_families

from depi.errors import UserError
from depi.policies import load_config, load_policy, load_processors, preprocess
from depi.policies.convert import EMBEDDING, LANGUAGE, PALIGEMMA, canonical_name, save_weights

OPENPI = {
    "action_dim": 32,
    "action_horizon": 7,
    "paligemma_variant": "gemma_2b",
    "action_expert_variant": "gemma_300m",
    "precision": "bfloat16",
}


@pytest.fixture
def small(monkeypatch, policy):
    """Let the published size be a small one; these files cannot name their sizes."""
    d = policy.model.dimensions
    monkeypatch.setattr(
        type(d),
        "full",
        classmethod(lambda cls, *, chunk_size, **_: cls(**{**vars(d), "chunk_size": chunk_size})),
    )
    return policy


@pytest.fixture
def weights(small, tmp_path):
    """Every tensor under LeRobot's present name, without `model.`."""
    save_weights(tmp_path / "whole.safetensors", small.state_dict(), small.layout)
    whole = load_file(tmp_path / "whole.safetensors")
    return {key.removeprefix("model."): value for key, value in whole.items()}


@pytest.fixture
def openpi(weights, tmp_path):
    """What openpi's converter writes: bfloat16, tied tensors once, no embedding of the expert, no prefix."""
    weights.pop(EMBEDDING)
    folder = tmp_path / "openpi"
    stats = folder / "assets" / "someone" / "so101"
    stats.mkdir(parents=True)
    save_file({key: value.bfloat16() for key, value in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(OPENPI))
    entry = {"mean": [10.0] * 6, "std": [30.0] * 6, "q01": [-20.0] * 6, "q99": [40.0] * 6}
    (stats / "norm_stats.json").write_text(json.dumps({"norm_stats": {"state": entry, "actions": entry}}))
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@both_families
def test_weights_and_configuration(openpi, small, kind):
    loaded = load_policy(openpi, device="cpu", config_overrides=["--n_action_steps=5"])
    for name, parameter in loaded.model.named_parameters():
        expected = small.model.get_parameter(name).bfloat16().float()
        assert torch.equal(parameter, expected), name
    config = loaded.config
    assert f"depi_{config.type}" == kind  # which is known by the names of the weights alone
    assert (config.dtype, config.chunk_size, config.n_action_steps) == ("bfloat16", 7, 5)
    assert config.tokenizer_max_length == {"pi0": 48, "pi05": 200}[config.type]
    assert config.robot_state_feature.shape == config.action_feature.shape == (6,)
    assert len(config.image_features) == 3


@both_families
def test_processors_from_norm_stats(openpi, tokenizer, raw_batch, caplog):
    pre, post = load_processors(openpi, device="cpu")
    batch = preprocess(raw_batch, pre)
    torch.testing.assert_close(batch[OBS_STATE], (raw_batch[OBS_STATE] - 10) / 30)
    torch.testing.assert_close(post(batch[ACTION]), raw_batch[ACTION])
    assert "openpi's data transforms" in caplog.text


def test_statistics_that_do_not_serve(openpi, tokenizer):
    file = openpi / "assets" / "someone" / "so101" / "norm_stats.json"
    good = json.loads(file.read_text())
    for broken, message in (
        ({"norm_stats": {"state": good["norm_stats"]["state"]}}, "no mean and std of actions"),
        (
            {"norm_stats": good["norm_stats"] | {"state": {"mean": ["x"], "std": [1]}}},
            "not a list of numbers",
        ),
        ([], "no mean and std of state"),
    ):
        file.write_text(json.dumps(broken))
        with pytest.raises(UserError, match=message):
            load_processors(openpi)
    file.write_text(json.dumps(good))
    other = openpi / "assets" / "droid"
    other.mkdir()
    (other / "norm_stats.json").write_text(json.dumps(good))
    with pytest.raises(UserError, match=r"several robots \(droid, someone/so101\).*training on a dataset"):
        load_processors(openpi)
    for path in (file, other / "norm_stats.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"no processors and no statistics; training on a dataset"):
        load_processors(openpi)
    assert load_config(openpi).robot_state_feature.shape == (32,)


def test_what_is_refused(openpi):
    for changes, message in (
        ({"pi05": True, "discrete_state_input": False}, "DePi's pi0.5 has its state in the prompt"),
        ({"paligemma_variant": "gemma_2b_lora"}, "merge them into the weights"),
        ({"action_horizon": "many"}, "action_horizon must be an integer"),
        ({"action_horizon": 10**9}, "action_horizon must be an integer"),
    ):
        (openpi / "config.json").write_text(json.dumps(OPENPI | changes))
        with pytest.raises(UserError, match=message):
            load_config(openpi)


def test_weights_of_another_family(openpi):
    """A LeRobot configuration that does not belong to the weights."""
    load_config(openpi).save_pretrained(openpi)
    assert load_policy(openpi, device="cpu").config.type == "pi0"
    change_config(openpi, type="pi05")
    with pytest.raises(UserError, match=r"does not fit the policy in its config.json, \d+ tensors differ"):
        load_policy(openpi)


@pytest.mark.parametrize("kind", ["depi_pi05"])
def test_pi05_needs_quantiles(openpi, tokenizer):
    file = openpi / "assets" / "someone" / "so101" / "norm_stats.json"
    content = json.loads(file.read_text())
    del content["norm_stats"]["state"]["q99"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="state is normalised by QUANTILES, and its statistics lack q99"):
        load_processors(openpi)


def test_adapters_are_named(openpi, weights):
    key = LANGUAGE + "layers.0.self_attn.q_proj.lora_a.weight"
    save_file(weights | {key: torch.zeros(2)}, openpi / "model.safetensors")
    with pytest.raises(UserError, match=r"1 tensors differ: unexpected .*lora_a"):
        load_policy(openpi)


def test_trainer_folder_without_config(openpi):
    (openpi / "config.json").unlink()
    (openpi / "metadata.pt").touch()
    with pytest.raises(
        UserError, match=r'no config.json; if openpi.s trainer wrote it, add one: \{"action_dim"'
    ):
        load_policy(openpi)


def test_from_the_hub(hub, openpi, small, tokenizer):
    """The statistics, which lie deeper, come along."""
    api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
    api.create_repo("someone/openpi", repo_type="model")
    api.upload_folder(repo_id="someone/openpi", folder_path=openpi)
    assert load_policy("someone/openpi", device="cpu").config.action_feature.shape == (6,)
    _, post = load_processors("someone/openpi", device="cpu")
    assert (post(torch.zeros(1, 7, 6)) == 10).all()


def older_names(weights, nested):
    """As LeRobot 0.1 to 0.3 named them, with transformers before 4.52."""
    renamed = {}
    for name, value in weights.items():
        name = name.replace(PALIGEMMA + "model.vision_tower", PALIGEMMA + "vision_tower")
        name = name.replace(PALIGEMMA + "model.multi_modal", PALIGEMMA + "multi_modal")
        name = name.replace(PALIGEMMA + "lm_head", PALIGEMMA + "language_model.lm_head")
        name = name.replace(LANGUAGE, PALIGEMMA + ("language_model.model." if nested else "language_model."))
        renamed["model." + name] = value
    return renamed


@pytest.mark.parametrize("nested", [True, False])
def test_older_lerobot(small, weights, tmp_path, tokenizer, nested):
    older = older_names(weights, nested)
    assert {canonical_name(key) for key in older} == weights.keys()
    for prefix in ("normalize_inputs.buffer_observation_state", "unnormalize_outputs.buffer_action"):
        older[f"{prefix}.mean"], older[f"{prefix}.std"] = torch.full((6,), 10.0), torch.full((6,), 30.0)
    folder = tmp_path / "older"
    folder.mkdir()
    save_file(older, folder / "model.safetensors")
    config = {
        "type": "pi0",
        "chunk_size": 7,
        "n_action_steps": 5,
        "resize_imgs_with_padding": [28, 28],
        "num_steps": 4,
        "proj_width": 1024,
        "use_cache": True,
        "attention_implementation": "eager",
        "adapt_to_pi_aloha": False,
        "use_delta_joint_actions_aloha": False,
        "train_state_proj": True,
        "input_features": {
            "observation.images.top": {"type": "VISUAL", "shape": [3, 480, 640]},
            OBS_STATE: {"type": "STATE", "shape": [6]},
        },
        "output_features": {ACTION: {"type": "ACTION", "shape": [6]}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_policy(folder, device="cpu")
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, small.model.get_parameter(name)), name
    assert loaded.config.num_inference_steps == 4
    _, post = load_processors(folder, device="cpu")
    assert (post(torch.zeros(1, 7, 6)) == 10).all()

    change_config(folder, adapt_to_pi_aloha=True)
    with pytest.raises(UserError, match="adapt_to_pi_aloha True is not available"):
        load_policy(folder)
    change_config(folder, adapt_to_pi_aloha=False)
    older["normalize_inputs.buffer_observation_state.std"] = torch.full((6,), torch.inf)
    save_file(older, folder / "model.safetensors")
    with pytest.raises(UserError, match="never computed"):
        load_processors(folder)
