"""The advantage indicator: in the text, in the tokens, in a checkpoint, and as guidance of sampling."""

import json
import subprocess
import sys

import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from small_pi0 import SIZES, both_families, liven

from depi.errors import UserError
from depi.models.sampling import sample_actions, trim
from depi.policies import load_processors, make_policy, make_processors, preprocess, save_checkpoint
from depi.policies.families import family
from depi.policies.indicator import (
    UNCONDITIONAL_MASK,
    UNCONDITIONAL_TOKENS,
    as_told,
    indicator_of,
    is_conditioned,
    plain_prompt,
    with_indicator,
)

LONGEST = {"depi_pi0": 24, "depi_pi05": 80}  # prompts, in tokens
POSITIVE, NEGATIVE = "\nAdvantage: positive", "\nAdvantage: negative"


@pytest.mark.parametrize(
    ("task", "bare", "said"),
    [
        ("push", "push", None),
        (f"push{POSITIVE}", "push", True),
        (f"push{NEGATIVE}\n", "push", False),
        (f"push{NEGATIVE}{POSITIVE} \n", "push", True),
        ("Advantage: negative", "", False),
        ("push. Advantage: positive", "push. Advantage: positive", None),
        ("push\nadvantage: positive", "push\nadvantage: positive", None),
        (f"push{POSITIVE}\nthen lift", f"push{POSITIVE}\nthen lift", None),
        ("", "", None),
    ],
)
def test_text(task, bare, said):
    assert indicator_of(task) is said
    assert with_indicator(task, None) == bare
    for positive, line in ((True, POSITIVE), (False, NEGATIVE)):
        told = with_indicator(task, positive)
        assert told == bare + line
        assert indicator_of(told) is positive
        assert with_indicator(told, positive) == told


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        (" pick_up the\ncube\n", "pick up the cube"),
        (f" pick_up {NEGATIVE}\n", f"pick up{NEGATIVE}"),
        (f"push{NEGATIVE}{POSITIVE}", f"push{POSITIVE}"),
        (POSITIVE, POSITIVE),
        (f"push{POSITIVE}\nthen_lift", f"push{POSITIVE.replace(chr(10), ' ')} then lift"),
    ],
)
def test_a_prompt_is_one_line_and_an_indicator(prompt, plain):
    assert plain_prompt(prompt) == plain
    assert plain_prompt(plain) == plain


@pytest.fixture
def conditioned(make_config, data, stats, tokenizer, kind):
    """A policy with its processors, whose prompts get an indicator."""
    policy = liven(make_policy(make_config(tokenizer_max_length=LONGEST[kind]), data))
    return policy, make_processors(policy.config, stats, indicator=True)


def step_of(pre):
    return next(step for step in pre.steps if hasattr(step, "input_tokenizer"))


def read(batch, step, keys=(OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK)):
    """The prompts of a batch as text; what is masked is padding."""
    tokens, mask = (batch[key] for key in keys)
    assert (tokens[~mask] == step.input_tokenizer.pad_token_id).all()
    return [step.input_tokenizer.decode(row[there]) for row, there in zip(tokens, mask, strict=True)]


UNCONDITIONAL = (UNCONDITIONAL_TOKENS, UNCONDITIONAL_MASK)


def test_prompts_are_positive_unless_they_say_otherwise(conditioned, raw_batch):
    pre = conditioned[1][0]
    raw_batch["task"] = ["push", f"lift{NEGATIVE}", "grasp\n", ""]
    processed = preprocess(raw_batch, pre)
    lines = [f"push{POSITIVE}", f"lift{NEGATIVE}", f"grasp{POSITIVE}", POSITIVE]
    assert read(processed, step_of(pre)) == [f"<bos>{line}\n" for line in lines]
    bare = ["push", "lift", "grasp", ""]
    assert read(processed, step_of(pre), UNCONDITIONAL) == [f"<bos>{line}\n" for line in bare]


def test_in_training_samples_say_themselves(conditioned, raw_batch):
    pre = conditioned[1][0]
    raw_batch["task"] = ["push", f"lift{NEGATIVE}", f"grasp{POSITIVE}", ""]
    processed = preprocess(raw_batch, as_told(pre))
    lines = ["push", f"lift{NEGATIVE}", f"grasp{POSITIVE}", ""]
    assert read(processed, step_of(pre)) == [f"<bos>{line}\n" for line in lines]
    assert UNCONDITIONAL_TOKENS not in processed
    assert step_of(pre).indicator == "positive", "what is saved is another pipeline"


