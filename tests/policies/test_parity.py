"""LeRobot's pi0 and pi0.5 at reduced size, DePi's with the same weights: same loss, gradients, actions."""

import copy

import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout.inference.rtc import supports_rtc_inference
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from reduced_lerobot import CAMERAS, make_batch, make_config, reduced_sizes
from true_velocity import true_velocity_behind

from depi.datasets.recording.cameras import letterbox as scaled_by_datasets
from depi.policies import load_policy, pack_batch
from depi.policies.batches import letterbox
from depi.policies.convert import lerobot_name, unused_shapes

# Relative error in float32: the two implementations sum in different orders.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["pi0", "pi05"])
def pair(tmp_path_factory, request):
    """LeRobot's policy, and DePi's that has read LeRobot's file."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("lerobot")
    with reduced_sizes(request.param) as policy_class:
        theirs = policy_class(make_config(request.param))
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if "norm" in name:  # fresh norms and modulations are all alike and would hide a mix-up
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        theirs.save_pretrained(folder)
        return theirs, load_policy(folder)


def their_loss(policy, batch, masks=None):
    """LeRobot's loss with noise and time given, and camera masks per sample, which its policy cannot pass.

    Padded steps, which it counts, are left out of each sample's mean.
    """
    images, whole = policy._preprocess_images(batch)
    errors = policy.model.forward(
        images,
        whole if masks is None else masks,
        *text_and_state(policy, batch),
        policy.prepare_action(batch),
        batch["noise"],
        batch["time"],
    )
    valid = ~batch.get("action_is_pad", torch.zeros(errors.shape[:2], dtype=torch.bool))
    return ((errors[..., :6].mean(dim=2) * valid).sum(dim=1) / valid.sum(dim=1)).mean()


def text_and_state(policy, batch):
    """What LeRobot's network is told beside images; of pi0.5 the state is in the prompt."""
    language = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
    return language if policy.name == "pi05" else (*language, policy.prepare_state(batch))


def our_loss(policy, batch, how):
    """DePi's loss and its gradients, computed as training does."""
    if "recompute" in how:
        policy.model.set_recompute(0.5)
    parts = [batch]
    if "accumulated" in how:
        parts = [{key: value[sample : sample + 1] for key, value in batch.items()} for sample in range(3)]
    if "packed" in how:
        parts = [pack_batch(policy.config, part) for part in parts]
    total = 0
    for part in parts:
        loss = policy.forward(part, reduction="none")[0].sum() / 3
        loss.backward()
        total = total + loss.detach()
    policy.model.set_recompute(0.0)
    return total


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()


def gradients(theirs, ours):
    """Pairs of gradients by DePi's name; LeRobot's unused parameters must have none worth the name."""
    their_grads = {name.removeprefix("model."): p.grad for name, p in theirs.named_parameters()}
    pairs = {
        name: (p.grad, their_grads.pop(lerobot_name(name, depth=3)))
        for name, p in ours.model.named_parameters()
    }
    assert set(their_grads) == set(unused_shapes(ours.model.dimensions))
    assert all(grad is None or grad.abs().max() == 0 for grad in their_grads.values())
    return pairs


ABSENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


@pytest.mark.parametrize("padded_actions", [False, True], ids=["", "padded actions"])
@pytest.mark.parametrize("camera_mask", [None, ABSENT], ids=["all cameras", "absent cameras"])
@pytest.mark.parametrize("how", ["padded", "packed", "packed, recompute", "accumulated, packed"])
def test_same_loss_and_gradients(pair, camera_mask, how, padded_actions, monkeypatch):
    theirs, ours = pair
    monkeypatch.setattr(ours.config, "do_mask_loss_for_padding", True, raising=False)
    batch = make_batch()
    if padded_actions:
        batch["action_is_pad"] = torch.arange(6) >= torch.tensor([[6], [4], [1]])
    theirs.zero_grad(), ours.zero_grad()
    their_value = their_loss(theirs, batch, None if camera_mask is None else list(camera_mask.T))
    their_value.backward()
    if camera_mask is not None:
        batch |= {f"{key}_is_pad": ~camera_mask[:, slot] for slot, key in enumerate(CAMERAS)}
    assert relative_error(our_loss(ours, batch, how), their_value) < TOLERANCE
    for name, (our_grad, their_grad) in gradients(theirs, ours).items():
        if name.startswith("vision") and name.endswith("k_proj.bias"):
            # It shifts all scores of a query alike: its true gradient is zero.
            assert max(our_grad.abs().max(), their_grad.abs().max()) < 1e-6, name
        else:
            assert relative_error(our_grad, their_grad) < TOLERANCE, name


def test_padded_actions_count_as_they_do_there(pair):
    theirs, ours = pair
    batch = make_batch()
    expected = their_loss(theirs, batch)
    batch["action_is_pad"] = torch.arange(6) >= torch.tensor([[6], [4], [1]])
    assert relative_error(ours.forward(batch)[0], expected) < TOLERANCE


