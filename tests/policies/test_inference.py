"""Sampling: what takes work and how often, weights made for it alone, graphs, real-time chunking."""

import copy
import logging

import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from peft import LoraConfig, inject_adapter_in_model
from small_pi0 import both_families, liven

from depi.errors import UserError
from depi.models import flow
from depi.models.inference import FusedLayer
from depi.models.sampling import sample_actions, trim
from depi.policies import make_policy
from depi.policies.indicator import UNCONDITIONAL_MASK, UNCONDITIONAL_TOKENS
from depi.policies.measured_tokenizer import LONGEST_PROMPT

CAMERA = "observation.images.1"


def counted(module):
    """A list that grows with every call of `module`."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def longer(batch, length=48):
    """The batch with prompts padded to `length` tokens, as the published tokenizer setting pads them."""
    padding = length - batch[OBS_LANGUAGE_TOKENS].shape[1]
    return batch | {
        key: torch.nn.functional.pad(batch[key], (0, padding))
        for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK)
    }


def test_only_the_action_expert_runs_at_every_step(policy, batch):
    model = policy.model
    once = [counted(part) for part in (model.vision, model.prefix, model.prefix.last_layer, model.state_proj)]
    every = [
        counted(part) for part in (model.suffix.layers[0], model.suffix.layers[-1], model.action_out_proj)
    ]
    policy.predict_action_chunk(batch, num_steps=6)
    assert [len(calls) for calls in once] == [1] * 4
    assert [len(calls) for calls in every] == [6] * 3


@pytest.mark.parametrize("kind", ["depi_pi05"])
def test_pi05s_norms_are_modulated_once_for_all_steps(policy, batch):
    model = policy.model
    once = [
        counted(part) for part in (model.time_mlp_in, model.suffix.modulation, model.suffix.modulation.norm)
    ]
    policy.predict_action_chunk(batch, num_steps=6)
    assert [len(calls) for calls in once] == [1] * 3


@pytest.mark.parametrize(("longest", "words"), [(3, 16), (16, 16), (17, 32), (33, 48), (48, 48)])
def test_prompts_are_cut_to_the_longest(policy, batch, longest, words):
    batch = longer(batch)
    batch[OBS_LANGUAGE_ATTENTION_MASK] = torch.arange(48)[None] < torch.tensor([[1], [longest], [2], [1]])
    whole = policy.observe(batch)
    cut = trim(whole)
    assert cut.tokens.shape == cut.token_mask.shape == (4, words)
    expected = sample_actions(policy.model, whole, batch["noise"], action_dim=6)
    torch.testing.assert_close(policy.predict_action_chunk(batch), expected[..., :6])


def test_a_robots_batch_is_not_read_back(policy, batch, monkeypatch):
    """Its preprocessor says how long the prompts are, and no camera is marked."""
    batch = longer(batch)
    for key in policy.config.image_features:
        batch.pop(f"{key}_is_pad", None)
    expected = policy.predict_action_chunk(batch)
    words = []
    policy.model.token_embedding.register_forward_hook(lambda _m, inputs, _out: words.append(len(inputs[0])))

    def refuse(_tensor):
        raise AssertionError("read from the device")

    monkeypatch.setattr(torch.Tensor, "tolist", refuse)
    torch.testing.assert_close(policy.predict_action_chunk(batch | {LONGEST_PROMPT: 16}), expected)
    assert words == [4 * 16]
    with pytest.raises(AssertionError, match="read from the device"):
        policy.predict_action_chunk(batch)


def test_cameras_that_no_sample_has_take_no_work(policy, batch):
    absent = batch | {f"{CAMERA}_is_pad": torch.ones(4, dtype=torch.bool)}
    whole = policy.observe(absent)
    assert whole.images.shape[1] == 3
    images = []
    policy.model.vision.register_forward_hook(lambda _module, inputs, _out: images.append(len(inputs[0])))
    chunk = policy.predict_action_chunk(absent)
    assert images == [8]
    expected = sample_actions(policy.model, whole, batch["noise"], action_dim=6)
    torch.testing.assert_close(chunk, expected[..., :6])
    assert not torch.allclose(policy.predict_action_chunk(batch), chunk)


def test_without_any_camera_the_prompt_still_counts(policy, batch):
    for key in policy.config.image_features:
        batch[f"{key}_is_pad"] = torch.ones(4, dtype=torch.bool)
    chunk = policy.predict_action_chunk(batch)
    assert chunk.isfinite().all()
    batch[OBS_LANGUAGE_TOKENS] = batch[OBS_LANGUAGE_TOKENS] + 1
    assert not torch.allclose(policy.predict_action_chunk(batch), chunk)


@both_families
def test_weights_for_inference_give_the_same_actions(policy, batch):
    """In float32 nothing is rounded: only sums are in another order."""
    prepared = copy.deepcopy(policy).for_inference()
    assert all(isinstance(layer, FusedLayer) for layer in prepared.model.suffix.layers)
    torch.testing.assert_close(
        prepared.predict_action_chunk(batch), policy.predict_action_chunk(batch), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        prepared.select_action(batch), policy.select_action(batch), rtol=1e-4, atol=1e-5
    )


@both_families
def test_bfloat16_for_inference(make_config, data, batch):
    """As near to full precision as autocast is, with every large matrix in bfloat16 and nothing else."""
    policy = liven(make_policy(make_config(dtype="bfloat16"), data))
    exact = sample_actions(policy.model, policy.observe(batch), batch["noise"], action_dim=6)[..., :6]
    by_autocast = policy.predict_action_chunk(batch)
    policy.for_inference()
    chunk = policy.predict_action_chunk(batch)
    assert chunk.dtype == torch.float32
    rounding = relative_error(by_autocast, exact)
    assert 0 < relative_error(chunk, exact) < max(2 * rounding, 0.02)
    assert relative_error(chunk, by_autocast) < 0.03
    in_float32 = {name for name, value in policy.model.named_parameters() if value.dtype == torch.float32}
    heads = ("state_proj", "action_", "time_", "vision.position_embedding")
    assert all(("norm" in name and "modulation" not in name) or name.startswith(heads) for name in in_float32)


def test_a_compiler_that_fails_is_done_without(policy, batch, monkeypatch, caplog):
    expected = copy.deepcopy(policy).for_inference().predict_action_chunk(batch)

    def fail(graph, inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(flow, "compilation", lambda mode: {"backend": fail})
    monkeypatch.setattr(policy.config, "compile_model", True)
    with caplog.at_level(logging.INFO):
        policy.for_inference()
        assert "respond" in vars(policy.model)
        for _ in range(2):
            torch.testing.assert_close(policy.predict_action_chunk(batch), expected, rtol=0, atol=0)
    said = [record.getMessage() for record in caplog.records if record.name == "depi.policies.pi0"]
    assert len(said) == 2
    assert said[0].startswith("the first chunk compiles the network, a minute or two where ")
    assert said[1].startswith("chunks cannot be compiled here (")
    assert "no C++ compiler" in said[1]


def test_a_processor_compiles_only_when_it_is_told_to(policy):
    policy.config.compile_chunks = True  # as it is by default
    assert "respond" not in vars(policy.for_inference().model)


def test_float32_stays_float32(policy):
    policy.for_inference()
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


def test_for_inference_is_for_inference(policy, batch, tmp_path):
    assert policy.for_inference() is policy.for_inference()
    for action in (policy.get_optim_params, lambda: policy.forward(batch)):
        with pytest.raises(UserError, match="cannot be trained: for_inference rounded its weights"):
            action()
    with pytest.raises(UserError, match="cannot be saved"):
        policy.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not any(parameter.requires_grad for parameter in policy.parameters())


@pytest.mark.parametrize(("kind", "target"), [("depi_pi0", "down_proj"), ("depi_pi05", "modulation.norm")])
def test_adapters_are_not_dropped(policy, batch, target):
    inject_adapter_in_model(LoraConfig(target_modules=[target], init_lora_weights=False), policy.model)
    chunk = policy.predict_action_chunk(batch)
    with pytest.raises(UserError, match=rf"{target} is a \w+; merge adapters"):
        policy.for_inference()
    torch.testing.assert_close(policy.predict_action_chunk(batch), chunk)


@both_families
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_layers_give_the_same_actions(make_config, data, batch, monkeypatch, backend):
    """LeRobot's default mode would make a CUDA graph of each layer, and inside the one that is captured."""
    modes, compile_part = set(), torch.compile

    def with_backend(part, *, fullgraph, mode):
        modes.add(mode)
        return compile_part(part, fullgraph=fullgraph, backend=backend)

    monkeypatch.setattr(torch, "compile", with_backend)
    plain = liven(make_policy(make_config(depth=2), data))
    compiled = make_policy(make_config(depth=2, compile_model=True, compile_mode="max-autotune"), data)
    compiled.load_state_dict(plain.state_dict())
    compiled.for_inference()
    assert modes == {"max-autotune-no-cudagraphs"}
    for each in (batch, {key: value[:1] for key, value in batch.items()}):
        torch.testing.assert_close(
            compiled.predict_action_chunk(each), plain.predict_action_chunk(each), rtol=1e-4, atol=1e-5
        )


