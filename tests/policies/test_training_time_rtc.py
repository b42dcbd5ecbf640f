"""Training-time real-time chunking: the loss with given actions, and sampling that goes on from them."""

import json

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.utils.constants import ACTION, OBS_STATE
from small_pi0 import both_families, liven, make_batch, make_small

from depi.errors import UserError
from depi.models.sampling import sample_actions
from depi.policies import load_config, load_policy, make_policy
from depi.policies.choices import CHOICES_FILE, choices_of, save_config
from depi.policies.configuration import set_features

MOST = 4


@pytest.fixture
def trained(make_config, data):
    """A policy that was told to train for delays, and then to chunk in real time."""
    policy = liven(make_policy(make_config(rtc_training_max_delay=MOST), data))
    policy.config.rtc_config = RTCConfig()
    policy.init_rtc_processor()
    return policy


@both_families
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_that_of_the_steps_after_the_delay(trained, batch, masked):
    trained.config.do_mask_loss_for_padding = masked
    batch["inference_delay"] = torch.tensor([0, 2, 4, 1])
    loss, parts = trained(batch)
    by_sample, _ = trained(batch, reduction="none")
    sums, count = 0.0, 0
    for row, delay in enumerate(batch["inference_delay"].tolist()):
        sample = {key: value[row : row + 1] for key, value in batch.items()}
        x_t = sample["time"] * sample["noise"] + (1 - sample["time"]) * pad(sample[ACTION])
        x_t[:, :delay] = pad(sample[ACTION])[:, :delay]
        times = sample["time"].repeat(1, 7)
        times[:, :delay] = 0
        observation = trained.observe(sample)
        prefix = trained.model.encode_prefix(observation)
        predicted = trained.model.velocity(prefix, observation.state, x_t, times)
        errors = (predicted - (sample["noise"] - pad(sample[ACTION]))).square()[0, :, :6]
        errors = errors[delay : 7 - masked * int(sample["action_is_pad"].sum())]
        expected = errors.mean() if errors.numel() else torch.tensor(0.0)
        torch.testing.assert_close(by_sample[row], expected)
        sums, count = sums + errors.sum(), count + errors.numel()
    torch.testing.assert_close(loss, sums / count)
    torch.testing.assert_close(parts["loss_per_dim"].mean(), loss.detach())


def pad(actions):
    return torch.nn.functional.pad(actions, (0, 26))


def test_without_delay_it_is_the_plain_loss(trained, make_config, data, batch):
    plain = make_policy(make_config(), data)
    plain.load_state_dict(trained.state_dict())
    batch["inference_delay"] = torch.zeros(4, dtype=torch.long)
    torch.testing.assert_close(trained(batch)[0], plain(batch)[0])
    batch["inference_delay"] += MOST
    torch.testing.assert_close(trained(batch)[0], trained(batch)[0])
    assert not torch.isclose(trained(batch)[0], plain(batch)[0])


@both_families
def test_given_actions_have_no_noise(trained, batch):
    batch["inference_delay"] = torch.full((4,), 2)
    before = trained(batch)[0]
    batch["noise"][:, :2] += 1
    torch.testing.assert_close(trained(batch)[0], before)
    batch["noise"][:, 2:] += 1
    assert not torch.isclose(trained(batch)[0], before)


def test_delays_are_drawn_when_absent(trained, batch):
    losses = {trained(batch)[0].item() for _ in range(8)}
    assert len(losses) > 1


@both_families
@pytest.mark.parametrize("prepared", [False, True], ids=["as trained", "for inference"])
@pytest.mark.parametrize("left_over_shape", [(5, 6), (4, 7, 6)])
def test_a_chunk_begins_with_what_is_executed(trained, batch, left_over_shape, prepared):
    """And the rest is integrated with the given steps at time 0."""
    left_over, delay = torch.randn(*left_over_shape), 3
    observation = trained.observe(batch)
    x_t = batch["noise"].clone()
    with torch.no_grad():
        prefix = trained.model.encode_prefix(observation)
        for step in range(10):
            times = torch.full((4, 7), 1 - step / 10)
            x_t[:, :delay] = pad(left_over[..., :delay, :])
            times[:, :delay] = 0
            velocity = trained.model.velocity(prefix, observation.state, x_t, times)
            velocity[..., 6:] = batch["noise"][..., 6:]
            x_t = x_t - velocity / 10
    if prepared:
        trained.for_inference()
    chunk = trained.predict_action_chunk(
        batch, inference_delay=delay, prev_chunk_left_over=left_over, execution_horizon=5
    )
    assert torch.equal(chunk[:, :delay], left_over[..., :delay, :].expand(4, -1, -1))
    torch.testing.assert_close(chunk[:, delay:], x_t[:, delay:, :6], rtol=1e-4, atol=1e-5)