def test_without_an_indicator_tokens_are_those_of_any_pi0(conditioned, stats, raw_batch):
    policy, (pre, _) = conditioned
    raw_batch["task"] = ["push", "  two  spaces ", "a\n\n", "grasp the red cube " * 9]
    plain = preprocess(raw_batch, make_processors(policy.config, stats)[0])
    untold = preprocess(raw_batch, as_told(pre))
    for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK):
        assert torch.equal(untold[key], plain[key])


def test_tokens_are_those_of_the_whole_text(conditioned):
    step = step_of(conditioned[1][0])
    for task in ("push", "put the ball in the bin", "Größe 7!", "a\nb", " x"):
        tokens, mask = step.encode([task], [False])
        whole = step._tokenize_text([f"{task}{NEGATIVE}\n"])
        assert torch.equal(tokens, whole["input_ids"])
        assert torch.equal(mask, whole["attention_mask"].bool())


@pytest.mark.parametrize("kind", ["depi_pi05"])
def test_prompts_of_pi05(conditioned, stats, raw_batch):
    """The indicator stands behind the state; without one, tokens are those of LeRobot's own pipeline."""
    policy, (pre, _) = conditioned
    raw_batch["task"] = ["push", f" lift_it{NEGATIVE}", f"put the red cube next to the blue{POSITIVE}", ""]
    raw_batch[OBS_STATE] = torch.tensor([-20.0, 40, 10, -80, 25, 100]).repeat(4, 1)
    state = "State: 0 255 128 -1 192 255;"
    heads = [
        f"Task: {task}, {state}" for task in ("push", "lift it", "put the red cube next to the blue", "")
    ]
    step = step_of(pre)

    processed = preprocess(raw_batch, pre)
    lines = [POSITIVE, NEGATIVE, POSITIVE, POSITIVE]
    told = [f"<bos>{head}{line}\nAction: " for head, line in zip(heads, lines, strict=True)]
    assert read(processed, step) == told
    bare = [f"<bos>{head}\nAction: " for head in heads]
    assert read(processed, step, UNCONDITIONAL) == bare
    whole = step._tokenize_text([text.removeprefix("<bos>") for text in told])
    assert torch.equal(processed[OBS_LANGUAGE_TOKENS], whole["input_ids"])

    taught = preprocess(raw_batch, as_told(pre))
    assert read(taught, step) == [bare[0], *told[1:3], bare[3]]
    raw_batch["task"] = [with_indicator(task, None) for task in raw_batch["task"]]
    plain = preprocess(raw_batch, make_processors(policy.config, stats)[0])
    assert read(plain, step) == bare
    assert torch.equal(plain[OBS_LANGUAGE_TOKENS], processed[UNCONDITIONAL_TOKENS])

    raw_batch["task"] = ["put the red cube next to the blue box " * 9] * 4
    for cut in read(preprocess(raw_batch, pre), step):
        assert cut.endswith(f"{POSITIVE}\nAction: ")


@pytest.mark.parametrize("positive", [True, False])
def test_a_long_task_is_cut_and_never_the_indicator(conditioned, raw_batch, positive):
    pre = conditioned[1][0]
    task = "put the red cube next to the blue box " * 4
    raw_batch["task"] = [with_indicator(task[:length], positive) for length in (150, 60, 70, 80)]
    processed = preprocess(raw_batch, pre)
    for prompt in read(processed, step_of(pre)):
        cut, line, rest = prompt.removeprefix("<bos>").partition("\n")
        assert task.startswith(cut)
        assert line + rest == f"{(NEGATIVE, POSITIVE)[positive]}\n"
    assert processed[OBS_LANGUAGE_ATTENTION_MASK][0].all()


def test_prompts_must_have_room(make_config, data, stats, tokenizer):
    policy = make_policy(make_config(tokenizer_max_length=9), data)
    with pytest.raises(UserError, match=r"tokenizer_max_length 9 has no room .* at least 10 are needed"):
        make_processors(policy.config, stats, indicator=True)