def guided(policy, **changes):
    policy.config.rtc_config = RTCConfig(**changes)
    policy.init_rtc_processor()
    return policy


@both_families
def test_left_over_actions_pull(policy, batch):
    """Firmly before the inference delay, not at all after the horizon."""
    plain = policy.predict_action_chunk(batch)
    left_over = plain + 1
    guided(policy, prefix_attention_schedule=RTCAttentionSchedule.LINEAR, max_guidance_weight=10.0)
    with torch.inference_mode():
        chunk = policy.predict_action_chunk(
            batch, inference_delay=2, prev_chunk_left_over=left_over, execution_horizon=5
        )
    shift = (chunk - plain).mean(dim=(0, 2))
    assert (shift[:2] > 0.9).all()
    assert shift[:2].min() > shift[3] > shift[4] > 0.05
    assert shift[5:].abs().max() < shift[4]


@both_families
def test_guidance_needs_no_copy_of_the_weights_for_training(policy, batch):
    left_over = torch.randn(3, 6)
    arguments = {"inference_delay": 1, "prev_chunk_left_over": left_over}
    expected = guided(policy).predict_action_chunk(batch, **arguments)
    policy.for_inference()
    torch.testing.assert_close(
        policy.predict_action_chunk(batch, **arguments), expected, rtol=1e-4, atol=1e-5
    )


