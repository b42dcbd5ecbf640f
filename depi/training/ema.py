"""The exponential moving average of the weights, in float32 on the device, without waiting for it."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from depi.policies.factory import AnyPolicy, read_policy
from depi.training.sharding import part_of, shard_like


class MovingAverage:
    """The average of a policy's trainable parameters, sharded as they are.

    It starts with the present weights. Frozen parameters are not averaged.
    """

    def __init__(self, policy: AnyPolicy, decay: float) -> None:
        self._parameters = {
            name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad
        }
        self.average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._update = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Take one optimizer step into account: average = decay x average + (1 - decay) x weights."""
        self._update(_local(self.average.values()), _local(self._parameters.values()), None)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the policy has the average for its weights; afterwards its own, to the bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        pairs = zip(_local(self.average.values()), _local(self._parameters.values()), strict=True)
        for average, weights in pairs:
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def load(self, path: Path, policy: AnyPolicy) -> None:
        """Go on from a file that `save_weights` wrote.

        Raises:
            UserError: the file is missing, damaged or of another network.
        """
        saved = read_policy(policy.config, path, device="cpu")
        values = dict(saved.named_parameters())
        for name, average in self.average.items():
            average.copy_(shard_like(values[name], average))


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The parts that this process holds, as views."""
    return [part_of(tensor).detach() for tensor in tensors]