STOCK = """
import json, sys
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
assert "depi" not in sys.modules
folder, task = sys.argv[1:]
found = []
for kind in ("pi0", "pi05"):
    config = PreTrainedConfig.get_choice_class(kind)(device="cpu")
    pre, _ = make_pre_post_processors(config, pretrained_path=f"{folder}/depi_{kind}")
    image = torch.zeros(3, 28, 28)
    batch = pre({"observation.state": torch.zeros(6), "observation.images.0": image, "task": task})
    mask = batch["observation.language.attention_mask"]
    found.append(batch["observation.language.tokens"][mask].tolist())
print(json.dumps(found))
"""


@pytest.mark.usefixtures("module_hub")
def test_stock_lerobot_adds_the_indicator(data, stats, tmp_path):
    """A program that never heard of DePi: LeRobot finds the step by the name in the file."""
    for kind, longest in LONGEST.items():
        config = family(kind).configs[kind](device="cpu", **{**SIZES, "tokenizer_max_length": longest})
        policy = make_policy(config, data)
        pre, post = make_processors(policy.config, stats, indicator=True)
        save_checkpoint(tmp_path / kind, policy, pre, post)
    done = subprocess.run(
        [sys.executable, "-c", STOCK, tmp_path, "push"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tokens = json.loads(done.stdout.splitlines()[-1])
    assert [step_of(pre).input_tokenizer.decode(row) for row in tokens] == [
        f"<bos>push{POSITIVE}\n",
        f"<bos>Task: push, State: 85 85 85 85 85 85;{POSITIVE}\nAction: ",
    ]


@both_families
def test_a_checkpoint_remembers(conditioned, stats, raw_batch, tmp_path):
    policy, (pre, post) = conditioned
    save_checkpoint(tmp_path, policy, pre, post)
    loaded, _ = load_processors(tmp_path)
    assert is_conditioned(loaded)
    assert not is_conditioned(make_processors(policy.config, stats)[0])
    ours, theirs = preprocess(raw_batch, pre), preprocess(raw_batch, loaded)
    for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK, *UNCONDITIONAL):
        assert torch.equal(ours[key], theirs[key])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class": "depi.policies.indicator.with_indicator"}, "not part of depi_pi0: depi"),
        ({"class": "os.system"}, "not part of depi_pi0: os.system"),
        ({"registry_name": "tokenizer_processor"}, "not part of depi_pi0: tokenizer_processor"),
        ({"config": {"indicator": "maybe", "tokenizer_name": "google/paligemma-3b-pt-224"}}, "'maybe'"),
        ({"config": {"padding": "longest", "tokenizer_name": "google/paligemma-3b-pt-224"}}, "padded on"),
    ],
)
def test_other_steps_in_its_place_are_refused(conditioned, tmp_path, changes, message):
    policy, (pre, post) = conditioned
    save_checkpoint(tmp_path, policy, pre, post)
    path = tmp_path / "policy_preprocessor.json"
    content = json.loads(path.read_text())
    step = next(step for step in content["steps"] if "indicator" in step["config"])
    assert "registry_name" not in step
    step.update(changes)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_processors(tmp_path)


@pytest.fixture
def told(conditioned, raw_batch):
    """A policy and a processed batch: two samples positive, two negative."""
    policy, (pre, _) = conditioned
    raw_batch["task"] = ["push", f"lift{NEGATIVE}", "grasp the red cube", f"x{NEGATIVE}"]
    return policy, preprocess(raw_batch, pre)


def velocities(policy, batch, x_t, time):
    """What the network predicts under the prompt, and under the prompt without indicator."""
    found = []
    for tokens, mask in (
        (batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]),
        (batch[UNCONDITIONAL_TOKENS], batch[UNCONDITIONAL_MASK]),
    ):
        observation = policy.observe(batch)._replace(tokens=tokens, token_mask=mask)
        prefix = policy.model.encode_prefix(observation)
        found.append(policy.model.velocity(prefix, observation.state, x_t, time))
    return found


@torch.no_grad()
def by_hand(policy, batch, strength, steps):
    """Guided Euler steps with the training's code, each prompt for itself."""
    x_t = batch["noise"]
    for step in range(steps):
        time = torch.full((len(x_t),), 1 - step / steps)
        with_condition, without = velocities(policy, batch, x_t, time)
        velocity = without + strength * (with_condition - without)
        velocity[..., 6:] = batch["noise"][..., 6:]
        x_t = x_t - velocity / steps
    return x_t[..., :6]