@both_families
@pytest.mark.parametrize("schedule", RTCAttentionSchedule)
@pytest.mark.parametrize(
    ("shape", "delay", "horizon"), [((5, 6), 2, None), ((4, 7, 6), 1, 4), ((3, 6), 4, 7)]
)
def test_guidance_is_lerobots(policy, batch, schedule, shape, delay, horizon):
    """With `debug` its own loop runs, which differentiates; that gives nothing but the weighted error."""
    arguments = {
        "inference_delay": delay,
        "prev_chunk_left_over": 3 * torch.randn(shape),
        "execution_horizon": horizon,
    }
    settings = {"prefix_attention_schedule": schedule, "max_guidance_weight": 2.5}
    ours = guided(policy, **settings).predict_action_chunk(batch, **arguments)
    theirs = guided(policy, debug=True, **settings).predict_action_chunk(batch, **arguments)
    assert len(policy.rtc_processor.get_all_debug_steps()) > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    plain = guided(policy, enabled=False).predict_action_chunk(batch)
    assert not torch.allclose(ours, plain, atol=0.1)


def test_without_a_previous_chunk_nothing_guides(policy, batch):
    plain = policy.predict_action_chunk(batch)
    guided(policy)
    torch.testing.assert_close(policy.predict_action_chunk(batch, inference_delay=0), plain)
    guided(policy, enabled=False)
    chunk = policy.predict_action_chunk(batch, inference_delay=2, prev_chunk_left_over=plain + 1)
    torch.testing.assert_close(chunk, plain)
    torch.testing.assert_close(policy.select_action(batch), plain[:, 0])


