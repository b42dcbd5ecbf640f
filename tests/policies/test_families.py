"""A family of policies is one record: whatever is registered there is built, saved, loaded, described."""

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from safetensors.torch import load_file

from depi.errors import UserError
from depi.models.flops import sample_flops
from depi.policies import (
    load_config,
    load_policy,
    load_processors,
    make_policy,
    make_processors,
    save_checkpoint,
)
from depi.policies.configuration import dimensions_of
from depi.policies.families import TYPES, family, own_types
from depi.policies.trust import LEROBOT_TYPES, allowed_of, check_checkpoint
from depi.training.card import model_card
from depi.training.config import TrainConfig
from depi.training.data import NEEDS
from depi.training.estimate import estimate_memory, model_to_train


@pytest.mark.parametrize("kind", own_types().split(", "))
def test_a_record_fits_its_network_and_what_lerobot_knows(kind):
    record = family(kind)
    assert PreTrainedConfig.get_choice_class(kind) is record.configs[kind]
    config = record.configs[kind](device="cpu")
    sizes = dimensions_of(config)
    with torch.device("meta"):
        network = record.network(sizes)
    assert network.dimensions == sizes
    assert network.stacks()[:2] == (network.vision, network.language_model)
    layers = {id(layer) for stack in network.stacks() for layer in stack.modules()}
    assert all(id(block) in layers for block in network.blocks())
    layout = record.layout(sizes)
    names = [layout.name(name) for name in network.state_dict()]
    assert len({*names, *layout.unused}) == len(names) + len(layout.unused)
    assert sample_flops(sizes, 2, 9).training() > sample_flops(sizes, 1, 9).training() > 0
    assert set(record.needs) <= NEEDS.keys()
    if kind not in record.stock:
        assert issubclass(get_policy_class(kind), record.policy)
    assert bool(record.usage) is not record.acts


@pytest.mark.parametrize("kind", sorted(TYPES.keys() - set(own_types().split(", "))))
def test_lerobots_own_policies_are_one_record_with_lerobots_classes(kind):
    record = family(kind)
    assert record is family("act")
    assert PreTrainedConfig.get_choice_class(kind) is record.configs[kind]
    assert allowed_of(kind) is LEROBOT_TYPES[kind]
    assert set(record.needs) <= NEEDS.keys()
    with pytest.raises(UserError, match="counted of DePi's own networks only"):
        dimensions_of(record.configs[kind](device="cpu"))


def test_an_unknown_type_is_one_sentence():
    with pytest.raises(
        UserError,
        match="policy type 'tdmpc' is none that DePi trains: it knows pi0, depi_pi0, pi05, depi_pi05, value",
    ):
        family("tdmpc")


def test_a_family_that_is_registered_is_all_that_is_needed(data, stats, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(TYPES, "toy", "toy_family")
    config = family("toy").configs["toy"](
        device="cpu", depth=2, vision_depth=1, chunk_size=4, n_action_steps=4
    )
    policy = make_policy(config, data)
    save_checkpoint(tmp_path, policy, *make_processors(config, stats))
    check_checkpoint(tmp_path, "toy")
    assert "model.suffix.norm.weight" in load_file(tmp_path / "model.safetensors")  # its own names

    assert type(load_config(tmp_path)) is type(config)
    loaded = load_policy(tmp_path)
    assert type(loaded) is family("toy").policy
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert type(type(loaded).from_pretrained(tmp_path)) is type(policy)
    load_processors(tmp_path)

    estimate = estimate_memory(model_to_train(config, None), batch_size=2)
    assert estimate.parameters == sum(parameter.numel() for parameter in policy.parameters())
    report = {"datasets": [], "num_episodes": 0, "num_frames": 0}
    card = model_card(TrainConfig(job_name="toys"), config, report, 1, {})
    assert "A toy `toy`, trained from scratch" in card
    assert "- Toys: 4." in card
    assert "lerobot-rollout" in card
