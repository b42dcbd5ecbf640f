"""Trading compute for memory: run a layer now, and run it again in the backward pass."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def planned(layers: nn.ModuleList, recompute: float) -> Iterator[Callable[..., Any]]:
    """The layers in order, a share `recompute` of them, evenly spread, wrapped to keep no activations.

    0 keeps all, 1 none; nothing is wrapped while gradients are off. The layers have no dropout, so no state
    of a random generator is kept for the second run.
    """
    recompute = recompute if torch.is_grad_enabled() else 0.0
    for number, layer in enumerate(layers):
        if int((number + 1) * recompute) > int(number * recompute):
            yield partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)
        else:
            yield layer
