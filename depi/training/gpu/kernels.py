"""Attention and products in float8, forward and backward, and the fused optimizer, against a processor's.

Letters in shapes as in `depi.models.attention`.
"""

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from depi.models.attention import (
    BACKENDS,
    attention,
    attention_bias,
    dot_product_attention,
    kernel_for,
    list_attention,
    takes_lists,
)
from depi.models.float8 import LEAST_CAPABILITY, Float8Linear, takes_float8
from depi.models.flow import suffix_mask
from depi.policies.gpus import Check
from depi.training.gpu.checking import (
    Figures,
    NotHereError,
    WrongError,
    checks_of,
    judge,
    milliseconds,
    relative_error,
)
from depi.training.optimizer import clipped_step

# Of the optimizer, which computes in float32.
LARGEST_UPDATE_ERROR = 1e-4
# Of products in float8 with normal numbers. Three and two bits behind the point round by up to 1/16 and 1/8,
# 2.7% and 5.3% in the mean square: 3.8% forward, 6% of gradients, on a processor.
LARGEST_FLOAT8_ERROR = 0.08
# So far that gradients are below AdamW's epsilon, and clipping shows.
CLIPPED = 1e-6


@dataclass(frozen=True)
class Sizes:
    """Attention as pi0 has it: two samples, with three cameras and with two."""

    lengths: tuple[int, ...] = (3 * 256 + 16, 2 * 256 + 21)
    heads: int = 8
    head_dim: int = 256
    steps: int = 50
    images: int = 3
    patches: int = 256
    vision_heads: int = 16
    vision_head_dim: int = 72
    width: int = 2048
    mlp_dim: int = 16384


class Call(NamedTuple):
    """An attention call: its queries, keys and values on the processor, and who computes it."""

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]  # of queries, and of keys and values
    compute: Callable[[Tensor, Tensor, Tensor], Tensor]
    expect: Callable[[Tensor, Tensor, Tensor], Tensor]

    @property
    def all_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of queries, keys and values."""
        return (self.shapes[0], self.shapes[1], self.shapes[1])


def check_kernels(
    device: torch.device, sizes: Sizes | None = None, wanted: Collection[str] | None = None
) -> Iterator[Check]:
    """A check of each attention kernel, of the optimizer and of float8, at `sizes` or at pi0's."""
    sizes = sizes or Sizes()
    attention_checks = {
        f"attention {kernel}": partial(measure_attention, kernel, device, sizes) for kernel in BACKENDS
    }
    return checks_of(
        {
            **attention_checks,
            "fused optimizer": partial(measure_optimizer, device),
            "float8": partial(measure_float8, device, sizes),
        },
        wanted,
    )


def measure_attention(kernel: str, device: torch.device, sizes: Sizes) -> tuple[str, Figures]:
    """Errors of all calls that a kernel may compute, and their times."""
    errors: dict[str, float] = {}
    figures: Figures = {}
    for call in _calls(kernel, device, sizes):
        found = _compare(call, device)
        errors |= found
        figures |= {f"error, {name}": error for name, error in found.items()}
        inputs = [torch.zeros(shape, dtype=torch.bfloat16, device=device) for shape in call.all_shapes]
        figures[f"ms forward, {call.name}"] = milliseconds(partial(call.compute, *inputs), device)
    return judge(errors, figures), figures


