"""Best of N: several chunks with one prefix, and the one that is nearest to their mean."""

import pytest
import torch
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from small_pi0 import both_families, liven

from depi.errors import UserError
from depi.models.sampling import sample_actions
from depi.policies import make_policy
from depi.policies.pi0 import nearest_to_mean


@pytest.fixture
def several(policy):
    policy.config.num_samples = 3
    return policy


def one_by_one(policy, batch, noise):
    """Chunks [B, N, H, D], each sampled by itself."""
    observation = policy.observe(batch)
    chunks = [sample_actions(policy.model, observation, each, action_dim=6) for each in noise.unbind(1)]
    return torch.stack(chunks, dim=1)[..., :6]


@both_families
@pytest.mark.parametrize("prepared", [False, True], ids=["as trained", "for inference"])
def test_chunks_are_those_of_their_own_noise(several, batch, prepared):
    noise = torch.randn(4, 3, 7, 32)
    expected = one_by_one(several, batch, noise)
    if prepared:
        several.for_inference()
    chunks = several.sample_chunks(batch, noise)
    torch.testing.assert_close(chunks, expected, rtol=1e-4, atol=1e-5)
    chosen = several.predict_action_chunk({**batch, "noise": noise})
    torch.testing.assert_close(chosen, nearest_to_mean(expected), rtol=1e-4, atol=1e-5)
    del batch["noise"]
    assert several.predict_action_chunk(batch).shape == (4, 7, 6)


@both_families
def test_the_prefix_is_read_once(several, batch):
    del batch["noise"]
    rows = []
    for part in (several.model.vision, several.model.prefix, several.model.suffix.layers[0]):
        part.register_forward_hook(lambda _module, inputs, _out: rows.append(len(inputs[0])))
    several.predict_action_chunk(batch, num_steps=2)
    vision, prefix, *suffix = rows
    assert vision <= 12
    assert prefix == 4
    assert suffix == [12, 12]


def test_the_chunk_nearest_to_the_mean():
    """Two ways to the left and one to the right: never what lies between."""
    chunks = torch.tensor([-1.0, -0.8, 1.0])[None, :, None, None].expand(2, 3, 4, 6)
    assert (nearest_to_mean(chunks) == -0.8).all()
    assert (nearest_to_mean(chunks[:, :1]) == -1).all()


@both_families
def test_advantages_guide_each_chunk(make_config, data, batch):
    policy = liven(make_policy(make_config(num_samples=2), data))
    policy.set_guidance(2.0)
    names = ("observation.language.unconditional_tokens", "observation.language.unconditional_mask")
    batch |= {names[0]: batch["observation.language.tokens"] + 1}
    batch |= {names[1]: batch["observation.language.attention_mask"]}
    noise = torch.randn(4, 2, 7, 32)
    chunks = policy.sample_chunks(batch, noise)
    policy.config.num_samples = 1
    for number in range(2):
        alone = policy.predict_action_chunk(batch, noise[:, number])
        torch.testing.assert_close(chunks[:, number], alone, rtol=1e-4, atol=1e-5)


@both_families
@pytest.mark.parametrize("most", [0, 3], ids=["guided", "trained"])
@pytest.mark.parametrize("shape", [(5, 6), (1, 5, 6), (4, 5, 6)])
def test_left_over_actions_are_those_of_their_sample(make_config, data, batch, most, shape):
    policy = liven(make_policy(make_config(num_samples=2, rtc_training_max_delay=most), data))
    policy.config.rtc_config = RTCConfig()
    policy.init_rtc_processor()
    noise, left_over = torch.randn(4, 2, 7, 32), torch.randn(shape)
    arguments = {"inference_delay": 2, "prev_chunk_left_over": left_over}
    chunks = policy.sample_chunks(batch, noise, **arguments)
    policy.config.num_samples = 1
    for number in range(2):
        alone = policy.predict_action_chunk(batch, noise[:, number], **arguments)
        torch.testing.assert_close(chunks[:, number], alone, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused(several, batch, make_config, data):
    with pytest.raises(UserError, match=r"noise has shape \[4, 1, 7, 32\], and \[4, 3, 7, 32\] is needed"):
        several.predict_action_chunk(batch)
    for count in (0, 257):
        with pytest.raises(UserError, match="num_samples must be 1 to 256"):
            make_policy(make_config(num_samples=count), data)