def test_guidance_is_recorded_for_debugging(policy, batch):
    guided(policy, debug=True)
    policy.predict_action_chunk(batch, num_steps=4)
    steps = policy.rtc_processor.get_all_debug_steps()
    assert [step.time for step in steps] == pytest.approx([1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prev_chunk_left_over": torch.zeros(3, 6)}, "needs an inference_delay"),
        ({"prev_chunk_left_over": torch.zeros(3, 6), "inference_delay": -1}, "needs an inference_delay"),
        ({"prev_chunk_left_over": torch.zeros(8, 6), "inference_delay": 1}, "at most 7 steps"),
        ({"prev_chunk_left_over": torch.zeros(3, 33), "inference_delay": 1}, "of 32 numbers"),
        ({"prev_chunk_left_over": torch.zeros(6), "inference_delay": 1}, r"shape \[6\]"),
    ],
)
def test_guidance_that_does_not_fit(policy, batch, arguments, message):
    guided(policy)
    with pytest.raises(UserError, match=message):
        policy.predict_action_chunk(batch, **arguments)


def test_real_time_chunking_must_be_on(policy, batch):
    with pytest.raises(
        UserError, match=r"inference_delay, prev_chunk_left_over needs the policy's rtc_config"
    ):
        policy.predict_action_chunk(batch, inference_delay=1, prev_chunk_left_over=torch.zeros(3, 6))
    with pytest.raises(UserError, match="select_action cannot chunk in real time"):
        guided(policy).select_action(batch)


@pytest.fixture
def on_gpu(make_config, data, batch):
    """A prepared bfloat16 policy and a batch on the GPU."""
    policy = liven(make_policy(make_config(dtype="bfloat16"), data, device="cuda")).for_inference()
    return policy, {key: value.to("cuda") for key, value in batch.items()}


def plain_actions(policy, batch):
    with policy.autocast():
        observation = trim(policy.observe(batch))
        return sample_actions(policy.model, observation, batch["noise"], action_dim=6)[..., :6]


@both_families
@pytest.mark.gpu
def test_a_captured_chunk_is_the_plain_one(on_gpu):
    policy, batch = on_gpu
    expected = plain_actions(policy, batch)
    with torch.inference_mode():  # first capture as LeRobot's commands call it
        first = policy.predict_action_chunk(batch)
    torch.testing.assert_close(first, expected, rtol=0.02, atol=0.02)
    kept = first.clone()
    changed = batch | {
        OBS_STATE: batch[OBS_STATE] + 1,
        CAMERA: 255 - batch[CAMERA],
        OBS_LANGUAGE_TOKENS: batch[OBS_LANGUAGE_TOKENS] + 1,
        OBS_LANGUAGE_ATTENTION_MASK: batch[OBS_LANGUAGE_ATTENTION_MASK].flip(0),
        "noise": -batch["noise"],
    }
    second = policy.predict_action_chunk(changed)
    torch.testing.assert_close(second, plain_actions(policy, changed), rtol=0.02, atol=0.02)
    assert relative_error(second, first) > 0.1
    assert torch.equal(first, kept)  # replaying must not write into what was handed out
    assert torch.equal(policy.predict_action_chunk(batch), first)


@pytest.mark.gpu
def test_compiled_and_captured_chunks_are_the_plain_ones(make_config, data, batch):
    plain, compiled = (
        liven(make_policy(make_config(dtype="bfloat16", compile_chunks=chosen), data, device="cuda"))
        for chosen in (False, True)
    )
    compiled.load_state_dict(plain.state_dict())
    batch = {key: value.to("cuda") for key, value in batch.items()}
    expected = plain_actions(plain.for_inference(), batch)
    compiled.for_inference()
    for _ in range(2):
        found = compiled.predict_action_chunk(batch)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.gpu
