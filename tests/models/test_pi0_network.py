"""The network by itself: masks, positions, time, sampling, initialisation, compilation."""

import itertools
import math

import pytest
import torch
from small_pi0 import KINDS, make_network
from torch.distributions import Beta

from depi.models.attention import attention, attention_bias
from depi.models.flow import sample_time, suffix_mask, time_embedding
from depi.models.gemma import (
    AdaptiveRMSNorm,
    GemmaLayer,
    RMSNorm,
    rotary_table,
    rotate,
)
from depi.models.packing import pad
from depi.models.pi0 import Pi0Dimensions
from depi.models.sampling import sample_actions
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
    "depth": 2,
    "head_dim": 16,
    "chunk_size": 4,
    "state_dim": 5,
    "action_dim": 3,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=KINDS)
def model(request):
    return make_network(request.param, **SIZES)


@pytest.fixture
def inputs():
    """Two samples, two cameras, six prompt tokens."""
    return {
        "images": torch.randint(0, 256, (2, 2, 3, 28, 28), dtype=torch.uint8),
        "image_mask": torch.tensor([[True, True], [False, True]]),
        "tokens": torch.randint(0, 50, (2, 6)),
        "token_mask": torch.tensor([[True] * 6, [True] * 2 + [False] * 4]),
        "state": torch.randn(2, 5),
        "actions": torch.randn(2, 4, 3),
        "noise": torch.randn(2, 4, 3),
        "time": torch.rand(2),
    }


def observe(inputs):
    return Observation(*(inputs[key] for key in ("images", "image_mask", "tokens", "token_mask", "state")))


def errors(model, inputs):
    return model(observe(inputs), inputs["actions"], inputs["noise"], inputs["time"])


def velocity(model, inputs, x_t, time):
    return model.velocity(model.encode_prefix(observe(inputs)), inputs["state"], x_t, time)


def test_time_runs_from_actions_to_noise(model, inputs):
    """At t = 1 the actions do not enter but in the target, at t = 0 the noise does not."""
    ones, zeros = torch.ones(2), torch.zeros(2)
    target = inputs["noise"] - inputs["actions"]
    at_noise = (velocity(model, inputs, inputs["noise"], ones) - target).square()
    at_actions = (velocity(model, inputs, inputs["actions"], zeros) - target).square()
    torch.testing.assert_close(errors(model, {**inputs, "time": ones}), at_noise)
    torch.testing.assert_close(errors(model, {**inputs, "time": zeros}), at_actions)


def test_sampling_is_euler_with_the_prefix_read_once(model, inputs):
    x_t = inputs["noise"]
    with torch.no_grad():
        for step in range(4):
            x_t = x_t - 0.25 * velocity(model, inputs, x_t, torch.full((2,), 1 - step / 4))
    calls = []
    model.vision.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(sample_actions(model, observe(inputs), inputs["noise"], num_steps=4), x_t)
    assert len(calls) == 1


def test_padding_changes_nothing(model, inputs):
    """A sample alone, without its absent camera and its padded tokens, has the same loss."""
    whole = errors(model, inputs)
    alone = {key: value[1:] for key, value in inputs.items()}
    alone |= {
        "images": alone["images"][:, 1:],
        "image_mask": alone["image_mask"][:, 1:],
        "tokens": alone["tokens"][:, :2],
        "token_mask": alone["token_mask"][:, :2],
    }
    torch.testing.assert_close(errors(model, alone), whole[1:])


def test_samples_are_independent(model, inputs):
    both = errors(model, inputs)
    for sample in range(2):
        alone = errors(model, {key: value[sample : sample + 1] for key, value in inputs.items()})
        torch.testing.assert_close(alone, both[sample : sample + 1])


