"""Linear layers that read the same vectors, as one product where that costs nothing.

Letters in shapes:
    I inputs   O outputs of a layer
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear_together(x: Tensor, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """What each of `layers` makes of `x` [..., I]: tensors [..., O].

    In compiled code the weights that autocast would round one by one are rounded into one matrix, by kernels
    that write a part of it each, and multiplied at once. Parameters and their gradients stay apart.
    """
    if not _are_rounded(x, layers):
        return tuple(layer(x) for layer in layers)
    dtype = torch.get_autocast_dtype(x.device.type)
    weight = torch.cat([layer.weight.to(dtype) for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias.to(dtype) for layer in layers])
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)


def _are_rounded(x: Tensor, layers: Sequence[nn.Linear]) -> bool:
    """Whether compiled code rounds the weights of `layers`; adapters and float8 layers compute by themselves.

    Weights that are rounded already, as FSDP2 gathers them, would only be copied.
    """
    if not torch.compiler.is_compiling() or not torch.is_autocast_enabled(x.device.type):
        return False
    dtype = torch.get_autocast_dtype(x.device.type)
    return all(type(layer) is nn.Linear and layer.weight.dtype != dtype for layer in layers)
