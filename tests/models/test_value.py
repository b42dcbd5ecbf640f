"""The value network: bins and back, and a distribution that padding cannot touch."""

import numpy as np
import pytest
import torch

from depi.datasets.samples.outcomes import episode_returns, normalised
from depi.models.flops import sample_flops
from depi.models.packing import pack
from depi.models.scene import Observation
from depi.models.value import ValueBins, ValueDimensions, ValueNetwork, value_loss

SMALL = ValueDimensions.tiny(
    image_size=28,
    vision_width=16,
    vision_depth=1,
    vision_mlp_dim=32,
    width=32,
    mlp_dim=48,
    depth=3,
    head_dim=16,
)
PATCHES = SMALL.patches


@pytest.fixture(scope="module")
def network() -> ValueNetwork:
    torch.manual_seed(0)
    network = ValueNetwork(SMALL)
    network.init_weights()
    return network.eval()


def observation(batch: int = 4, cameras: int = 2, words: int = 8) -> Observation:
    draw = torch.Generator().manual_seed(1)
    return Observation(
        torch.randint(0, 256, (batch, cameras, 3, 28, 28), dtype=torch.uint8, generator=draw),
        torch.ones(batch, cameras, dtype=torch.bool),
        torch.randint(4, 700, (batch, words), generator=draw),
        torch.arange(words) < torch.tensor([[3], [8], [5], [1]])[:batch],
        torch.randn(batch, 32, generator=draw),
    )


def packed(seen: Observation) -> Observation:
    return seen._replace(packing=pack(seen.image_mask, seen.token_mask, PATCHES))


@pytest.mark.parametrize("bins", [ValueBins(), ValueBins(2), ValueBins(11, -3.0, 4.0)])
def test_every_centre_is_its_own_bin_and_decodes_to_itself(bins):
    centres = bins.centres()
    assert centres[0] == bins.low
    assert centres[-1] == bins.high
    assert torch.equal(bins.index(centres), torch.arange(bins.count))
    certain = torch.where(torch.eye(bins.count, dtype=torch.bool), 0.0, -1e9)
    torch.testing.assert_close(bins.decode(certain), centres)
    torch.testing.assert_close(centres.diff(), torch.full((bins.count - 1,), bins.width))


@pytest.mark.parametrize(("c_fail", "normalizer"), [(1000.0, 1600.0), (0.0, 599.0), (7.5, 606.5)])
def test_round_trip_of_every_return_is_within_half_a_bin(c_fail, normalizer):
    bins = ValueBins()
    returns = [
        normalised(episode_returns(length, success, c_fail), normalizer)
        for length in range(1, 601)
        for success in (True, False)
    ]
    values = torch.from_numpy(np.unique(np.concatenate(returns)))
    assert len(values) >= 600
    for exact in (values, values.float()):
        nearest = torch.nn.functional.one_hot(bins.index(exact), bins.count).float()
        assert (bins.mean(nearest) - exact).abs().max() <= bins.width / 2 + 1e-6
        torch.testing.assert_close(bins.mean(bins.two_hot(exact)).double(), exact.double(), atol=1e-6, rtol=0)
    weights = bins.two_hot(values)
    assert weights.min() >= 0
    assert (weights > 0).sum(dim=-1).max() <= 2
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(values))


def test_values_outside_the_range_are_clamped_and_counted():
    bins = ValueBins(5)
    values = torch.tensor([-1.5, -1.0, -0.4, 0.0, 0.3])
    clamped, outside = bins.clamp(values)
    assert clamped.tolist() == pytest.approx([-1.0, -1.0, -0.4, 0.0, 0.0])
    assert outside == 2
    assert bins.index(values).tolist() == [0, 0, 2, 4, 4]
    assert bins.two_hot(values)[0].tolist() == [1, 0, 0, 0, 0]
    assert bins.two_hot(values)[-1].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("wrong", [{"count": 1}, {"low": 0.0}])
def test_bins_that_are_no_range_are_refused(wrong):
    with pytest.raises(ValueError, match="bins from"):
        ValueBins(**wrong)


def test_loss_is_cross_entropy_to_the_label(network):
    bins = ValueBins(3)
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    log = logits.log_softmax(dim=1)
    values = torch.tensor([-0.9, -0.3])
    torch.testing.assert_close(value_loss(logits, values, bins), -torch.stack((log[0, 0], log[1, 1])))
    mixed = -torch.stack((0.8 * log[0, 0] + 0.2 * log[0, 1], 0.6 * log[1, 1] + 0.4 * log[1, 2]))
    torch.testing.assert_close(value_loss(logits, values, bins, two_hot=True), mixed)


@pytest.mark.parametrize("how", ["padded", "packed"])
def test_what_is_absent_never_touches_the_value(network, how):
    """Alone, or beside longer prompts and with cameras that are absent and hold noise: the same logits."""
    seen = observation()
    mask = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    seen = seen._replace(image_mask=mask)
    together = network(packed(seen) if how == "packed" else seen)
    for number in range(4):
        there, words = mask[number], int(seen.token_mask[number].sum())
        alone = Observation(
            seen.images[number : number + 1, there],
            mask[number : number + 1, there],
            seen.tokens[number : number + 1, :words],
            seen.token_mask[number : number + 1, :words],
            seen.state[number : number + 1],
        )
        torch.testing.assert_close(network(alone), together[number : number + 1], atol=1e-5, rtol=0)
    noise = seen._replace(
        images=torch.where(mask[..., None, None, None], seen.images, 255 - seen.images),
        tokens=torch.where(seen.token_mask, seen.tokens, 5),
    )
    torch.testing.assert_close(network(noise), network(seen), atol=1e-6, rtol=0)


@pytest.mark.parametrize("part", ["image of either camera", "last word", "state"])
def test_what_is_there_touches_the_value(network, part):
    seen = observation()
    before = network(seen)
    changes = []
    if part == "image of either camera":
        for camera in range(2):
            images = seen.images.clone()
            images[:, camera] = 255 - images[:, camera]
            changes.append(seen._replace(images=images))
    elif part == "last word":
        tokens = seen.tokens.clone()
        last = seen.token_mask.sum(dim=1) - 1
        tokens[torch.arange(4), last] = (tokens[torch.arange(4), last] + 1) % 700
        changes.append(seen._replace(tokens=tokens))
    else:
        changes.append(seen._replace(state=seen.state + 1))
    for change in changes:
        assert ((network(change) - before).abs().amax(dim=1) > 1e-3).all()


def test_every_parameter_gets_a_gradient_and_recomputing_changes_none(network):
    seen, values = packed(observation()), torch.linspace(-1, 0, 4)
    gradients = []
    for share in (0.0, 1.0):
        network.set_recompute(share)
        network.zero_grad()
        value_loss(network(seen), values, ValueBins()).mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    network.set_recompute(0.0)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_full_size_is_the_published_one():
    with torch.device("meta"):
        network = ValueNetwork(ValueDimensions.full())
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert 410e6 < count["vision"] < 415e6  # SigLIP So400m
    assert 260e6 < count["trunk"] + count["token_embedding"] < 270e6  # Gemma 3 270M


def test_operations_are_those_that_pytorch_counts(network):
    from torch.utils.flop_counter import FlopCounterMode

    seen = observation(batch=1)
    seen = seen._replace(tokens=seen.tokens[:, :3], token_mask=seen.token_mask[:, :3])
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]),
    ):
        network(seen).sum().backward()
    assert counter.get_total_flops() == pytest.approx(sample_flops(SMALL, 2, 3).training(), rel=0.01)