def test_one_graph_per_shape(on_gpu):
    policy, batch = on_gpu
    runs = counted(policy.model.vision)
    one = {key: value[:1] for key, value in batch.items()}
    fewer = {key: value for key, value in batch.items() if not key.startswith(CAMERA)}
    for each in (batch, one, fewer):
        policy.predict_action_chunk(each)
        after_capture = len(runs)
        expected = plain_actions(policy, each)
        del runs[after_capture:]
        torch.testing.assert_close(policy.predict_action_chunk(each), expected, rtol=0.02, atol=0.02)
        assert len(runs) == after_capture  # replayed: no Python ran
    policy.predict_action_chunk(batch, num_steps=3)
    assert len(runs) > after_capture


@pytest.mark.gpu
def test_replaying_neither_waits_nor_allocates(on_gpu):
    policy, batch = on_gpu
    policy.predict_action_chunk(batch)
    observation = trim(policy.observe(batch))
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        variant = (policy.config.num_inference_steps, policy.guidance, None)
        actions = policy._captured(*observation[:5], batch["noise"], variant=variant)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_allocated() - before <= 512 * (1 + actions.nbytes // 512)


@pytest.mark.gpu
def test_moved_weights_are_captured_again(on_gpu):
    policy, batch = on_gpu
    first = policy.predict_action_chunk(batch)
    policy.to("cpu").to("cuda")
    torch.testing.assert_close(policy.predict_action_chunk(batch), first, rtol=0.02, atol=0.02)


def as_plain(policy, batch):
    return {}


def as_prepared(policy, batch):
    policy.for_inference()
    return {}


def as_several_chunks(policy, batch):
    policy.config.num_samples = 2
    batch["noise"] = torch.randn(4, 2, 7, 32)
    return {}


def as_guided_by_the_indicator(policy, batch):
    batch |= {
        UNCONDITIONAL_TOKENS: batch[OBS_LANGUAGE_TOKENS] + 1,
        UNCONDITIONAL_MASK: batch[OBS_LANGUAGE_ATTENTION_MASK],
    }
    policy.set_guidance(3.0)
    return {}


def as_pulled(policy, batch, **settings):
    policy.config.rtc_config = RTCConfig(**settings)
    policy.init_rtc_processor()
    return {"inference_delay": 2, "prev_chunk_left_over": torch.randn(5, 6)}


def as_recorded(policy, batch):
    return as_pulled(policy, batch, debug=True)


@both_families
@pytest.mark.parametrize(
    "how", [as_plain, as_prepared, as_several_chunks, as_guided_by_the_indicator, as_pulled, as_recorded]
)
def test_behind_an_action_the_network_sees_what_it_saw_in_training(policy, batch, how):
    """There actions are zeros in training, and noisy ones the noise times t."""
    arguments = how(policy, batch)
    seen = []
    policy.model.action_in_proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    policy.predict_action_chunk(batch, num_steps=4, **arguments)
    noise = batch["noise"] if batch["noise"].ndim == 3 else batch["noise"].transpose(0, 1).flatten(0, 1)
    assert len(seen) == 4
    for step, x_t in enumerate(seen):
        behind = (1 - step / 4) * noise[..., 6:]
        torch.testing.assert_close(x_t[..., 6:], behind.repeat(len(x_t) // len(noise), 1, 1))


@pytest.mark.parametrize("kind", ["depi_pi05"])
def test_what_was_learned_is_what_is_sampled(make_config, data, batch):
    """The loss says nothing of the numbers that no action has: followed there too, chunks are worse."""
    policy = make_policy(make_config(), data).train()
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    learned = {key: value for key, value in batch.items() if key not in ("noise", "time")}
    for _ in range(300):
        policy(learned)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    followed = sample_actions(policy.model, policy.observe(batch), batch["noise"])[..., :6]
    sampled = policy.predict_action_chunk(batch)
    assert (sampled - batch[ACTION]).norm() < (followed - batch[ACTION]).norm() / 1.4
