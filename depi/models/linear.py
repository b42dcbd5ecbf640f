"""Linear layers whose float32 weights compiled code rounds to the dtype of autocast: with less traffic.

Called one by one under autocast, each weight is rounded by itself, the gradient of the rounded weight is
rounded too, and copied into float32. Here layers that read the same vectors become one product, whose weights
Inductor rounds into one matrix, part by part, without a copy; and the product that is the weights' gradient
is stored as it is added up on a GPU, in float32, which is more precise and saves the copy.

Letters in shapes:
    I inputs   O outputs of a layer   T tokens
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# PyTorch 2.7 has no product that is stored in another dtype than its factors'.
STORES_FLOAT32 = torch.version.hip is None and "dtype" in torch.ops.aten.mm.overloads()


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    """What `layer` makes of `x` [..., I]: [..., O]."""
    return linear_together(x, (layer,))[0]


def linear_together(x: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """What each of `layers` makes of `x` [..., I]: tensors [..., O]. All have a bias, or none has."""
    if not _are_rounded(x, layers):
        return tuple(layer(x) for layer in layers)
    parameters = [layer.weight for layer in layers]
    if layers[0].bias is not None:
        parameters += [layer.bias for layer in layers]
    x = x.to(torch.get_autocast_dtype(x.device.type))
    out: Tensor = _Rounded.apply(x, len(layers), *parameters)
    return (out,) if len(layers) == 1 else out.split([layer.out_features for layer in layers], dim=-1)


def _are_rounded(x: Tensor, layers: Sequence[nn.Module]) -> bool:
    """Whether compiled code rounds the weights of `layers`; adapters and float8 layers compute by themselves.

    Weights that are rounded already, as FSDP2 gathers them, would only be copied.
    """
    if not torch.compiler.is_compiling() or not torch.is_autocast_enabled(x.device.type):
        return False
    dtype = torch.get_autocast_dtype(x.device.type)
    return all(type(layer) is nn.Linear and layer.weight.dtype != dtype for layer in layers)


class _Rounded(torch.autograd.Function):
    """Tokens [..., I] by the matrices of layers, and plus their biases, rounded to the tokens' dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[:count], parameters[count:]
        weight = torch.cat([each.to(x.dtype) for each in weights])
        bias = torch.cat([each.to(x.dtype) for each in biases]) if len(biases) > 0 else None
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.biased = [len(each) for each in weights], len(biases) > 0
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_x = gradient @ weight if ctx.needs_input_grad[0] else None
        of_parameters: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 2)
        if any(ctx.needs_input_grad[2:]):
            of_parameters = [*_precise_product(rows.t(), x.flatten(0, -2)).split(ctx.sizes)]
            if ctx.biased:
                of_parameters += rows.sum(dim=0, dtype=torch.float32).split(ctx.sizes)
        return of_x, None, *of_parameters


def _precise_product(a: Tensor, b: Tensor) -> Tensor:
    """[O, T] by [T, I] -> float32 [O, I], where it can be without rounding it in between."""
    if a.is_cuda and STORES_FLOAT32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()
