"""The least time that a step's operations can take on a GPU: an account of work and traffic, no measurement.

Each operation takes at least the time of its floating-point operations at the card's peak, and at least that
of the bytes that it reads and writes at the memory's bandwidth (Williams, Waterman and Patterson, Roofline,
2009). A step takes at least the sum, as kernels run one after another: `all` of everything that was called,
`products` of matrix products, attention and the optimiser alone, which no fusion of the others saves. In
compiled code kernels that Inductor has made are called in place of most operations, and count as they are.
"""

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from depi.training.utilisation import Card

# They have no kernel, or one that touches nothing.
FREE = ("empty", "new_empty", "_unsafe_view", "lift_fresh", "_local_scalar_dense")
# Of a large tensor they touch what they copy.
PARTIAL = ("embedding", "index", "index_select", "gather", "index_put", "index_put_", "index_add_", "scatter")


def forward_of_list(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *rest: Any, **_: Any) -> int:
    """Operations of attention over a list, as if all sequences were as long as the longest.

    PyTorch's own formula reads the lengths back, which waits, and refuses grouped queries.
    """
    return 4 * q.numel() * rest[1]


def backward_of_list(gradient: Tensor, *args: Any, **_: Any) -> int:
    """The same of its backward pass: five products instead of two."""
    return 10 * gradient.numel() * args[7]


COUNTED = {
    **flop_registry,
    torch.ops.aten._flash_attention_forward: forward_of_list,
    torch.ops.aten._flash_attention_backward: backward_of_list,
}


class Bounds(TorchDispatchMode):
    """Adds up what the operations in its body need; the backward pass must run in the same thread.

    What is compiled must have been called before with tensors of such sizes.

    Attributes:
        all: seconds, of all operations.
        products: seconds, of products, attention and the optimiser.
        operations: floating-point operations of products and attention.
        traffic: bytes that all operations read and write.
        optimizer: those of them that the optimiser and the gradients' norm do.
        kernels: calls of kernels that Inductor has made.
    """

    def __init__(self, card: Card) -> None:
        super().__init__()
        if card.bytes is None:
            raise ValueError("the card's memory bandwidth is not known")
        self.card, self.bandwidth = card, card.bytes
        self.all = self.products = self.operations = self.traffic = self.optimizer = 0.0
        self.kernels = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Without it PyTorch would call the operations of compiled code one by one."""
        return True

    def __enter__(self) -> Self:
        self._launch = launch = CachingAutotuner.run

        @torch.compiler.disable
        def run(kernel: CachingAutotuner, *args: Any, **kwargs: Any) -> Any:
            self._count_kernel(kernel, args)
            return launch(kernel, *args, **kwargs)

        CachingAutotuner.run = run
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        CachingAutotuner.run = self._launch

    def _count_kernel(self, kernel: CachingAutotuner, args: tuple[Any, ...]) -> None:
        moved = kernel_traffic(kernel.fn.src, dict(zip(kernel.fn.arg_names, args, strict=False)))
        self.kernels += 1
        self.traffic += moved
        self.all += moved / self.bandwidth

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = function._schema.name.removeprefix("aten::")
        moved = 0 if name.startswith(FREE) else traffic(function._schema, name, args, kwargs, out)
        seconds = moved / self.bandwidth
        counted = function._overloadpacket in COUNTED
        if counted:
            operations = COUNTED[function._overloadpacket](*args, **kwargs, out_val=out)
            self.operations += operations
            widest = max(t.element_size() for t in tree_leaves(args) if isinstance(t, Tensor) and t.ndim > 1)
            # Float8 is computed at twice the speed of bfloat16; float32, in TF32, at half of it.
            seconds = max(seconds, operations / (self.card.operations * 2 / widest))
        self.traffic += moved
        self.all += seconds
        if name.startswith(("_fused_adam", "_foreach_")):
            self.optimizer += moved
            self.products += seconds
        elif counted:
            self.products += seconds
        return out

    def milliseconds(self) -> dict[str, float]:
        """Both bounds of the step."""
        return {"bound_ms": 1e3 * self.all, "bound_products_ms": 1e3 * self.products}


def traffic(schema: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Bytes on the GPU that an operation reads and writes at least; a view has none."""
    read = written = 0
    for place, argument in enumerate(schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        size = bytes_of(value)
        read += 0 if argument.is_out else size
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += size
    if name.startswith("_fused_adam") and kwargs.get("grad_scale") is None:
        written -= bytes_of(args[1])  # its schema lets it write the gradients, which it does to scale them
    views = [each.alias_info is not None for each in schema.returns]
    if all(views) and not written:
        return 0
    if not all(views):
        written += bytes_of(out)
    if name in PARTIAL:
        touched = bytes_of(out) if not name.endswith("_") else bytes_of(args[-1])
        return 2 * touched
    return read + written


def kernel_traffic(source: str, args: dict[str, Any]) -> int:
    """Bytes that a kernel of Inductor's reads and writes at least, by its text in Triton and its arguments.

    Of a tensor that it reads a part of, this is the part: each load reads a number per point of its grid.
    """
    points = math.prod(value for name, value in args.items() if name.endswith("numel"))
    moved = 0
    for name, value in args.items():
        size = bytes_of(value)
        if size and name.startswith("in_ptr"):
            size = min(size, points * value.element_size() * source.count(f"tl.load({name} "))
        moved += size * (2 if name.startswith("in_out_ptr") else 1)
    return moved


def bytes_of(value: Any) -> int:
    """Bytes of all CUDA tensors in a nested value; an expanded dimension is there once."""
    return sum(
        leaf.element_size() * _distinct(leaf)
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and leaf.is_cuda
    )


def _distinct(tensor: Tensor) -> int:
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count
