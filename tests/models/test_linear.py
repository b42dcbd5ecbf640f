"""Layers in compiled code that rounds their weights: as one product, with the results of one by one."""

import pytest
import torch
from functorch.compile import make_boxed_func
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from depi.models.float8 import use_float8
from depi.models.gemma import GemmaLayer, rotary_table
from depi.models.linear import linear_together

SIZES = (96, 32, 16)
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def make_layers(bias=False):
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(64, size, bias=bias) for size in SIZES)


def compiled_results(layers, x, autocast=True):
    """Results, gradients, and the number of products in compiled code, forward."""
    products = []

    def note(graph, inputs):
        products.extend(node for node in graph.graph.nodes if node.target in PRODUCTS)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=note, bw_compiler=lambda graph, _: make_boxed_func(graph.forward))
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
    x = torch.randn(5, 64)
    adapted = inject_adapter_in_model(LoraConfig(target_modules=["0", "2"]), make_layers())
    expected, _ = results(linear_together, adapted, x)
    found, _, products = compiled_results(adapted, x)
    assert products == len(SIZES) + 2 * 2
    torch.testing.assert_close(found, expected)
    layers = make_layers()
    use_float8(layers)
    expected, _ = results(linear_together, layers, x)
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