def test_same_actions(pair):
    """But for the 26 numbers that an action does not have: there LeRobot follows what nobody has trained."""
    theirs, ours = pair
    batch = make_batch()
    untrained = sample(theirs, batch)
    with true_velocity_behind(theirs, batch["noise"]):
        expected = sample(theirs, batch)
    assert relative_error(ours.predict_action_chunk(batch), expected) < TOLERANCE
    assert relative_error(untrained, expected) > 0.01


@pytest.mark.parametrize(
    ("settings", "left_over_shape", "delay"),
    [
        ({}, (3, 4, 6), 2),
        ({"execution_horizon": 3, "prefix_attention_schedule": RTCAttentionSchedule.EXP}, (3, 6, 32), 1),
        ({"max_guidance_weight": 2.0, "prefix_attention_schedule": RTCAttentionSchedule.ONES}, (5, 6), 0),
        ({"prefix_attention_schedule": RTCAttentionSchedule.ZEROS}, (1, 6, 6), 4),
    ],
    ids=["linear", "exponential", "ones", "zeros"],
)
def test_same_guided_actions(pair, settings, left_over_shape, delay):
    """Real-time chunking through the calls that LeRobot's robot commands make."""
    batch = make_batch()
    left_over = torch.randn(*left_over_shape)
    arguments = {"inference_delay": delay, "prev_chunk_left_over": left_over}
    chunks = []
    for policy in pair:
        assert supports_rtc_inference(policy)
        policy.config.rtc_config = RTCConfig(**settings)
        policy.init_rtc_processor()
        with true_velocity_behind(pair[0], batch["noise"]):
            chunks.append(policy.predict_action_chunk(batch, noise=batch["noise"], **arguments))
        policy.config.rtc_config = None
        policy.init_rtc_processor()
    assert relative_error(chunks[1], chunks[0]) < TOLERANCE
    assert relative_error(pair[1].predict_action_chunk(batch), chunks[0]) > 0.01


def sample(policy, batch):
    images, masks = policy._preprocess_images(batch)
    inputs = text_and_state(policy, batch)
    return policy.model.sample_actions(images, masks, *inputs, noise=batch["noise"])[..., :6]


def test_letterbox_is_theirs(pair):
    theirs, ours = pair
    batch = make_batch()
    for key, size in zip(CAMERAS, [(28, 20), (48, 64), (33, 17)], strict=True):
        batch[key] = torch.rand(3, 3, *size)
    assert relative_error(ours.forward(batch)[0], their_loss(theirs, batch)) < TOLERANCE


def test_a_policy_scales_as_the_datasets_of_its_training(pair):
    """Images at their own size, as commands of robots and simulators hand them over."""
    image = torch.randint(0, 256, (3, 3, 48, 64), dtype=torch.uint8)
    for antialias in (False, True):
        sample = [scaled_by_datasets(each, 28, antialias).float() / 255 for each in image]
        ours = letterbox(image, (28, 28), antialias)
        assert (ours - torch.stack(sample)).abs().max() < 1.5 / 255
    assert (letterbox(image, (28, 28), True) - letterbox(image, (28, 28))).abs().mean() > 0.05
    _, ours = pair
    batch = make_batch() | dict.fromkeys(CAMERAS, image)
    scaled = make_batch() | dict.fromkeys(CAMERAS, letterbox(image, (28, 28), True))
    ours.config.image_antialias = True
    try:
        assert ours.forward(batch)[0] == ours.forward(scaled)[0]
    finally:
        ours.config.image_antialias = False
    assert ours.forward(batch)[0] != ours.forward(scaled)[0]


def test_missing_camera_equals_masked_camera(pair):
    _, ours = pair
    batch = make_batch()
    masked = batch | {f"{CAMERAS[0]}_is_pad": torch.ones(3, dtype=torch.bool)}
    missing = {key: value for key, value in batch.items() if key != CAMERAS[0]}
    with torch.no_grad():
        expected = ours.forward(masked)[0]
        assert relative_error(ours.forward(missing)[0], expected) < 1e-6
        assert relative_error(ours.forward(batch)[0], expected) > 1e-5


def test_export_loads_in_lerobot(pair, tmp_path, capsys):
    """Its loader prints failures and returns random weights: look at the numbers."""
    theirs, ours = pair
    ours = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(1.01)
    ours.save_pretrained(tmp_path)
    with reduced_sizes(theirs.name) as policy_class:
        reloaded = policy_class.from_pretrained(tmp_path, strict=True)
    assert "All keys loaded successfully!" in capsys.readouterr().out
    batch = make_batch()
    expected = ours.forward(batch)[0]
    assert relative_error(their_loss(reloaded, batch), expected) < TOLERANCE
    with true_velocity_behind(reloaded, batch["noise"]):
        assert relative_error(sample(reloaded, batch), ours.predict_action_chunk(batch)) < TOLERANCE
    assert abs(expected - ours.forward(batch | {"time": batch["time"] / 2})[0]) > 1e-3
