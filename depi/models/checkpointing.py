"""Gradient checkpointing: run a layer again in the backward pass instead of keeping its activations."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def planned(layers: nn.ModuleList, recompute: float) -> Iterator[Callable[..., Any]]:
    """The layers in order, a share `recompute` of them, evenly spread, wrapped to keep no activations.

    0 wraps none, 1 all; nothing is wrapped while gradients are off. The layers have no dropout, so no state
    of a random generator is kept for the second run.
    """
    recompute = recompute if torch.is_grad_enabled() else 0.0
    for number, layer in enumerate(layers):
        if int((number + 1) * recompute) > int(number * recompute):
            yield partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)
        else:
            yield layer
