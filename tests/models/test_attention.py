"""Which kernel computes which attention call, and that lists give what rows give."""

from itertools import pairwise

import pytest
import torch
from small_pi0 import KINDS, make_network, make_small
from torch.nn.functional import scaled_dot_product_attention

from depi.errors import UserError
from depi.models import attention, gemma, scene
from depi.models.attention import BACKENDS, kernel_for, read_backends, takes_lists
from depi.models.packing import by_sample, pack, to_list, to_rows
from depi.models.scene import Observation
from depi.models.value import ValueDimensions, ValueNetwork
from depi.policies.configuration_value import ValueConfig

SIZES = {"depth": 3, "head_dim": 16, "width": 48, "mlp_dim": 64, "image_size": 28, "vision_width": 32}


def attend_to_each_sequence(q, k, v, starts, longest):
    """What `list_attention` computes, one sequence after the other; tokens in none are not written."""
    out = torch.full_like(q, torch.nan)
    ends = starts.tolist()
    assert max(end - start for start, end in pairwise(ends)) <= longest
    for start, end in pairwise(ends):
        part = [x[start:end].transpose(0, 1) for x in (q, k, v)]
        out[start:end] = scaled_dot_product_attention(*part, enable_gqa=True).transpose(0, 1)
    return out.flatten(1)


@pytest.fixture
def lists(monkeypatch):
    """Let attention take lists on the CPU, and in float32."""
    taken = []

    def take(*args, **kwargs):
        taken.append(args)
        return attend_to_each_sequence(*args, **kwargs)

    monkeypatch.setattr(gemma, "list_attention", take)
    monkeypatch.setattr(scene, "takes_lists", lambda x, head_dim, backends: "varlen" in backends)
    return taken


def masks(cameras, words, slots=3, length=10):
    image_mask = torch.tensor([[slot in present for slot in range(slots)] for present in cameras])
    return image_mask, torch.arange(length) < torch.tensor(words)[:, None]


RAGGED = masks([{0, 1, 2}, {1}, set(), {0, 2}, {2}], [10, 1, 3, 7, 2])
# Lists that are rounded up by more tokens than any sample has, and by none.
WITHOUT_IMAGES = masks([set(), set()], [3, 1])
EVEN = masks([{0, 1}, {1, 2}], [8, 8])


def network(kind):
    torch.manual_seed(0)
    if kind == "value":
        model = ValueNetwork(ValueDimensions.tiny(**SIZES, state_dim=5))
        model.init_weights()
        return model
    return make_network(kind, state_dim=5, expert_width=32, expert_mlp_dim=40, chunk_size=4, **SIZES)


def results(model, image_mask, token_mask):
    """Errors or logits, and the gradients of all parameters."""
    torch.manual_seed(1)
    d, batch = model.dimensions, len(image_mask)
    images = torch.randint(0, 256, (*image_mask.shape, 3, 28, 28), dtype=torch.uint8)
    tokens = torch.randint(0, 50, token_mask.shape)
    packing = pack(image_mask, token_mask, d.patches)
    seen = [Observation(images, image_mask, tokens, token_mask, torch.randn(batch, 5), packing)]
    if not isinstance(model, ValueNetwork):
        seen += [torch.randn(batch, 4, d.action_dim), torch.randn(batch, 4, d.action_dim), torch.rand(batch)]
    model.zero_grad()
    out = model(*seen)
    out.square().mean().backward()
    return out, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", [*KINDS, "value"])
