"""Sees every operation of a step: where its tensors are, in what it computes, which attention it calls."""

from collections import Counter
from typing import Any

import torch
from bounds import COUNTED
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Above it a product counts as large: 1% of a millisecond of an H200 in float32.
LARGE = 1e10
COPIES = ("aten::_to_copy", "aten::copy_")


class Watch(TorchDispatchMode):
    """Collects what the operations in its body do; the backward pass must run in the same thread.

    Attributes:
        mixed: operations on tensors of several devices, but for copies between them and scalars.
        from_host: copies of tensors from the processor's memory.
        wide: large products whose factors are not bfloat16, with their number of operations.
        attention: calls of each attention operator.
        operations: floating-point operations of products and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []
        self.from_host = 0
        self.wide: Counter[str] = Counter()
        self.attention: Counter[str] = Counter()
        self.operations = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = function._schema.name
        self._note_devices(name, tree_leaves((args, kwargs, out)))
        if "attention" in name or "scaled_dot_product" in name:
            self.attention[name.removeprefix("aten::_")] += 1
        if function._overloadpacket in COUNTED:
            count = COUNTED[function._overloadpacket](*args, **kwargs, out_val=out)
            self.operations += count
            factors = [t for t in tree_leaves(args) if isinstance(t, Tensor) and t.ndim >= 2][:2]
            if count > LARGE and any(factor.dtype != torch.bfloat16 for factor in factors):
                self.wide[name] += count
        return out

    def _note_devices(self, name: str, values: list[Any]) -> None:
        tensors = [value for value in values if isinstance(value, Tensor)]
        devices = {t.device.type for t in tensors if t.ndim or t.device.type != "cpu"}
        if len(devices) < 2:
            return
        if name in COPIES:
            self.from_host += 1
        else:
            self.mixed.append(f"{name} {[(t.device.type, tuple(t.shape)) for t in tensors]}")

    def findings(self) -> dict[str, Any]:
        """All of it."""
        names = ("mixed", "from_host", "wide", "attention", "operations")
        return {name: getattr(self, name) for name in names}
