"""The value function behind LeRobot's interface: configuration, loss, values, checkpoints, init_from."""

import json
import logging
import re

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.utils.constants import OBS_STATE

from depi.errors import UserError
from depi.models.pi0 import Pi0Dimensions
from depi.models.value import ValueDimensions
from depi.policies import (
    load_config,
    load_policy,
    load_processors,
    make_policy,
    make_processors,
    pack_batch,
    preprocess,
    save_checkpoint,
)
from depi.policies.configuration import dimensions_of
from depi.policies.configuration_value import ValueConfig
from depi.policies.factory import load_value
from depi.policies.pretrained import take_weights
from depi.policies.value import VALUE_TARGET, ValuePolicy

SMALL = {
    "size": "tiny",
    "image_resolution": (28, 28),
    "vision_width": 32,
    "vision_mlp_dim": 48,
    "vision_heads": 2,
    "width": 48,
    "mlp_dim": 80,
    "depth": 3,
    "num_kv_heads": 2,
    "head_dim": 16,
    "tokenizer_max_length": 16,
}


def config(**changes) -> ValueConfig:
    return ValueConfig(device="cpu", **{**SMALL, **changes})


@pytest.fixture
def value(data) -> ValuePolicy:
    return make_policy(config(), data)


@pytest.fixture
def judged(batch):
    """A processed batch with targets."""
    return {**batch, VALUE_TARGET: torch.tensor([0.0, -0.25, -1.0, -0.5])}


def test_sizes():
    assert dimensions_of(ValueConfig(device="cpu")) == ValueDimensions.full()
    assert dimensions_of(ValueConfig(device="cpu", size="tiny")) == ValueDimensions.tiny()
    assert dimensions_of(config(number_of_bins=51)).bins == 51


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"number_of_bins": 1}, "at least 2"),
        ({"c_fail": -1.0}, "c_fail must be 0 or more"),
        ({"c_fail": float("nan")}, "c_fail must be 0 or more"),
        ({"reward_normalizer": 0.0}, "reward_normalizer must be positive"),
        ({"c_fail": 1601.0}, "c_fail 1601 alone is beyond reward_normalizer 1600"),
        ({"size": "huge"}, "size huge is none of full, tiny"),
        ({"depth": 2000}, "too many"),
        ({"width": 1 << 30}, "width must be between"),
        ({"dtype": "float16"}, "dtype float16 is none of"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        config(**wrong)


def test_loss_and_what_is_said_beside_it(value, judged):
    mean, details = value(judged)
    losses, _ = value(judged, reduction="none")
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.mean(), mean)
    assert set(details) == {"absolute_error", "accuracy", "clamped"}
    assert details["clamped"] == 0
    packed, _ = value(pack_batch(value.config, judged), reduction="none")
    torch.testing.assert_close(packed, losses, atol=1e-5, rtol=0)
    beyond = {**judged, VALUE_TARGET: torch.tensor([0.5, -0.25, -3.0, -0.5])}
    again, details = value(beyond, reduction="none")
    torch.testing.assert_close(again, losses)
    assert details["clamped"] == 0.5
    with pytest.raises(ValueError, match="reduction"):
        value(judged, reduction="sum")


def test_two_hot_is_another_loss(value, judged):
    # Halfway between two centres: the nearest bin and both bins are not the same.
    target = {**judged, VALUE_TARGET: torch.full((4,), -0.5025)}
    one, _ = value(target)
    value.config.two_hot = True
    both, _ = value(target)
    assert abs(one - both) > 1e-4


