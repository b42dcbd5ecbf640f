"""The policy on processed batches: what counts in the loss, what comes out, what is refused."""

import pytest
import torch
from lerobot.configs import FeatureType
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_TOKENS, OBS_STATE
from small_pi0 import both_families, liven

from depi.errors import UserError
from depi.models.pi0 import Pi0Dimensions
from depi.models.pi05 import Pi05Dimensions
from depi.policies import DepiPi0Config, Pi0Policy, make_policy, set_features
from depi.policies.configuration import dimensions_of
from depi.policies.configuration_depi_pi05 import DepiPi05Config
from depi.policies.pi05 import Pi05Policy


@both_families
def test_padded_steps_do_not_count_where_they_are_masked(policy, batch):
    """Against the same mean, summed step by step."""
    policy.config.do_mask_loss_for_padding = True
    per_sample = []
    for sample in range(4):
        errors = []
        for step in range(7):
            if not batch["action_is_pad"][sample, step]:
                whole = policy.model(
                    policy.observe(batch),
                    torch.nn.functional.pad(batch[ACTION], (0, 26)),
                    batch["noise"],
                    batch["time"],
                )
                errors.append(whole[sample, step, :6])
        per_sample.append(torch.stack(errors))
    every_step = torch.cat(per_sample)
    loss, info = policy.forward(batch)
    torch.testing.assert_close(loss, every_step.mean())
    torch.testing.assert_close(info["loss_per_dim"], every_step.mean(dim=0))
    each, _ = policy.forward(batch, reduction="none")
    torch.testing.assert_close(each, torch.stack([errors.mean() for errors in per_sample]))


def test_padded_steps_count_by_default(policy, batch):
    loss = policy.forward(batch)[0]
    del batch["action_is_pad"]
    assert policy.forward(batch)[0] == loss


def test_masked_actions_have_no_gradient(policy, batch):
    policy.config.do_mask_loss_for_padding = True
    action = batch[ACTION].clone().requires_grad_()
    policy.forward(batch | {ACTION: action})[0].backward()
    assert action.grad[3, :6].abs().min() > 0
    # Padded steps are still seen by their neighbours: only their own error is left out.
    only_padding = torch.ones(4, 7, dtype=torch.bool)
    assert policy.forward(batch | {"action_is_pad": only_padding})[0] == 0


@both_families
def test_nothing_of_an_absent_camera_matters(policy, batch):
    key = "observation.images.1"
    other_pixels = torch.where(batch[f"{key}_is_pad"][:, None, None, None], 255 - batch[key], batch[key])
    assert not torch.equal(other_pixels, batch[key])
    torch.testing.assert_close(policy.forward(batch | {key: other_pixels})[0], policy.forward(batch)[0])


@both_families
def test_missing_camera_takes_no_work(policy, batch):
    """A batch without a camera's key is computed without it, and means the same as one that masks it."""
    for slot, key in enumerate(policy.config.image_features):
        missing = {name: value for name, value in batch.items() if name != key}
        masked = batch | {f"{key}_is_pad": torch.ones(4, dtype=torch.bool)}
        assert policy.observe(missing).images.shape[1] == 2, slot
        torch.testing.assert_close(policy.forward(missing)[0], policy.forward(masked)[0])
        assert policy.forward(missing)[0] != policy.forward(batch)[0]


def test_uint8_and_float_images_are_the_same(policy, batch):
    as_float = {key: batch[key].float() / 255 for key in policy.config.image_features}
    torch.testing.assert_close(policy.forward(batch | as_float)[0], policy.forward(batch)[0])
    one_float = {"observation.images.0": as_float["observation.images.0"]}
    torch.testing.assert_close(policy.forward(batch | one_float)[0], policy.forward(batch)[0])


def test_noise_and_time_are_drawn_when_absent(policy, batch):
    del batch["noise"], batch["time"]
    first, second = policy.forward(batch)[0], policy.forward(batch)[0]
    assert first != second
    torch.manual_seed(5)
    third = policy.forward(batch)[0]
    torch.manual_seed(5)
    assert policy.forward(batch)[0] == third


@both_families
def test_actions(policy, batch):
    chunk = policy.predict_action_chunk(batch)
    assert chunk.shape == (4, 7, 6)
    torch.testing.assert_close(policy.predict_action_chunk(batch, noise=batch["noise"]), chunk)
    queued = [policy.select_action(batch) for _ in range(5)]
    torch.testing.assert_close(torch.stack(queued, dim=1), chunk[:, :5])
    other = {**batch, OBS_LANGUAGE_TOKENS: batch[OBS_LANGUAGE_TOKENS] + 1}
    next_chunk = policy.predict_action_chunk(other)
    torch.testing.assert_close(policy.select_action(other), next_chunk[:, 0])
    torch.testing.assert_close(policy.select_action(batch), next_chunk[:, 1])
    policy.reset()
    torch.testing.assert_close(policy.select_action(batch), chunk[:, 0])


