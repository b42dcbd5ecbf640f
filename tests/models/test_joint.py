"""Queries, keys and values as one product, in compiled code that rounds their weights; with equal results."""

import pytest
import torch
import torch.nn.functional as F
from lerobot.configs.default import PeftConfig
from small_pi0 import make_small
from torch import nn

from depi.models.float8 import use_float8
from depi.models.gemma import GemmaLayer, rotary_table
from depi.models.joint import linear_together
from depi.policies.adapters import add_adapters

SIZES = (96, 32, 16)


def make_layers(bias=False):
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(64, size, bias=bias) for size in SIZES)


def compiled_results(layers, x, autocast=True):
    """Results, gradients, and the number of products in compiled code."""
    products = []

    def backend(graph, inputs):
        products.extend(node for node in graph.graph.nodes if node.target is F.linear)
        return graph.forward

    torch._dynamo.reset()
    return *results(torch.compile(linear_together, backend=backend), layers, x, autocast), len(products)


def results(together, layers, x, autocast=True):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = together(x, list(layers))
    sum((out.float() * out.float()).sum() for out in found).backward()
    gradients = [x.grad, *(parameter.grad for parameter in layers.parameters() if parameter.requires_grad)]
    layers.zero_grad(set_to_none=True)
    return found, gradients


@pytest.mark.parametrize("bias", [False, True])
def test_compiled_it_is_one_product_with_the_same_results(bias):
    layers, x = make_layers(bias), torch.randn(2, 5, 64)
    expected, their_gradients = results(linear_together, layers, x)
    found, gradients, products = compiled_results(layers, x)
    assert products == 1
    torch.testing.assert_close(found, expected)
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * len(gradients)
    # The gradient of `x` was rounded for each layer.
    torch.testing.assert_close(gradients, their_gradients, rtol=2e-2, atol=2e-2)


def test_nothing_is_copied_that_is_not_rounded():
    x = torch.randn(5, 64)
    assert compiled_results(make_layers(), x, autocast=False)[2] == 3
    assert compiled_results(make_layers().bfloat16(), x)[2] == 3, "as FSDP2 gathers them"


def test_other_layers_compute_by_themselves():
    policy = make_small()
    add_adapters(policy.model, PeftConfig())
    layer = policy.model.suffix.layers[0]
    adapted = nn.ModuleList([layer.q_proj, layer.k_proj, layer.v_proj])
    x = torch.randn(2, 5, layer.q_proj.in_features)
    expected, _ = results(linear_together, adapted, x)
    found, _, products = compiled_results(adapted, x)
    assert products > len(adapted)
    torch.testing.assert_close(found, expected)
    layers = make_layers()
    use_float8(layers)
    expected, _ = results(linear_together, layers, x := torch.randn(5, 64))
    found, _, products = compiled_results(layers, x)
    assert products == 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_values_that_are_kept_do_not_keep_queries():
    torch.manual_seed(0)
    layer = GemmaLayer(64, 96, num_heads=4, num_kv_heads=1, head_dim=16)
    x, bias = torch.randn(2, 6, 64), torch.zeros(2, 1, 24, 6)
    compiled = torch.compile(layer, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        _, (_, v) = compiled(x, rotary_table(torch.arange(6)[None], 16), None, bias.bfloat16())
    assert v.shape == (2, 6, 1, 16)
    assert v.untyped_storage().nbytes() == 2 * v.numel()
