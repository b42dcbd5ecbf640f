"""Gemma's transformer layers, in the two streams that pi0 needs.

The prefix (images and language) never looks at the suffix (state and actions), so the prefix layers run
first, by themselves, and leave their keys and values behind; each suffix layer reads those of the prefix
layer beside it. Training and sampling share this: sampling only reuses the keys and values.

Letters in shapes:
    B batch   L tokens   K tokens attended to   W width   Q query heads   G key-value heads   D head size
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depi.models.checkpointing import run_layer

KeysValues = tuple[Tensor, Tensor]  # each [B, G, L, D]; keys already rotated
Rotation = tuple[Tensor, Tensor]  # cosines and sines, each float32 [B, 1, L, D / 2]


def rotary_table(positions: Tensor, head_dim: int, max_wavelength: float = 10_000.0) -> Rotation:
    """Cosines and sines that turn pairs of channels by an angle proportional to `positions` [B, L]."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None].float() * max_wavelength**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Apply rotary positions to [B, heads, L, D], in float32; channel i is paired with i + D / 2."""
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Queries [B, Q, L, D] over keys and values [B, G, K, D] where `mask` is True -> [B, L, Q * D]."""
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(2)


class RMSNorm(nn.Module):
    """Scale each vector to unit mean square, then by `1 + weight`, in float32 whatever the input is."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W], same dtype."""
        return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), eps=1e-6).type_as(x)


class GatedMLP(nn.Module):
    """GeGLU with the tanh approximation of GELU."""

    def __init__(self, width: int, mlp_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_dim, bias=False)
        self.up_proj = nn.Linear(width, mlp_dim, bias=False)
        self.down_proj = nn.Linear(mlp_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] -> [B, L, W]."""
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class KeyValueLayer(nn.Module):
    """The part of a layer that others look at: norm, keys, values.

    The last prefix layer consists of nothing else, because nobody reads its output.
    """

    def __init__(self, width: int, num_kv_heads: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.attention_norm = RMSNorm(width)
        self.k_proj = nn.Linear(width, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, num_kv_heads * head_dim, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """[B, L, heads * D] -> [B, heads, L, D]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_values(self, normed: Tensor, rotation: Rotation) -> KeysValues:
        """Keys and values of normed tokens [B, L, W]."""
        return rotate(self.heads(self.k_proj(normed)), rotation), self.heads(self.v_proj(normed))

    def forward(self, x: Tensor, rotation: Rotation) -> KeysValues:
        """Tokens [B, L, W] -> keys and values."""
        return self.keys_values(self.attention_norm(x), rotation)


class GemmaLayer(KeyValueLayer):
    """Pre-norm transformer block."""

    def __init__(self, width: int, mlp_dim: int, num_heads: int, num_kv_heads: int, head_dim: int):
        super().__init__(width, num_kv_heads, head_dim)
        self.q_proj = nn.Linear(width, num_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, width, bias=False)
        self.mlp_norm = RMSNorm(width)
        self.mlp = GatedMLP(width, mlp_dim)

    def forward(  # type: ignore[override]
        self, x: Tensor, rotation: Rotation, mask: Tensor, earlier: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Tokens [B, L, W], bool mask broadcastable to [B, 1, L, K] -> new tokens, and their keys and values.

        `earlier` are keys and values that stand before the layer's own ones.
        """
        normed = self.attention_norm(x)
        q = rotate(self.heads(self.q_proj(normed)), rotation)
        k, v = own = self.keys_values(normed, rotation)
        if earlier is not None:
            k, v = torch.cat((earlier[0], k), dim=2), torch.cat((earlier[1], v), dim=2)
        x = x + self.o_proj(attention(q, k, v, mask))
        return x + self.mlp(self.mlp_norm(x)), own


class GemmaPrefix(nn.Module):
    """The language model as a reader: what remains of its tokens is one pair of keys and values per layer."""

    def __init__(
        self, *, width: int, depth: int, mlp_dim: int, num_heads: int, num_kv_heads: int, head_dim: int
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            GemmaLayer(width, mlp_dim, num_heads, num_kv_heads, head_dim) for _ in range(depth - 1)
        )
        self.last_layer = KeyValueLayer(width, num_kv_heads, head_dim)
        self.recompute = False

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor) -> list[KeysValues]:
        """Tokens [B, L, W] -> keys and values of every layer."""
        cache = []
        for layer in self.layers:
            x, keys_values = run_layer(layer, x, rotation, mask, recompute=self.recompute)
            cache.append(keys_values)
        cache.append(run_layer(self.last_layer, x, rotation, recompute=self.recompute))
        return cache


class GemmaSuffix(nn.Module):
    """The action expert: a narrower Gemma whose layers also read the prefix's keys and values."""

    def __init__(
        self, *, width: int, depth: int, mlp_dim: int, num_heads: int, num_kv_heads: int, head_dim: int
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            GemmaLayer(width, mlp_dim, num_heads, num_kv_heads, head_dim) for _ in range(depth)
        )
        self.norm = RMSNorm(width)
        self.recompute = False

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor, prefix: list[KeysValues]) -> Tensor:
        """Tokens [B, L, W] -> normed tokens [B, L, W]; the prefix's K tokens come first in `mask`."""
        for layer, earlier in zip(self.layers, prefix, strict=True):
            x, _ = run_layer(layer, x, rotation, mask, earlier, recompute=self.recompute)
        return self.norm(x)
