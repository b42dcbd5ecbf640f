"""The counted operations are those that PyTorch's own counter sees when the networks run."""

import importlib
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate.utils import send_to_device
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from depi.models.flops import sample_flops, sampling_flops, sum_of
from depi.models.pi0 import Pi0Dimensions
from depi.models.pi05 import Pi05Dimensions
from depi.policies.batches import pack_batch

SMALL, SMALL05 = (
    kind.tiny(image_size=28, depth=3, num_heads=8, chunk_size=7) for kind in (Pi0Dimensions, Pi05Dimensions)
)
both_sizes = pytest.mark.parametrize("d", [SMALL, SMALL05], ids=["pi0", "pi05"])


@pytest.fixture
def helper(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("lerobot_pi0")


@pytest.fixture
def lerobot_flops(helper):
    return importlib.import_module("lerobot_flops").lerobot_flops


@pytest.fixture
def no_autocast(monkeypatch):
    """The meta device has not got it."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def count(run) -> int:
    # Fused attention on a processor is unknown to the counter; written out, it is matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def words(helper, d):
    """To how many a prompt is padded."""
    return helper.stock_of(d).padded_tokens


def batch_of(helper, d, size, device):
    generator = torch.Generator().manual_seed(0)
    whole = torch.full((size,), 3), torch.full((size,), words(helper, d))
    batch = helper.make_batch(d, *whole, device, generator)
    return {**batch, "noise": torch.zeros(size, d.chunk_size, d.action_dim, device=device)} | {
        "time": torch.full((size,), 0.5, device=device)
    }


def their_loss(policy, batch):
    images, masks = policy._preprocess_images(batch)
    return policy.model.forward(
        images,
        masks,
        batch[OBS_LANGUAGE_TOKENS],
        batch[OBS_LANGUAGE_ATTENTION_MASK],
        *([policy.prepare_state(batch)] if policy.name == "pi0" else []),
        policy.prepare_action(batch),
        batch["noise"],
        batch["time"],
    )[..., :6].mean()


@both_sizes
@pytest.mark.parametrize("size", [1, 3])
def test_depi_training_step(helper, size, d):
    policy = helper.make_depi(d, "cpu")
    batch = batch_of(helper, d, size, "cpu")
    expected = sample_flops(d, 3, words(helper, d))
    assert count(lambda: policy.forward(batch)) == size * expected.forward
    assert count(lambda: policy.forward(batch)[0].backward()) == size * expected.training()


def test_depi_recomputes_layers_only(helper):
    policy = helper.make_depi(SMALL, "cpu", gradient_checkpointing=True)
    batch = batch_of(helper, SMALL, 2, "cpu")
    expected = 2 * sample_flops(SMALL, 3, 48).training(recompute=1.0)
    counted = count(lambda: policy.forward(batch)[0].backward())
    # A layer's last product is not needed again, and PyTorch stops before it.
    assert 0.9 * expected < counted <= expected


@both_sizes
def test_lerobot_training_step(helper, lerobot_flops, d):
    policy = helper.make_lerobot(d, "cpu")
    batch = helper.for_lerobot(batch_of(helper, d, 2, "cpu"))
    expected = lerobot_flops(d, 3, words(helper, d))
    assert count(lambda: their_loss(policy, batch)) == 2 * expected.forward
    assert count(lambda: their_loss(policy, batch).backward()) == 2 * expected.training()


@pytest.mark.parametrize("d", [Pi0Dimensions.full(), Pi05Dimensions.full()], ids=["pi0", "pi05"])
def test_full_size(helper, lerobot_flops, no_autocast, d):
    batch = batch_of(helper, d, 1, "meta")
    ours = helper.make_depi(d, "meta")
    assert count(lambda: ours.forward(batch)[0].backward()) == sample_flops(d, 3, words(helper, d)).training()
    theirs = helper.make_lerobot(d, "meta")
    counted = count(lambda: their_loss(theirs, helper.for_lerobot(batch)).backward())
    assert counted == lerobot_flops(d, 3, words(helper, d)).training()


def test_a_mixed_batch_costs_hardly_more_than_its_samples(helper, no_autocast):
    d, cameras = Pi0Dimensions.full(), torch.tensor([1, 2, 2, 1, 3, 2, 1, 2])
    tokens = torch.tensor([6, 24, 9, 13, 20, 11, 7, 17])
    policy = helper.make_depi(d, "meta")
    batch = pack_batch(policy.config, helper.make_batch(d, cameras, tokens, "cpu", torch.Generator()))
    batch |= {"noise": torch.zeros(8, 50, 32), "time": torch.zeros(8)}
    batch = send_to_device(batch, "meta")
    lean = sum(
        sample_flops(d, *sample).training() for sample in zip(cameras.tolist(), tokens.tolist(), strict=True)
    )
    assert lean < count(lambda: policy.forward(batch)[0].backward()) < 1.06 * lean


def test_published_size_costs_what_it_is_said_to_cost():
    flops = sample_flops(Pi0Dimensions.full(), 3, 48)
    assert flops.forward == pytest.approx(3.9e12, rel=0.03)
    assert flops.training() == pytest.approx(11.7e12, rel=0.03)


@both_sizes
def test_sampling(helper, d):
    policy = helper.make_depi(d, "cpu")
    batch = batch_of(helper, d, 2, "cpu")
    counted = count(lambda: policy.predict_action_chunk(batch))
    if d is SMALL:
        assert counted == 2 * sampling_flops(d, 3, words(helper, d))
    else:  # the modulations of an Euler step are computed for all samples at once
        modulations = sum_of(size for size in d.suffix.products if size[0] == 1).forward
        assert counted == 2 * sampling_flops(d, 3, words(helper, d)) - 10 * modulations


def test_absent_cameras_and_padding_cost_nothing():
    whole, part = (sample_flops(SMALL, cameras, tokens) for cameras, tokens in ((3, 48), (1, 8)))
    assert part.vision.forward * 3 == whole.vision.forward
    assert part.prefix.forward * 3 < whole.prefix.forward
    with pytest.raises(ValueError, match="between 0 and 1"):
        whole.training(recompute=2)
