"""LeRobot's pipelines around the policy: what they do to a batch, what they keep, when they cannot be had."""

import errno
import json
import os

import httpx
import pytest
import torch
from huggingface_hub import HfApi
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from transformers import AutoTokenizer

from depi.errors import MachineError, UserError
from depi.models.scene import SO400M
from depi.policies import (
    load_processors,
    make_policy,
    make_processors,
    preprocess,
    save_checkpoint,
    set_features,
)
from depi.policies.carried_tokenizer import carried_by
from depi.policies.measured_tokenizer import LONGEST_PROMPT
from depi.policies.processors import TOKENIZER, _with_tokenizer
from depi.policies.trust import PREPROCESSOR

PALIGEMMA = SO400M["vocab_size"]


@pytest.fixture
def pipelines(make_config, data, stats, tokenizer):
    config = make_config()
    set_features(config, data)
    return make_processors(config, stats)


def test_everything_survives(pipelines, raw_batch):
    processed = preprocess(raw_batch, pipelines[0])
    assert raw_batch.keys() <= processed.keys()
    for key in raw_batch.keys() - {OBS_STATE, ACTION, "task"}:
        assert torch.equal(processed[key], raw_batch[key]), key
    assert processed["observation.images.0"].dtype == torch.uint8
    torch.testing.assert_close(processed[ACTION], (raw_batch[ACTION] - 10) / 30)
    torch.testing.assert_close(processed[OBS_STATE], (raw_batch[OBS_STATE] - 10) / 30)
    assert processed[OBS_LANGUAGE_TOKENS].shape == processed[OBS_LANGUAGE_ATTENTION_MASK].shape == (4, 16)
    assert (processed[OBS_LANGUAGE_TOKENS][:, 0] == 2).all()


def test_post_undoes_pre(pipelines, raw_batch):
    pre, post = pipelines
    torch.testing.assert_close(post(preprocess(raw_batch, pre)[ACTION]), raw_batch[ACTION])


def test_single_observation(pipelines, raw_batch):
    """A robot or simulator hands over one observation, without batch, action or camera flags."""
    one = {key: raw_batch[key][0] for key in ("observation.images.0", OBS_STATE)} | {"task": "push"}
    processed = preprocess(one, pipelines[0])
    assert processed["observation.images.0"].shape == (1, 3, 28, 28)
    assert processed[OBS_LANGUAGE_TOKENS].shape == (1, 16)


def test_prompts_are_written_as_those_of_the_base(pipelines, raw_batch):
    """openpi strips them, and turns underscores and line breaks into blanks."""
    plain = preprocess(raw_batch | {"task": ["pick up  the cube", "push", "lift it", ""]}, pipelines[0])
    odd = ["  pick_up\n the_cube\n", "push\n\n", "\tlift_it ", "\n"]
    for tasks in (odd, tuple(odd)):
        processed = preprocess(raw_batch | {"task": list(tasks)}, pipelines[0])
        assert torch.equal(processed[OBS_LANGUAGE_TOKENS], plain[OBS_LANGUAGE_TOKENS])
        assert processed["task"] == plain["task"]
    one = {key: raw_batch[key][0] for key in ("observation.images.0", OBS_STATE)} | {"task": " push"}
    assert torch.equal(preprocess(one, pipelines[0])[OBS_LANGUAGE_TOKENS][0], plain[OBS_LANGUAGE_TOKENS][1])
    assert odd[0] == "  pick_up\n the_cube\n"


def test_special_words_in_a_task_are_only_words(pipelines, raw_batch):
    raw_batch["task"] = ["<eos> push <pad>", "push", "push", "push"]
    processed = preprocess(raw_batch, pipelines[0])
    tokens = processed[OBS_LANGUAGE_TOKENS][0][processed[OBS_LANGUAGE_ATTENTION_MASK][0]]
    assert not {0, 1} & set(tokens[1:].tolist())


def test_stock_lerobot_reads_the_files(make_config, data, stats, tokenizer, raw_batch, tmp_path):
    policy = make_policy(make_config(), data)
    pre, post = make_processors(policy.config, stats)
    save_checkpoint(tmp_path, policy, pre, post)
    stock_pre, stock_post = make_pre_post_processors(policy.config, pretrained_path=str(tmp_path))
    ours, theirs = pre(dict(raw_batch)), stock_pre(dict(raw_batch))
    for key in (ACTION, OBS_STATE, OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK):
        assert torch.equal(ours[key], theirs[key])
    assert torch.equal(stock_post(ours[ACTION]), post(ours[ACTION]))


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("indicator", [False, True])
def test_the_host_knows_the_longest_prompt(
    make_config, data, stats, tokenizer, raw_batch, tmp_path, indicator, stock
):
    """Also of a type of LeRobot's, whose files go on to name LeRobot's own step."""
    config = PI0Config(device="cpu") if stock else make_config(tokenizer_max_length=48)
    set_features(config, data)
    pre, _ = make_processors(config, stats, indicator=indicator)
    lengths = []
    for tasks in (["push"] * 4, ["push", "push the cube onto the plate", "lift", "push"]):
        batch = preprocess(raw_batch | {"task": tasks}, pre)
        lengths.append(batch[LONGEST_PROMPT])
        assert lengths[-1] == batch[OBS_LANGUAGE_ATTENTION_MASK].sum(dim=1).amax()
    assert lengths[0] < lengths[1] < 48
    pre.save_pretrained(tmp_path, config_filename=PREPROCESSOR)
    steps = json.loads((tmp_path / PREPROCESSOR).read_text())["steps"]
    of_lerobot = "tokenizer_processor" in [step.get("registry_name") for step in steps]
    assert of_lerobot == (stock and not indicator)


