"""Ragged batches: the same numbers as padded ones, less work, few shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pi0 import KINDS, make_network

from depi.models.packing import pack, pad, to_list, to_rows
from depi.models.pi05 import Pi05
from depi.models.scene import Observation

SIZES = {
    "image_size": 28,
    "vision_width": 32,
    "vision_mlp_dim": 48,
    "vocab_size": 50,
    "width": 48,
    "mlp_dim": 64,
    "expert_width": 32,
    "expert_mlp_dim": 40,
    "depth": 3,
    "head_dim": 16,
    "chunk_size": 4,
    "state_dim": 5,
    "action_dim": 3,
}


def make_masks(cameras, words, slots=3, length=10):
    """Masks of samples that have the cameras listed and so many words."""
    image_mask = torch.tensor([[slot in present for slot in range(slots)] for present in cameras])
    return image_mask, torch.arange(length) < torch.tensor(words)[:, None]


RAGGED = make_masks([{0, 1, 2}, {1}, set(), {0, 2}, {2}], [10, 1, 3, 7, 2])


def make_inputs(image_mask, token_mask, packing=None):
    batch = len(image_mask)
    observation = Observation(
        images=torch.randint(0, 256, (*image_mask.shape, 3, 28, 28), dtype=torch.uint8),
        image_mask=image_mask,
        tokens=torch.randint(0, 50, token_mask.shape),
        token_mask=token_mask,
        state=torch.randn(batch, 5),
        packing=packing,
    )
    return observation, torch.randn(batch, 4, 3), torch.randn(batch, 4, 3), torch.rand(batch)


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    return make_network(request.param, **SIZES)


def gradients(model, *inputs):
    model.zero_grad()
    errors = model(*inputs)
    errors.mean().backward()
    return errors, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("recompute", [0.0, 0.5, 1.0])
def test_packed_equals_padded(model, recompute):
    observation, *rest = make_inputs(*RAGGED)
    padded, padded_gradients = gradients(model, observation, *rest)
    model.set_recompute(recompute)
    packed, packed_gradients = gradients(
        model, observation._replace(packing=pack(*RAGGED, model.dimensions.patches)), *rest
    )
    torch.testing.assert_close(packed, padded)
    for name, gradient in padded_gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=5e-6, msg=name)


def test_only_what_is_there_is_computed(model):
    seen = {}
    model.vision.register_forward_pre_hook(lambda _, args: seen.update(images=len(args[0])))
    model.prefix.register_forward_pre_hook(lambda _, args: seen.update(tokens=len(args[0])))
    observation, *rest = make_inputs(*RAGGED)
    model(observation, *rest)
    assert seen == {"images": 15, "tokens": 15 * 4 + 50}
    model(observation._replace(packing=pack(*RAGGED, model.dimensions.patches)), *rest)
    assert seen == {"images": 7, "tokens": 7 * 4 + 40}  # 23 words, rounded up to 8 a sample


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 2)), st.integers(1, 10)), min_size=1, max_size=20))
def test_rows_and_list_are_each_others_inverse(samples):
    cameras, words = zip(*samples, strict=True)
    for make in (pack, pad):
        image_mask, token_mask = make_masks(cameras, words)
        packing = make(image_mask, token_mask, 4)
        rows = packing.rows
        tokens = torch.arange(len(rows.place)).float() + 1
        back = to_list(to_rows(tokens, rows), rows)
        assert torch.equal(back[rows.used], tokens[rows.used])
        # Every row holds the patches of its own images in order, then its own words.
        slot_of = torch.cat((packing.image.repeat_interleave(4), packing.word))
        is_word = torch.arange(len(slot_of)) >= len(packing.image) * 4
        for sample, (source, filled) in enumerate(zip(rows.source, rows.filled, strict=True)):
            there = source[filled]
            patches, read = there[~is_word[there]], there[is_word[there]]
            assert [*there] == [*patches, *read]
            assert [divmod(int(slot), 3) for slot in slot_of[patches][::4]] == [
                (sample, slot) for slot in sorted(cameras[sample])
            ]
            assert (slot_of[read] - sample * 10).tolist() == list(range(words[sample]))


@pytest.mark.parametrize("move", [to_rows, to_list])
def test_gradient_of_moving(move):
    """Against autograd of plain indexing, with what stands nowhere left out."""
    rows = pack(*RAGGED, 4).rows
    keep, index = (rows.used, rows.source) if move is to_rows else (rows.filled, rows.place)
    tokens = torch.randn(*keep.shape, 2, dtype=torch.float64, requires_grad=True)
    read = rows.filled if move is to_rows else rows.used
    weight = torch.randn(*read.shape, 2, dtype=torch.float64) * read[..., None]
    (expected,) = torch.autograd.grad((tokens.reshape(-1, 2)[index] * weight).sum(), tokens)
    (found,) = torch.autograd.grad((move(tokens, rows) * weight).sum(), tokens)
    torch.testing.assert_close(found, expected)


def test_few_shapes_in_a_community_mix():
    """Lists are at most 6% longer than what is in them, and few lengths occur."""
    generator = torch.Generator().manual_seed(0)
    lengths, waste = set(), []
    for _ in range(200):
        images = torch.multinomial(torch.tensor([0.40, 0.45, 0.15]), 32, True, generator=generator) + 1
        image_mask = torch.arange(3) < images[:, None]
        token_mask = torch.arange(48) < torch.randint(6, 24, (32, 1), generator=generator)
        packing = pack(image_mask, token_mask, 256)
        lengths.add(len(packing.rows.place))
        waste.append(len(packing.rows.place) / packing.rows.used.sum() - 1)
    assert sum(waste) / len(waste) < 0.06
    assert len(lengths) < 20


def test_nothing_recompiles_after_the_first_steps(model):
    """Lists of any length, with and without recomputed layers, share the code of the first few."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model.compile_layers(backend=counter)
    generator = torch.Generator().manual_seed(0)
    compiled = []
    for _ in range(12):
        image_mask = torch.rand(6, 3, generator=generator) < 0.6
        token_mask = torch.arange(30) < torch.randint(1, 30, (6, 1), generator=generator)
        observation, *rest = make_inputs(
            image_mask, token_mask, pack(image_mask, token_mask, model.dimensions.patches)
        )
        model(observation, *rest).mean().backward()
        compiled.append(counter.frame_count)
    # SigLIP's layer, the prefix's, its last one and the suffix's; and what modulates pi0.5's.
    assert set(compiled) == {5 if type(model) is Pi05 else 4}