def test_suffix_mask_by_hand():
    expected = [[1, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert suffix_mask(1, 2, torch.device("cpu")).int().tolist() == expected
    assert suffix_mask(0, 2, torch.device("cpu")).all()


def test_attention_against_a_slow_computation():
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 5, 2, 8), torch.randn(2, 5, 2, 8)
    visible = torch.rand(2, 3, 5) < 0.7
    visible[..., 0] = True
    expected = torch.zeros(2, 3, 32)
    for sample, head, row in itertools.product(range(2), range(4), range(3)):
        scores = k[sample, :, head // 2] @ q[sample, row, head] / math.sqrt(8)
        weights = torch.where(visible[sample, row], scores, -torch.inf).softmax(dim=0)
        expected[sample, row, head * 8 : head * 8 + 8] = weights @ v[sample, :, head // 2]
    torch.testing.assert_close(attention(q, k, v, attention_bias(visible, 2, torch.float32)), expected)
    # One row of visibility for all queries.
    same = visible[:, :1].expand(-1, 3, -1)
    bias, one = attention_bias(same, 2, torch.float32), attention_bias(visible[:, :1], 2, torch.float32)
    torch.testing.assert_close(attention(q, k, v, one), attention(q, k, v, bias))


def test_rotation_depends_on_distance_alone():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(at_q, at_k):
        rotated = (rotate(x, rotary_table(torch.tensor([[at]]), 16)) for x, at in ((q, at_q), (k, at_k)))
        return torch.mul(*rotated).sum()

    torch.testing.assert_close(score(7, 3), score(104, 100))
    torch.testing.assert_close(score(0, 0), (q * k).sum())
    assert not torch.isclose(score(7, 3), score(7, 4))


def test_earlier_keys_stand_in_front():
    """Running tokens in two halves, with the first half's keys and values, equals running them together."""
    layer = GemmaLayer(width=12, mlp_dim=20, num_heads=2, num_kv_heads=1, head_dim=8)
    x = torch.randn(1, 5, 12)
    rotation = rotary_table(torch.arange(5)[None], 8)
    visible = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    whole, _ = layer(x, rotation, None, attention_bias(visible, 2, x.dtype))
    first, second = tuple(part[:, :2] for part in rotation), tuple(part[:, 2:] for part in rotation)
    _, earlier = layer(x[:, :2], first, None, attention_bias(visible[:, :2, :2], 2, x.dtype))
    later, _ = layer(x[:, 2:], second, None, attention_bias(visible[:, 2:], 2, x.dtype), earlier)
    torch.testing.assert_close(later, whole[:, 2:])


def test_rms_norm_is_exact_in_bfloat16():
    norm = RMSNorm(64)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 64).bfloat16() * 100
    expected = x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + norm.weight)
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), expected.bfloat16())


def test_adaptive_norm_by_hand():
    norm = AdaptiveRMSNorm()
    x, modulation = torch.randn(2, 3, 8), torch.randn(2, 1, 24)
    normed, gate = norm(x, modulation)
    scale, shift, expected_gate = modulation[..., :8], modulation[..., 8:16], modulation[..., 16:]
    unit = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(normed, unit * (1 + scale) + shift)
    assert torch.equal(gate, expected_gate)
    rounded, gate = norm(x.bfloat16(), modulation)
    assert rounded.dtype == gate.dtype == torch.bfloat16


def test_a_new_pi05_begins_with_closed_gates(inputs):
    """As openpi's: what the prefix says comes in as the modulations learn."""
    model = make_network("depi_pi05", **SIZES)
    model.init_weights()
    other = {**inputs, "tokens": (inputs["tokens"] + 1) % 50}
    assert torch.equal(errors(model, inputs), errors(model, other))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        errors(model, inputs).mean().backward()
        optimizer.step()
    assert not torch.allclose(errors(model, inputs), errors(model, other))


def test_time_embedding_by_hand():
    embedding = time_embedding(torch.tensor([0.25]), 4, 0.5, 2.0)
    angles = [2 * math.pi * 0.25 / 0.5, 2 * math.pi * 0.25 / 2.0]
    expected = [math.sin(angles[0]), math.sin(angles[1]), math.cos(angles[0]), math.cos(angles[1])]
    torch.testing.assert_close(embedding, torch.tensor([expected]))


def test_time_follows_the_beta_distribution():
    time = sample_time(100_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert 0.001 < time.min() < time.max() <= 1.0
    drawn = Beta(1.5, 1.0).sample((100_000,)) * 0.999 + 0.001
    levels = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(time.quantile(levels), drawn.quantile(levels), rtol=0, atol=0.01)


def test_every_parameter_gets_a_gradient(model, inputs):
    errors(model, inputs).mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_initial_activations_keep_their_scale(model, inputs):
    """Random weights leave signals near unit size, in the prefix and at the output."""
    packing = pad(inputs["image_mask"], inputs["token_mask"], model.dimensions.patches)
    embeddings = model.embed_prefix(inputs["images"], inputs["tokens"], packing)
    assert 0.5 < embeddings[-12:].std() < 2
    assert 0.3 < embeddings[:-12].std() < 3
    assert 0.2 < velocity(model, inputs, inputs["noise"], inputs["time"]).std() < 5


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # traces forward and backward as the default does, without generating code
        pytest.param("inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_forward_is_the_same(model, inputs, backend):
    expected = errors(model, inputs)
    expected.mean().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.compile_layers(backend=backend)
    compiled = errors(model, inputs)
    compiled.mean().backward()
    torch.testing.assert_close(compiled, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "sizes",
    [{"image_size": 30}, {"vision_heads": 3}, {"num_kv_heads": 3}, {"head_dim": 15}, {"expert_width": 33}],
)
def test_sizes_that_do_not_fit_together(sizes):
    with pytest.raises(ValueError, match=str(next(iter(sizes.values())))):
        Pi0Dimensions.tiny(**sizes)