def test_a_loaded_pipeline_says_it_too(make_config, data, stats, tokenizer, raw_batch, tmp_path):
    policy = make_policy(make_config(), data)
    save_checkpoint(tmp_path, policy, *make_processors(policy.config, stats))
    batch = preprocess(raw_batch, load_processors(tmp_path)[0])
    assert batch[LONGEST_PROMPT] == batch[OBS_LANGUAGE_ATTENTION_MASK].sum(dim=1).amax()


def test_vocabulary_must_fit(make_config, data, stats, tokenizer):
    config = make_config(vocab_size=300)
    set_features(config, data)
    with pytest.raises(UserError, match=r"has \d+ tokens, the policy has room for 300"):
        make_processors(config, stats)


def test_gated_tokenizer(hub, make_config, data, stats, monkeypatch):
    """The way to the published tokenizer, for a user who has not asked for access."""
    HfApi(endpoint=hub.endpoint, token=hub.write_token).update_repo_settings(TOKENIZER, gated="manual")
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    config = make_config(vocab_size=PALIGEMMA)
    set_features(config, data)
    with pytest.raises(UserError, match=r"ask for access at https://huggingface.co/google/paligemma"):
        make_processors(config, stats)


@pytest.mark.slow
def test_unreachable_tokenizer(make_config, data, stats):
    config = make_config(vocab_size=PALIGEMMA)
    set_features(config, data)
    with pytest.raises(UserError, match=r"check the network, HF_ENDPOINT and HF_TOKEN"):
        make_processors(config, stats)


def test_tokenizer_from_the_hub(hub, make_config, data, stats, raw_batch):
    config = make_config(vocab_size=PALIGEMMA)
    set_features(config, data)
    pre, _ = make_processors(config, stats)
    assert preprocess(raw_batch, pre)[OBS_LANGUAGE_ATTENTION_MASK].sum(dim=1).min() > 1


def test_a_network_of_few_words_asks_no_hub(make_config, data, stats, tokenizer_folder, monkeypatch):
    """PaliGemma's tokenizer is gated, and has 250 times as many words as a tiny network."""
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)
    config = make_config()
    set_features(config, data)
    small = carried_by(make_processors(config, stats)[0])
    monkeypatch.undo()
    of_the_embedded_hub = AutoTokenizer.from_pretrained(tokenizer_folder)
    of_the_embedded_hub.split_special_tokens = True  # as every pipeline does
    texts = ["pick up the red cube\n", "Größe 漢字 <eos>\n", "a  b", ""]
    assert small(texts, padding="max_length", max_length=24) == of_the_embedded_hub(
        texts, padding="max_length", max_length=24
    )
    assert (small.pad_token_id, small.padding_side) == (0, "right")


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_full_disk_while_the_tokenizer_is_fetched_is_no_fault_of_the_network(wrapped):
    def build():
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if wrapped:  # as LeRobot wraps what its steps raise
            raise ValueError("Failed to instantiate processor step") from full
        raise full

    with pytest.raises(MachineError, match=r"hub: the disk is full .*make room there"):
        _with_tokenizer(build)


def test_a_hub_that_is_away_while_the_tokenizer_is_cached():
    """transformers asks it about vocabularies of more than 100,000 words, by httpx."""

    def build():
        raise httpx.ConnectError("Name or service not known")

    with pytest.raises(UserError, match="HF_HUB_OFFLINE=1 takes what is cached"):
        _with_tokenizer(build)


@pytest.mark.parametrize("kind", ["depi_pi05"])
def test_a_joint_that_rests_between_its_quantiles_is_not_divided_by_nothing(
    make_config, data, stats, tokenizer, raw_batch, tmp_path
):
    for values in stats.values():
        values["q99"][3] = values["q01"][3]
        values["q99"][4] = values["q01"][4] + 0.03  # half of the least share of 60
    policy = make_policy(make_config(), data)
    pre, post = make_processors(policy.config, stats)
    raw_batch[ACTION][..., 3:5] = torch.tensor([-20.0, -19.99])
    raw_batch[ACTION][0, 0, 3] = 40.0
    batch = preprocess(raw_batch, pre)
    assert batch[ACTION][0, 0, 3] == pytest.approx(2 * 60 / 0.06 - 1, rel=1e-3)
    assert (batch[ACTION][1:, :, 3] == -1).all()  # as LeRobot and openpi have it
    torch.testing.assert_close(post(batch[ACTION]), raw_batch[ACTION], rtol=0, atol=1e-3)
    save_checkpoint(tmp_path, policy, pre, post)
    torch.testing.assert_close(preprocess(raw_batch, load_processors(tmp_path)[0])[ACTION], batch[ACTION])

    del stats[ACTION]["q01"]
    with pytest.raises(UserError, match="action is normalised by QUANTILES, and its statistics lack q01"):
        make_processors(policy.config, stats)