def test_value_does_not_depend_on_the_batch(value, batch):
    values = value.predict_value(batch)
    assert values.shape == (4,)
    assert values.dtype == torch.float32
    assert values.min() >= -1
    assert values.max() <= 0
    assert torch.equal(value.predict_value(batch), values)
    distribution = value.predict_distribution(batch)
    torch.testing.assert_close(distribution.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(value.bins.mean(distribution), values)
    for number in range(4):
        alone = {key: item[number : number + 1] for key, item in batch.items()}
        torch.testing.assert_close(value.predict_value(alone), values[number : number + 1], atol=1e-5, rtol=0)


def test_a_checkpoint_gives_the_same_values(value, raw_batch, stats, tokenizer, tmp_path):
    pre, post = make_processors(value.config, stats)
    before = value.predict_value(preprocess(raw_batch, pre))
    save_checkpoint(tmp_path, value, pre, post)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["type"] == "value"
    loaded, (pre, _) = load_value(tmp_path), load_processors(tmp_path)
    assert torch.equal(loaded.predict_value(preprocess(raw_batch, pre)), before)
    assert load_config(tmp_path, ["--number_of_bins=201"]).c_fail == value.config.c_fail
    assert isinstance(PreTrainedConfig.from_pretrained(tmp_path), ValueConfig)
    assert get_policy_class("value") is ValuePolicy
    assert torch.equal(
        ValuePolicy.from_pretrained(tmp_path).predict_value(preprocess(raw_batch, pre)), before
    )


def test_values_are_not_read_from_padding_of_the_tokenizer(value, raw_batch, stats, tokenizer):
    """The same frame and prompt, alone and beside a longer prompt: the same value."""
    pre, _ = make_processors(value.config, stats)
    same = {
        key: item[:1].repeat(2, *[1] * (item.ndim - 1)) for key, item in raw_batch.items() if key != "task"
    }
    long = "push the green block to the left and put it back"
    beside = value.predict_value(preprocess({**same, "task": ["push", long]}, pre))
    alone = value.predict_value(preprocess({**same, "task": ["push", "push"]}, pre))
    assert abs(beside[0] - alone[0]) < 1e-5
    assert abs(beside[0] - beside[1]) > 1e-5


def test_each_policy_is_loaded_as_what_it_is(value, policy, tmp_path, batch):
    value.save_pretrained(tmp_path / "value")
    policy.save_pretrained(tmp_path / "pi0")
    with pytest.raises(UserError, match="value function, which takes no actions"):
        load_policy(tmp_path / "value")
    with pytest.raises(UserError, match="not a value function: train one with"):
        load_value(tmp_path / "pi0")
    with pytest.raises(UserError, match="takes no actions"):
        value.select_action(batch)


def test_weights_of_another_size_are_refused(value, data, tmp_path):
    value.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not fit"):
        load_value(tmp_path, config=make_policy(config(number_of_bins=51), data).config)


def test_takes_siglip_of_a_pi0(value, policy, tmp_path, caplog):
    policy.save_pretrained(tmp_path)
    before = {name: item.clone() for name, item in value.model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        taken, fresh = take_weights(value.model, tmp_path / "model.safetensors")
    after, theirs = value.model.state_dict(), policy.model.state_dict()
    for name in after:
        if name.startswith("vision."):
            assert name in taken
            assert torch.equal(after[name], theirs[name])
    # The same width: the language model's layers fit too, but for pi0's last, which is not complete.
    for part in ("attention_norm.weight", "q_proj.weight", "mlp.down_proj.weight"):
        assert torch.equal(after[f"trunk.layers.1.{part}"], theirs[f"prefix.layers.1.{part}"])
        assert torch.equal(after[f"trunk.layers.2.{part}"], before[f"trunk.layers.2.{part}"])
    assert {"value_head.weight", "query.weight", "trunk.layers.2.q_proj.weight"} <= set(fresh)
    assert re.search(
        r"taken [\d.]+ M parameters \(.*vision [\d.]+.*; random [\d.]+ M parameters \(.*", caplog.text
    )


def test_random_weights_are_no_secret(data, policy, tmp_path, caplog):
    made = make_policy(config(), data)
    count = sum(parameter.numel() for parameter in made.parameters()) / 1e6
    assert (
        f"begins with nothing but random weights, {count:.2f} M parameters: --policy.init_from" in caplog.text
    )
    caplog.clear()
    policy.save_pretrained(tmp_path)
    make_policy(config(init_from=tmp_path), data)
    assert "random weights" not in caplog.text


def test_begins_with_what_init_from_names(data, policy, tmp_path):
    policy.save_pretrained(tmp_path)
    begun = make_policy(config(init_from=tmp_path), data)
    assert torch.equal(begun.model.vision.norm.weight, policy.model.vision.norm.weight)
    patch = begun.model.vision.patch_embedding.weight
    assert torch.equal(patch, policy.model.vision.patch_embedding.weight)
    with pytest.raises(UserError, match="vision tower does not fit"):
        make_policy(config(init_from=tmp_path, vision_width=16, image_resolution=(42, 42)), data)


def test_full_size_takes_the_vision_tower_of_the_published_pi0():
    ours, theirs = ValueDimensions.full(), Pi0Dimensions.full()
    names = ("image_size", "patch_size", "vision_width", "vision_depth", "vision_heads", "vision_mlp_dim")
    assert all(getattr(ours, name) == getattr(theirs, name) for name in names)
    assert isinstance(PI0Config(device="cpu"), PreTrainedConfig)


def test_state_too_large_and_cameras_missing_are_refused(data, value, batch):
    data.state_dim = 33
    with pytest.raises(UserError, match="state has 33 numbers"):
        make_policy(config(), data)
    without = {key: item for key, item in batch.items() if not key.startswith("observation.images")}
    with pytest.raises(UserError, match="none of the policy's cameras"):
        value.predict_value(without)
    assert OBS_STATE in without
