"""Checkpoints of DePi's own types carry their tokenizer: they need no Hub, and a stranger's is only data."""

import json

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pi0.processor_pi0 import make_pi0_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from depi.errors import UserError
from depi.models.scene import SO400M
from depi.policies import load_processors, make_policy, make_processors, preprocess, save_checkpoint
from depi.policies.carried_tokenizer import carried_by, pack_tokenizer, unpack_tokenizer
from depi.policies.indicator import is_conditioned
from depi.policies.trust import CARRIED_STEP, PREPROCESSOR, TOKENIZER

TOKENS = (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK)
TASKS = ["pick up the red cube", "Größe 7! 机器人", "", "<eos> push <pad> " * 20]


@pytest.fixture
def write(make_config, data, stats, tokenizer, tmp_path):
    """Save a checkpoint, and from then on let nobody load a tokenizer by its name."""

    def write(patch, *, indicator=False):
        policy = make_policy(make_config(tokenizer_max_length=24), data)
        made = make_processors(policy.config, stats, indicator=indicator)
        save_checkpoint(tmp_path, policy, *made)
        patch.setattr(AutoTokenizer, "from_pretrained", unreachable)
        return policy, made

    return write


def unreachable(name, **kwargs):
    raise OSError(f"{name} is asked for")


@pytest.mark.parametrize("indicator", [False, True])
def test_a_checkpoint_needs_no_other_repository(write, raw_batch, monkeypatch, tmp_path, indicator):
    policy, (before, _) = write(monkeypatch, indicator=indicator)
    ours = load_processors(tmp_path)[0]
    lerobots = make_pre_post_processors(policy.config, pretrained_path=str(tmp_path))[0]
    assert is_conditioned(ours) is is_conditioned(lerobots) is indicator
    raw_batch["task"] = TASKS
    wanted = preprocess(raw_batch, before)
    for pre in (ours, lerobots):
        found = preprocess(raw_batch, pre)
        words = slice(0, 3) if pre is lerobots else slice(None)  # where LeRobot takes "<eos>" for a token
        assert all(torch.equal(found[key][words], wanted[key][words]) for key in TOKENS)


def test_saved_again_it_is_the_same(write, monkeypatch, tmp_path):
    policy, _ = write(monkeypatch)
    files = {path.name: path.read_bytes() for path in tmp_path.glob("policy_preprocessor*")}
    assert len(files) == 3
    save_checkpoint(tmp_path, policy, *load_processors(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.glob("policy_preprocessor*")} == files


def test_fine_tuning_takes_the_tokenizer_of_its_base(write, raw_batch, monkeypatch, tmp_path):
    policy, (before, _) = write(monkeypatch)
    others = {key: {"mean": torch.zeros(6), "std": torch.ones(6)} for key in (OBS_STATE, ACTION)}
    pre, _ = make_processors(policy.config, others, base=tmp_path)
    assert carried_by(pre) is not None
    found, wanted = preprocess(raw_batch, pre), preprocess(raw_batch, before)
    assert all(torch.equal(found[key], wanted[key]) for key in TOKENS)
    assert torch.equal(found[OBS_STATE], raw_batch[OBS_STATE])
    policy.config.vocab_size = SO400M["vocab_size"]  # a network of fewer words needs none from the Hub
    with pytest.raises(UserError, match="is asked for"):
        make_processors(policy.config, others)


def test_checkpoints_that_name_it_are_read_as_before(
    make_config, data, stats, tokenizer, raw_batch, tmp_path
):
    policy = make_policy(make_config(), data)
    save_checkpoint(tmp_path, policy, *make_pi0_pre_post_processors(policy.config, stats))
    assert TOKENIZER in (tmp_path / PREPROCESSOR).read_text()
    found = preprocess(raw_batch, load_processors(tmp_path)[0])
    wanted = preprocess(raw_batch, make_processors(policy.config, stats)[0])
    assert all(torch.equal(found[key], wanted[key]) for key in TOKENS)


def test_it_tokenizes_as_the_one_that_was_saved(tokenizer_folder):
    given = AutoTokenizer.from_pretrained(tokenizer_folder)
    found = unpack_tokenizer(pack_tokenizer(given))
    for task in TASKS:
        assert found(task)["input_ids"] == given(task)["input_ids"]
        assert found.decode(found(task)["input_ids"]) == given.decode(given(task)["input_ids"])


def changed(name, old, new):
    """A change of one of the two documents."""

    def change(state):
        text = state[name].numpy().tobytes().decode()
        assert old in text
        state[name] = torch.tensor(list(text.replace(old, new).encode()), dtype=torch.uint8)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("special_tokens"), "are missing"),
        (lambda state: state.update(tokenizer=state["tokenizer"][:-100].clone()), "cannot be built"),
        (lambda state: state.update(tokenizer=state["tokenizer"].float()), "not what they should be"),
        (
            lambda state: state.update(tokenizer=torch.tensor(list(b"[]"), dtype=torch.uint8)),
            "no JSON object",
        ),
        (changed("tokenizer", '"type":"BPE"', '"type":"code"'), "cannot be built"),
        (changed("tokenizer", '"pre_tokenizer":', '"pre_tokenizer":{"Regex":"(a+)+$"},"x":'), "regular expr"),
        (changed("tokenizer", '"ids":[2]', '"ids":[2000000]'), "has 2000001 tokens, .*room for"),
        (changed("tokenizer", '"<0x41>":', '"<0x41>?":70000,"<0x41>":'), "has 70001 tokens, .*room for"),
        (changed("special_tokens", "<pad>", "<mask>"), "lacks its special tokens"),
        (changed("special_tokens", "pad_token", "auto_map"), "special tokens .* malformed"),
        (changed("special_tokens", '"<pad>"', '["<pad>"]'), "special tokens .* malformed"),
    ],
)
def test_what_is_no_tokenizer_of_the_policy_is_refused(write, monkeypatch, tmp_path, change, message):
    write(monkeypatch)
    step = next(
        step
        for step in json.loads((tmp_path / PREPROCESSOR).read_text())["steps"]
        if step.get("class") == CARRIED_STEP
    )
    path = tmp_path / step["state_file"]
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(UserError, match=message):
        load_processors(tmp_path)