@pytest.mark.parametrize("batch", [RAGGED, WITHOUT_IMAGES, EVEN], ids=["ragged", "no images", "even"])
def test_lists_give_what_rows_give(lists, kind, batch):
    """Also the gradients, with what rounds lists up written by no other sequence."""
    model = network(kind)
    out, gradients = results(model, *batch)
    assert len(lists) == model.dimensions.depth - 1
    model.set_attention(read_backends("efficient"))
    expected, expected_gradients = results(model, *batch)
    assert len(lists) == model.dimensions.depth - 1
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-6)
    # Those of SigLIP's key biases are zero but for rounding.
    least = 1e-2 * max(gradient.norm() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() < 1e-4 * gradient.norm().clamp(min=least), name


@pytest.mark.parametrize("batch", [RAGGED, WITHOUT_IMAGES, EVEN], ids=["ragged", "no images", "even"])
def test_sequences_are_the_rows(batch):
    packing = pack(*batch, 4)
    rows, sequences = packing.rows, packing.sequences
    size = len(batch[0])
    starts = sequences.starts.tolist()
    assert starts[-1] == len(rows.place)
    assert len(starts) == 2 * size + 1
    lengths = [end - start for start, end in pairwise(starts)]
    assert lengths[:size] == rows.filled.sum(dim=1).tolist()
    assert max(lengths) <= rows.source.shape[1]
    tokens = torch.arange(len(rows.place), dtype=torch.float32)
    ordered, moved = by_sample(tokens, packing)
    for sample, (source, filled) in enumerate(zip(rows.source, rows.filled, strict=True)):
        assert ordered[starts[sample] : starts[sample + 1]].tolist() == source[filled].tolist()
    assert torch.equal(to_rows(ordered, moved)[rows.filled], to_rows(tokens, rows)[rows.filled])
    back = to_list(to_rows(ordered, moved), moved)
    assert torch.equal(back[moved.used], ordered[moved.used])


class OnCuda:
    """What the choice of a kernel sees of a tensor on a GPU."""

    is_cuda = True

    def __init__(self, head_dim, dtype):
        self.shape, self.dtype, self.device = (1, 1, 1, head_dim), dtype, torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "biased", "allowed", "ampere", "kernel"),
    [
        (72, torch.bfloat16, False, BACKENDS, True, "flash"),
        (256, torch.bfloat16, True, BACKENDS, True, "efficient"),
        (256, torch.bfloat16, True, ("varlen", "flash", "math"), True, "math"),
        (72, torch.bfloat16, False, ("efficient", "math"), True, "efficient"),
        (72, torch.float32, False, BACKENDS, True, "efficient"),
        (72, torch.float16, False, BACKENDS, False, "efficient"),
        (72, torch.bfloat16, False, BACKENDS, False, "math"),
        (36, torch.bfloat16, False, BACKENDS, True, "math"),
        (36, torch.float32, True, BACKENDS, True, "efficient"),
        (216, torch.bfloat16, False, BACKENDS, True, "efficient"),
        (64, torch.float64, False, BACKENDS, True, "math"),
    ],
)
def test_a_call_takes_the_first_kernel_that_fits(
    monkeypatch, head_dim, dtype, biased, allowed, ampere, kernel
):
    monkeypatch.setattr(attention, "_ampere", lambda index: ampere)
    assert kernel_for(OnCuda(head_dim, dtype), biased, allowed) == kernel


@pytest.mark.parametrize("biased", [False, True])
def test_math_under_autocast(monkeypatch, biased):
    """Forward and backward, as where nothing else fits a GPU."""
    q, k, v = (torch.randn(2, 1, length, 16).bfloat16().requires_grad_() for length in (12, 9, 9))
    visible = torch.rand(2, 12, 9) < 0.7
    visible[..., 0] = True
    bias = attention.attention_bias(visible, 1, torch.bfloat16) if biased else None
    expected = attention.dot_product_attention(q, k, v, bias)
    gradients = torch.autograd.grad(expected.square().sum(), (q, k, v))
    monkeypatch.setattr(attention, "_pinned", lambda x: True)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention.dot_product_attention(q, k, v, bias, ("math",))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    for one, other in zip(torch.autograd.grad(found.square().sum(), (q, k, v)), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


def test_lists_are_for_half_precision_on_cuda(monkeypatch):
    monkeypatch.setattr(attention, "_ampere", lambda index: True)
    assert takes_lists(OnCuda(256, torch.bfloat16), 256, BACKENDS)
    assert not takes_lists(OnCuda(256, torch.bfloat16), 256, ("flash", "efficient", "math"))
    assert not takes_lists(OnCuda(256, torch.float32), 256, BACKENDS)
    assert not takes_lists(torch.zeros(2, dtype=torch.bfloat16), 256, BACKENDS)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not takes_lists(OnCuda(256, torch.bfloat16), 256, BACKENDS)


def test_names_of_kernels():
    assert read_backends("math") == ("math",)
    assert read_backends("efficient, flash") == ("flash", "efficient", "math")
    with pytest.raises(ValueError, match="no attention kernel 'cudnn'"):
        read_backends("cudnn")


def test_a_policy_allows_what_its_configuration_says():
    policy = make_small(attention_backends="efficient")
    allowed = {part.backends for part in policy.model.modules() if hasattr(part, "backends")}
    assert allowed == {("efficient", "math")}
    policy.for_inference()
    assert policy.model.prefix.layers[0].backends == ("efficient", "math")
    with pytest.raises(UserError, match="attention_backends: there is no attention kernel 'cudnn'"):
        make_small(attention_backends="cudnn")
    with pytest.raises(UserError, match="no attention kernel 'fast'"):
        ValueConfig(attention_backends="fast")