@both_families
def test_training_fits_a_batch(policy, batch):
    """Pixels, state and noise lead to the recorded actions after a few steps on one batch."""
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@both_families
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(make_config, data, batch):
    policy = liven(make_policy(make_config(dtype="bfloat16"), data))
    full_precision = policy.forward(batch)[0]
    seen = []
    policy.model.suffix.layers[0].register_forward_hook(lambda _m, args, _o: seen.append(args[0].dtype))
    with policy.autocast():
        loss, _ = policy.forward(batch)
    loss.backward()
    policy.predict_action_chunk(batch)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in policy.parameters()} == {torch.float32}
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, full_precision, rtol=0.02, atol=0)


@both_families
def test_frozen_parts_get_no_gradient(make_config, data, batch):
    for flag, trained in (
        ("freeze_vision_encoder", lambda name: not name.startswith("vision.")),
        ("train_expert_only", lambda name: name.startswith(("state_", "action_", "time_", "suffix."))),
    ):
        policy = make_policy(make_config(**{flag: True}), data)
        policy.forward(batch)[0].backward()
        with_gradient = {
            name for name, parameter in policy.model.named_parameters() if parameter.grad is not None
        }
        assert with_gradient == {name for name, _ in policy.model.named_parameters() if trained(name)}
        assert len(policy.get_optim_params()) == len(with_gradient)


@both_families
def test_recomputing_activations_changes_nothing(make_config, data, batch):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(3)
        policy = make_policy(make_config(gradient_checkpointing=recompute), data)
        policy.forward(batch)[0].backward()
        gradients.append([parameter.grad for parameter in policy.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed)


@both_families
def test_smaller_state_and_action_are_padded(make_config, data, batch):
    data.state_dim, data.action_dim = 2, 3
    policy = make_policy(make_config(), data)
    small = batch | {OBS_STATE: batch[OBS_STATE][:, :2], ACTION: batch[ACTION][..., :3]}
    loss, info = policy.forward(small)
    assert info["loss_per_dim"].shape == (3,)
    torch.testing.assert_close(loss, policy.forward(small, reduction="none")[1]["loss_per_dim"].mean())
    assert policy.predict_action_chunk(small).shape == (4, 7, 3)


@pytest.mark.parametrize("config_class", [PI0Config, PI05Config])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paligemma_variant": "gemma_300m"}, "use gemma_2b"),
        ({"image_resolution": (224, 168)}, "not square"),
        ({"image_resolution": (30, 30)}, "not a multiple"),
        ({"time_sampling_beta_beta": 2.0}, "beta_beta"),
        ({"n_obs_steps": 2}, "n_obs_steps 2"),
    ],
)
def test_what_is_not_available_is_refused(changes, message, config_class):
    with pytest.raises(UserError, match=message):
        dimensions_of(config_class(device="cpu", **changes))


def test_sizes_of_both_configurations():
    assert dimensions_of(PI0Config(device="cpu")) == Pi0Dimensions.full()
    assert dimensions_of(DepiPi0Config(device="cpu")) == Pi0Dimensions.tiny()
    assert dimensions_of(PI05Config(device="cpu")) == Pi05Dimensions.full()
    assert dimensions_of(DepiPi05Config(device="cpu")) == Pi05Dimensions.tiny()
    wide = dimensions_of(PI0Config(device="cpu", action_expert_variant="gemma_2b", chunk_size=60))
    assert (wide.expert_width, wide.expert_mlp_dim, wide.chunk_size) == (2048, 16_384, 60)
    with pytest.raises(ValueError, match="width must be between"):
        DepiPi0Config(device="cpu", width=0)


def test_features(make_config, data):
    config = make_config()
    set_features(config, data)
    assert list(config.image_features) == list(data.camera_slots)
    assert config.action_feature.shape == (6,)
    assert config.input_features[OBS_STATE].type is FeatureType.STATE
    data.action_dim = 33
    with pytest.raises(UserError, match="action has 33 numbers"):
        set_features(config, data)
    data.action_dim, data.camera_slots = 6, ()
    with pytest.raises(UserError, match="at least one camera"):
        set_features(config, data)


def test_batches_that_do_not_fit(policy, batch):
    with pytest.raises(UserError, match="none of the policy's cameras"):
        policy.forward(
            {key: value for key, value in batch.items() if not key.startswith("observation.images")}
        )
    with pytest.raises(UserError, match="shape"):
        policy.forward(batch | {"observation.images.0": batch["observation.images.0"].permute(0, 2, 3, 1)})
    with pytest.raises(UserError, match="33 numbers"):
        policy.forward(batch | {OBS_STATE: torch.zeros(4, 33)})
    with pytest.raises(UserError, match="inference_delay"):
        policy.predict_action_chunk(batch, inference_delay=3)


def test_full_size_has_no_dead_parameters():
    with torch.device("meta"):
        policy = Pi0Policy(PI0Config(device="cpu"))
    assert sum(parameter.numel() for parameter in policy.parameters()) == 3_128_992_528
    with torch.device("meta"):
        policy = Pi05Policy(PI05Config(device="cpu"))
    # Of pi0's: no state, a smaller time MLP, and matrices in place of 37 norms.
    norms = 37 * ((1024 + 1) * 3 * 1024 - 1024)
    removed = (32 + 1) * 1024 + 1024 * 1024
    assert sum(parameter.numel() for parameter in policy.parameters()) == 3_128_992_528 + norms - removed
