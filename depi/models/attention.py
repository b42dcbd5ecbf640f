"""Every attention call of DePi's networks, and the kernel that computes it.

`scaled_dot_product_attention` chooses among PyTorch's kernels by rules that change with its versions: in 2.11
a bias at head size 256 goes to cuDNN, which later ones forbid below cuDNN 9.22, and 2.11 comes with 9.19. On
CUDA each call here names its kernel instead, the first one that is allowed and fits:

    tokens in a list, each sample for itself   varlen; without it, in rows and with a bias
    with a bias                                efficient, math
    everything attends to everything           flash, efficient, math

On other devices, and on AMD's, PyTorch chooses. `varlen` needs a list in the order of its samples (see
`packing.by_sample`) and half precision.

Kernels are called by their operators. `torch.nn.attention.sdpa_kernel` costs 20 to 40 us of host time a call
and switches kernels on and off for all threads; `torch.nn.attention.varlen.varlen_attn`, whose operator is
called here, costs 220 us more forward and backward, and operations in it are not counted.

Letters in shapes:
    B batch   L tokens   K tokens attended to   Q query heads   G key-value heads   D head size
    T tokens in a list   S sequences in it
"""

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

Backends = tuple[str, ...]
BACKENDS: Backends = ("varlen", "flash", "efficient", "math")
HALF = (torch.bfloat16, torch.float16)


def read_backends(text: str) -> Backends:
    """The kernels that are allowed by a text such as `flash,efficient`; `math` always is, as the last resort.

    Raises:
        ValueError: there is no such kernel.
    """
    names = {name.strip() for name in text.split(",")}
    for name in sorted(names - set(BACKENDS)):
        raise ValueError(f"there is no attention kernel {name!r}: name some of {', '.join(BACKENDS)}")
    return tuple(name for name in BACKENDS if name in {*names, "math"})


def attention_bias(visible: Tensor, heads_per_group: int, dtype: torch.dtype) -> Tensor:
    """What `attention` adds to its scores, made once for all layers.

    Args:
        visible: bool [B, L, K], or [B, 1, K] where every query sees the same.
        heads_per_group: Q / G.
        dtype: in which attention computes.

    Returns:
        [B, 1, L * Q / G, K] or [B, 1, 1, K], 0 where visible and -inf elsewhere.
    """
    rows = visible if visible.shape[1] == 1 else visible.repeat_interleave(heads_per_group, dim=1)
    # Fused kernels need rows that begin at multiples of 16 numbers, and copy other ones in every layer. There
    # is always room behind a row: compiled code would be made once more for a length that needs none.
    length = rows.shape[2]
    room = (length // 16 + 1) * 16
    bias = torch.zeros(*rows.shape[:2], room, dtype=dtype, device=rows.device)[..., :length]
    return bias.masked_fill_(~rows, -torch.inf)[:, None]


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, backends: Backends = BACKENDS) -> Tensor:
    """Queries [B, L, Q, D] over keys and values [B, K, G, D] with an `attention_bias` -> [B, L, Q * D].

    The Q / G heads that share keys are laid out as further queries of one head: nothing is copied per head,
    and every fused kernel supports it, also those with a bias but without grouped queries.
    """
    batch, length, _, head_dim = q.shape
    groups = k.shape[2]
    q = q.view(batch, length, groups, -1, head_dim).transpose(1, 2).flatten(2, 3)  # [B, G, L * Q / G, D]
    out = dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), bias, backends)
    return out.unflatten(2, (length, -1)).transpose(1, 2).reshape(batch, length, -1)


def list_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    """Queries [T, Q, D] over the keys and values [T, G, D] of their own sequence -> [T, Q * D].

    Args:
        q, k, v: on CUDA and in half precision; see `takes_lists`.
        starts: where sequences begin, and T: int32 [S + 1]. Every token must be in one: the kernel writes
            nothing for others.
        longest: at least the length of every sequence; the kernel's grid grows with it.
    """
    out = aten._flash_attention_forward(q, k, v, starts, starts, longest, longest, 0.0, False, False)[0]
    return out.flatten(1)


def takes_lists(x: Tensor, head_dim: int, backends: Backends) -> bool:
    """Whether `list_attention` can be called where vectors like `x` are computed."""
    return "varlen" in backends and _pinned(x) and _flash_takes(x, head_dim)


def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, backends: Backends = BACKENDS
) -> Tensor:
    """Queries [B, G, L, D] over keys and values [B, G, K, D] -> [B, G, L, D].

    `bias` can be broadcast to [B, G, L, K].
    """
    if not _pinned(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    kernel = kernel_for(q, bias is not None, backends)
    if kernel == "flash":
        return aten._scaled_dot_product_flash_attention(q, k, v)[0]
    if kernel == "math":
        # It is made of operations that autocast would change one by one.
        with torch.autocast(q.device.type, enabled=False):
            return aten._scaled_dot_product_attention_math(q, k, v, bias)[0]
    whole = None if bias is None else bias.expand(*q.shape[:3], k.shape[2])
    trained = q.requires_grad or k.requires_grad or v.requires_grad  # backward reads the log-sum-exp
    return aten._scaled_dot_product_efficient_attention(q, k, v, whole, trained)[0]


def kernel_for(q: Tensor, biased: bool, backends: Backends) -> str:
    """The kernel that computes `dot_product_attention` of such queries on CUDA."""
    if "flash" in backends and not biased and _flash_takes(q, q.shape[-1]):
        return "flash"
    return "efficient" if "efficient" in backends and _efficient_takes(q) else "math"


def _pinned(x: Tensor) -> bool:
    """Whether the kernel is chosen here."""
    return x.is_cuda and torch.version.hip is None


def _flash_takes(x: Tensor, head_dim: int) -> bool:
    """As `sdp_utils.cpp` of PyTorch has it, without the sizes that it does not take on every GPU."""
    fits = head_dim % 8 == 0 and (head_dim <= 192 or 224 < head_dim <= 256)
    return fits and x.dtype in HALF and _ampere(x.device.index)


def _efficient_takes(q: Tensor) -> bool:
    """As `sdp_utils.cpp` of PyTorch has it."""
    half = q.dtype in HALF
    if not half and q.dtype != torch.float32:
        return False
    known = q.dtype != torch.bfloat16 or _ampere(q.device.index)
    return known and q.shape[-1] % (8 if half else 4) == 0


@torch.compiler.assume_constant_result
def _ampere(index: int) -> bool:
    """Whether a GPU is of that generation or a newer one, which compute in bfloat16."""
    return torch.cuda.get_device_capability(index) >= (8, 0)
