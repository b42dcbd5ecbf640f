"""Trading compute for memory: run a layer now, and run it again in the backward pass."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, *args: Any, recompute: bool) -> Any:
    """Call `layer(*args)`; with `recompute`, keep none of its activations when gradients are on."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False)
    return layer(*args)