@both_families
@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0, 7.5])
def test_guidance_is_the_formula(told, strength):
    policy, batch = told
    expected = by_hand(policy, batch, strength, 4)
    policy.set_guidance(strength)
    guided = policy.predict_action_chunk(batch, num_steps=4)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=3e-5)
    policy.for_inference()
    prepared = policy.predict_action_chunk(batch, num_steps=4)
    torch.testing.assert_close(prepared, expected, rtol=1e-4, atol=3e-5)
    policy.config.n_action_steps = 1
    torch.testing.assert_close(policy.select_action(batch, num_steps=4), expected[:, 0], rtol=1e-4, atol=3e-5)
    policy.set_guidance(1.0)
    assert not torch.allclose(policy.predict_action_chunk(batch, num_steps=4), expected, atol=1e-3)


def test_without_guidance_nothing_is_computed_twice(told):
    policy, batch = told
    without = {key: value for key, value in batch.items() if key not in UNCONDITIONAL}
    expected = policy.predict_action_chunk(without)
    rows = []
    policy.model.suffix.layers[0].register_forward_pre_hook(
        lambda _module, inputs: rows.append(len(inputs[0]))
    )
    policy.set_guidance(1.0)
    assert torch.equal(policy.predict_action_chunk(batch), expected)
    assert set(rows) == {4}


def test_images_are_encoded_once(told):
    policy, batch = told
    images, rows = [], []
    policy.model.vision.register_forward_hook(lambda _module, inputs, _out: images.append(len(inputs[0])))
    policy.model.suffix.layers[0].register_forward_pre_hook(
        lambda _module, inputs: rows.append(len(inputs[0]))
    )
    policy.set_guidance(2.0)
    policy.predict_action_chunk(batch, num_steps=3)
    assert images == [12]
    assert rows == [8, 8, 8]


@both_families
def test_guidance_goes_with_real_time_chunking(told):
    policy, batch = told
    policy.set_guidance(3.0)
    plain = policy.predict_action_chunk(batch)
    policy.config.rtc_config = RTCConfig(
        prefix_attention_schedule=RTCAttentionSchedule.LINEAR, max_guidance_weight=10.0
    )
    policy.init_rtc_processor()
    torch.testing.assert_close(policy.predict_action_chunk(batch), plain)
    chunk = policy.predict_action_chunk(
        batch, inference_delay=2, prev_chunk_left_over=plain + 1, execution_horizon=5
    )
    shift = (chunk - plain).mean(dim=(0, 2))
    assert (shift[:2] > 0.9).all()
    assert shift[5:].abs().max() < shift[3] < shift[:2].min()


def test_guidance_needs_both_prompts(policy, batch):
    policy.set_guidance(2.0)
    with pytest.raises(UserError, match=r"guidance 2 needs a policy that was trained with an advantage"):
        policy.predict_action_chunk(batch)


@pytest.mark.parametrize("strength", [-0.1, 101.0, float("nan"), float("inf")])
def test_guidance_out_of_range(policy, make_config, data, strength):
    with pytest.raises(UserError, match="guidance must be 0 to 100"):
        policy.set_guidance(strength)
    with pytest.raises(UserError, match="guidance must be 0 to 100"):
        make_policy(make_config(guidance=strength), data)
    assert policy.guidance == 1.0


def test_the_configuration_sets_the_guidance(make_config, data, told):
    torch.manual_seed(0)
    policy = make_policy(make_config(tokenizer_max_length=24, guidance=2.0), data)
    assert policy.guidance == 2.0
    assert policy.predict_action_chunk(told[1]).isfinite().all()


@pytest.mark.gpu
def test_guidance_is_part_of_a_graph(make_config, data, told):
    policy = make_policy(make_config(dtype="bfloat16"), data, device="cuda").for_inference()
    batch = {key: value.to("cuda") for key, value in told[1].items() if isinstance(value, torch.Tensor)}
    for strength in (1.0, 2.0, 5.0, 2.0):
        policy.set_guidance(strength)
        with policy.autocast():
            observation = trim(policy._observe(batch))
            expected = sample_actions(
                policy.model, observation, batch["noise"], guidance=strength, action_dim=6
            )[..., :6]
        torch.testing.assert_close(policy.predict_action_chunk(batch), expected, rtol=1e-2, atol=1e-2)