def test_no_backward_pass_is_needed(trained, batch, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("differentiated")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    arguments = {"prev_chunk_left_over": torch.randn(6, 6)}
    for delay in (MOST, MOST + 1):  # given, and guided
        trained.predict_action_chunk(batch, inference_delay=delay, **arguments)
    trained.config.rtc_config.debug = True
    trained.init_rtc_processor()
    with pytest.raises(AssertionError, match="differentiated"):
        trained.predict_action_chunk(batch, inference_delay=MOST + 1, **arguments)


def test_longer_delays_than_those_of_training_are_guided(trained, make_config, data, batch, caplog):
    guided = make_policy(make_config(rtc_config=RTCConfig()), data)
    guided.load_state_dict(trained.state_dict())
    arguments = {"inference_delay": MOST + 2, "prev_chunk_left_over": torch.randn(6, 6)}
    torch.testing.assert_close(
        trained.predict_action_chunk(batch, **arguments), guided.predict_action_chunk(batch, **arguments)
    )
    trained.predict_action_chunk(batch, **arguments)
    assert caplog.text.count("longer than those of the policy's training, at most 4") == 1


def test_without_left_over_or_delay_it_samples_freely(trained, batch):
    plain = sample_actions(trained.model, trained.observe(batch), batch["noise"], action_dim=6)[..., :6]
    left_over = torch.randn(6, 6)
    for arguments in ({}, {"inference_delay": 0, "prev_chunk_left_over": left_over}):
        torch.testing.assert_close(trained.predict_action_chunk(batch, **arguments), plain)
    trained.config.rtc_config = RTCConfig(enabled=False)
    trained.init_rtc_processor()
    chunk = trained.predict_action_chunk(batch, inference_delay=2, prev_chunk_left_over=left_over)
    torch.testing.assert_close(chunk, plain)


def test_given_actions_are_recorded_for_debugging(trained, batch):
    left_over = torch.randn(6, 6)
    arguments = {"inference_delay": 2, "prev_chunk_left_over": left_over, "num_steps": 4}
    expected = trained.predict_action_chunk(batch, **arguments)
    trained.config.rtc_config = RTCConfig(debug=True)
    trained.init_rtc_processor()
    torch.testing.assert_close(trained.predict_action_chunk(batch, **arguments), expected)
    assert len(trained.rtc_processor.get_all_debug_steps()) == 4


@pytest.mark.parametrize("delay", [-1, 7])
def test_delays_must_fit_into_a_chunk(make_config, data, delay):
    with pytest.raises(
        UserError, match=f"rtc_training_max_delay must be 0 to 6, below chunk_size, not {delay}"
    ):
        make_policy(make_config(rtc_training_max_delay=delay), data)


def test_it_learns_to_go_on(make_config):
    """Demonstrations go left or right, which nothing tells but the actions that are executed already."""
    policy = make_small(rtc_training_max_delay=3, num_inference_steps=5, optimizer_lr=3e-3)
    policy.train()
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    batch = make_batch(4)
    del batch["noise"], batch["time"]
    batch = {key: value[:1].expand(16, *value.shape[1:]) for key, value in batch.items()}
    side = torch.tensor([-1.0, 1.0]).repeat(8)[:, None, None]
    batch[ACTION] = side * torch.ones(16, 6, 6)
    for _ in range(150):
        loss = policy(batch)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.config.rtc_config = RTCConfig()
    policy.init_rtc_processor()
    chunk = policy.predict_action_chunk(batch, inference_delay=2, prev_chunk_left_over=side.expand(16, 4, 6))
    assert ((chunk[:, 2:] * side).mean(dim=(1, 2)) > 0.5).all()
    free = policy.predict_action_chunk(batch)
    assert 0.1 < (free[:, 2:].mean(dim=(1, 2)) > 0).float().mean() < 0.9


@pytest.mark.parametrize("published", [PI0Config, PI05Config])
def test_the_published_size_keeps_lerobots_configuration(data, tmp_path, published):
    """Stock LeRobot refuses a config.json with a field that it does not know."""
    config = published(device="cpu")
    set_features(config, data)
    config.rtc_training_max_delay = 8
    save_config(config, tmp_path)
    assert type(PreTrainedConfig.from_pretrained(tmp_path)) is published
    assert json.loads((tmp_path / CHOICES_FILE).read_text()) == {"rtc_training_max_delay": 8}
    assert choices_of(load_config(tmp_path)).rtc_training_max_delay == 8
    assert choices_of(load_config(tmp_path, ["--rtc_training_max_delay=2"])).rtc_training_max_delay == 2
    config.rtc_training_max_delay = 0
    save_config(config, tmp_path)
    assert not (tmp_path / CHOICES_FILE).exists()
    assert choices_of(load_config(tmp_path)).rtc_training_max_delay == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "must hold a JSON object"),
        ('{"rtc_training_max_delay": "many"}', "rtc_training_max_delay"),
        ('{"unheard_of": 1}', "unheard_of"),
    ],
)
def test_a_strangers_choices_are_checked(data, tmp_path, content, says):
    config = PI0Config(device="cpu")
    set_features(config, data)
    save_config(config, tmp_path)
    (tmp_path / CHOICES_FILE).write_text(content)
    with pytest.raises(UserError, match=says):
        load_config(tmp_path)


@both_families
def test_a_type_of_depis_own_has_the_field(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    assert not (tmp_path / CHOICES_FILE).exists()
    assert load_policy(tmp_path).config.rtc_training_max_delay == MOST
    assert OBS_STATE in trained.config.input_features