def _compare(call: Call, device: torch.device) -> dict[str, float]:
    """Relative errors of a call's result and gradients, for random numbers."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).bfloat16() for shape in call.all_shapes]
    there = [x.to(device).requires_grad_() for x in inputs]
    here = [x.float().requires_grad_() for x in inputs]
    right = call.expect(*here)
    change = torch.randn(right.shape, generator=generator).bfloat16()
    with torch.autocast(device.type, torch.bfloat16):  # as in training
        out = call.compute(*there)
    errors = {f"result of the {call.name}": relative_error(out, right)}
    found = torch.autograd.grad(out, there, change.to(device))
    expected = torch.autograd.grad(right, here, change.float())
    for name, one, other in zip(("queries", "keys", "values"), found, expected, strict=True):
        errors[f"gradient of the {call.name}'s {name}"] = relative_error(one, other)
    return errors


def _calls(kernel: str, device: torch.device, sizes: Sizes) -> list[Call]:
    """The calls that may go to a kernel.

    Raises:
        NotHereError: it computes none of them on this device.
    """
    if kernel == "varlen":
        if device.type != "cuda":
            raise NotHereError("only CUDA devices have it")
        if not takes_lists(torch.empty(1, dtype=torch.bfloat16, device=device), sizes.head_dim, BACKENDS):
            raise NotHereError("this GPU has no such kernel for bfloat16")
        return [_list_call(device, sizes)]
    allowed = (kernel, "math")
    vision = (sizes.images, sizes.vision_heads, sizes.patches, sizes.vision_head_dim)
    calls = []
    if kernel != "math":
        calls.append(
            Call(
                "vision tower",
                (vision, vision),
                lambda q, k, v: dot_product_attention(q, k, v, backends=allowed),
                plain_attention,
            )
        )
    if kernel != "flash":
        calls += [_call_with_bias(name, device, sizes, allowed) for name in ("prefix", "suffix")]
    like = torch.empty(1, 1, 1, sizes.head_dim if kernel != "flash" else vision[-1], dtype=torch.bfloat16)
    if device.type == "cuda" and kernel_for(like.to(device), kernel != "flash", allowed) != kernel:
        raise NotHereError("this GPU has no such kernel for bfloat16")
    return calls


def _list_call(device: torch.device, sizes: Sizes) -> Call:
    """The prefix in a list, with an empty sequence and one of a few tokens that round the list up."""
    lengths = (*sizes.lengths, 0, 5)
    ends = [0, *itertools.accumulate(lengths)]
    starts = torch.tensor(ends, dtype=torch.int32, device=device)

    def expect(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [
            plain_attention(*(x[start:end].transpose(0, 1) for x in (q, k, v))).transpose(0, 1)
            for start, end in itertools.pairwise(ends)
        ]
        return torch.cat(parts).flatten(1)

    return Call(
        "prefix in a list",
        ((ends[-1], sizes.heads, sizes.head_dim), (ends[-1], 1, sizes.head_dim)),
        lambda q, k, v: list_attention(q, k, v, starts, max(lengths)),
        expect,
    )


def _call_with_bias(name: str, device: torch.device, sizes: Sizes, allowed: tuple[str, ...]) -> Call:
    """The prefix in rows, or the suffix over it."""
    longest, batch = max(sizes.lengths), len(sizes.lengths)
    visible = (torch.arange(longest) < torch.tensor(sizes.lengths)[:, None])[:, None]
    queries = longest
    if name == "suffix":
        queries = 1 + sizes.steps
        own = suffix_mask(1, sizes.steps, torch.device("cpu")).expand(batch, -1, -1)
        visible = torch.cat((visible.expand(-1, queries, -1), own), dim=2)
    bias = attention_bias(visible.to(device), sizes.heads, torch.bfloat16)
    heads_first = visible[:, None]

    def expect(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return plain_attention(q, k, v, heads_first).transpose(1, 2).flatten(2)

    return Call(
        name,
        ((batch, queries, sizes.heads, sizes.head_dim), (batch, visible.shape[2], 1, sizes.head_dim)),
        lambda q, k, v: attention(q, k, v, bias, allowed),
        expect,
    )


def plain_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """Queries [..., L, D] over keys and values [..., K, D], as the definition says."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(dim=-1) @ v


def measure_optimizer(device: torch.device) -> tuple[str, Figures]:
    """A bad step must change nothing, and clipped ones what they change on the processor."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in ((1000, 1001), (7,), (64, 64))]
    gradients = [torch.randn(weight.shape, generator=generator) for weight in weights]
    found = _fused_steps(device, weights, gradients)
    expected = _plain_steps(weights, gradients)
    moved = [
        relative_error(one - weight, other - weight)
        for one, other, weight in zip(found, expected, weights, strict=True)
    ]
    figures = {"error, change of the weights": max(moved)}
    return judge({"change of the weights": max(moved)}, figures, LARGEST_UPDATE_ERROR), figures


def _fused_steps(device: torch.device, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """Weights after two steps of the trainer's, with a bad one in between.

    Raises:
        WrongError: the bad step changed them.
    """
    parameters = [torch.nn.Parameter(weight.to(device, copy=True)) for weight in weights]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    for bad in (0.0, 1.0, 0.0):
        before = [parameter.detach().clone() for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.to(device, copy=True)
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        clipped_step(optimizer, norm, CLIPPED, torch.tensor(bad, device=device))
        if bad and not all(map(torch.equal, before, parameters)):
            raise WrongError("a step that is to be left out changes the weights", {})
    return [parameter.detach().cpu() for parameter in parameters]


def _plain_steps(weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """The same without the bad one, on the processor and without a fused kernel."""
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=False)
    for _ in range(2):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(parameters, CLIPPED)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def measure_float8(device: torch.device, sizes: Sizes) -> tuple[str, Figures]:
    """Errors of a linear layer of the language model and of its gradients, against one in float32."""
    if not takes_float8(device):
        least = ".".join(map(str, LEAST_CAPABILITY))
        raise NotHereError(f"not available: it needs an NVIDIA GPU of compute capability {least} or higher")
    generator = torch.Generator().manual_seed(0)
    # As many tokens as an image has, and some that are no multiple of what the product takes.
    shapes = ((sizes.patches + 5, sizes.width), (sizes.mlp_dim, sizes.width))
    tokens, weight = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    change = torch.randn(len(tokens), len(weight), generator=generator).bfloat16()
    layer = Float8Linear(sizes.width, sizes.mlp_dim, bias=False, device=device)
    layer.weight = torch.nn.Parameter(weight.float().to(device))
    there, here = (x.detach().requires_grad_() for x in (tokens.to(device), tokens.float()))
    right = torch.nn.Parameter(weight.float())
    with torch.autocast(device.type, torch.bfloat16):  # as in training
        out = layer(there)
    expected = torch.nn.functional.linear(here, right)
    found = (out, *torch.autograd.grad(out, (there, layer.weight), change.to(device)))
    wanted = (expected, *torch.autograd.grad(expected, (here, right), change.float()))
    names = ("product in float8", "gradient of its tokens", "gradient of its weights")
    errors = {name: relative_error(*pair) for name, *pair in zip(names, found, wanted, strict=True)}
    figures: Figures = {f"error, {name}": error for name, error in errors.items()}
    figures["ms forward, product in float8"] = milliseconds(lambda: layer(there.detach()), device)
    return judge(errors, figures, LARGEST_FLOAT8_ERROR), figures
