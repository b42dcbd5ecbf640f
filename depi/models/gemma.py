"""Gemma's transformer layers, in the two streams that pi0 needs.

The prefix (images and language) never attends to the suffix (state and actions), so the prefix layers run
first and return their keys and values; each suffix layer attends to those of the same prefix layer.
Training and sampling share this; sampling reuses the keys and values.

Letters in shapes:
    B batch   L tokens   K tokens attended to   W width   Q query heads   G key-value heads   D head size
    ... tokens in rows, B, L, or in a list, T, whose `Rows` hold their positions in rows
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depi.models.attention import BACKENDS, Backends, attention, list_attention
from depi.models.checkpointing import planned
from depi.models.linear import linear, linear_together
from depi.models.packing import Rows, to_list, to_rows

KeysValues = tuple[Tensor, Tensor]  # in rows, each [B, L, G, D]; keys already rotated
Rotation = tuple[Tensor, Tensor]  # cosines and sines, each float32 [..., 1, D / 2]
Modulations = tuple[Tensor, Tensor]  # of the norms before attention and MLP, each [..., 3 W]


def rotary_table(positions: Tensor, head_dim: int, max_wavelength: float = 10_000.0) -> Rotation:
    """Cosines and sines that turn pairs of channels by an angle proportional to `positions` [...]."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None, None].float() * max_wavelength**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Apply rotary positions to [..., heads, D], in float32; channel i is paired with i + D / 2."""
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


class RMSNorm(nn.Module):
    """Scale each vector to unit mean square, then by `1 + weight`, in float32 for every input type."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W], same dtype."""
        return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), eps=1e-6).type_as(x)


class AdaptiveRMSNorm(nn.Module):
    """Scale each vector to unit mean square, then scale and shift it as a modulation says; float32 inside.

    The same modulation has a gate for what is made of the vector (adaLN-Zero: Peebles and Xie, Scalable
    Diffusion Models with Transformers, 2023, section 3.2).
    """

    def forward(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """[..., W] and [..., 3 W] -> [..., W] and the gate [..., W], in the type of the input."""
        scale, shift, gate = modulation.float().chunk(3, dim=-1)
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=1e-6) * (1.0 + scale) + shift
        return normed.type_as(x), gate.type_as(x)


def normalise(norm: nn.Module, x: Tensor, modulation: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What a layer computes with, and the gate of its result, None without modulation."""
    return (norm(x), None) if modulation is None else norm(x, modulation)


def gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """A layer's result, as much of it as the gate lets pass."""
    return x if gate is None else x * gate


class GatedMLP(nn.Module):
    """GeGLU with the tanh approximation of GELU."""

    def __init__(self, width: int, mlp_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_dim, bias=False)
        self.up_proj = nn.Linear(width, mlp_dim, bias=False)
        self.down_proj = nn.Linear(mlp_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        gate = F.gelu(linear(x, self.gate_proj), approximate="tanh")
        return linear(gate * linear(x, self.up_proj), self.down_proj)


class KeyValueLayer(nn.Module):
    """The part of a layer that computes keys and values for others: norm, keys, values.

    The last prefix layer consists only of this part, because its output is not used.
    """

    def __init__(self, width: int, num_kv_heads: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.attention_norm: nn.Module = RMSNorm(width)
        self.k_proj = nn.Linear(width, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, num_kv_heads * head_dim, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """[..., heads * D] -> [..., heads, D]."""
        return x.unflatten(-1, (-1, self.head_dim))

    def forward(self, x: Tensor, rotation: Rotation, rows: Rows | None) -> KeysValues:
        """Tokens [..., W] -> keys and values in rows."""
        k, v = linear_together(self.attention_norm(x), (self.k_proj, self.v_proj))
        return to_rows(rotate(self.heads(k), rotation), rows), to_rows(self.heads(v), rows)


class GemmaLayer(KeyValueLayer):
    """Pre-norm transformer block."""

    backends: Backends = BACKENDS

    def __init__(self, width: int, mlp_dim: int, num_heads: int, num_kv_heads: int, head_dim: int):
        super().__init__(width, num_kv_heads, head_dim)
        self.q_proj = nn.Linear(width, num_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, width, bias=False)
        self.mlp_norm: nn.Module = RMSNorm(width)
        self.mlp = GatedMLP(width, mlp_dim)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        rotation: Rotation,
        rows: Rows | None,
        bias: Tensor | None,
        earlier: KeysValues | None = None,
        modulations: Modulations | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Tokens [..., W] -> new tokens, and their keys and values in rows.

        `earlier` are keys and values that stand before the layer's own ones; `bias` is an `attention_bias`,
        None where `rows` is of a list in the order of its samples; `modulations` are those of an
        `AdaptiveLayer`.
        """
        before, behind = modulations or (None, None)
        normed, gate = normalise(self.attention_norm, x, before)
        q, k, v = map(self.heads, linear_together(normed, (self.q_proj, self.k_proj, self.v_proj)))
        q, k = rotate(q, rotation), rotate(k, rotation)
        v = v.contiguous()  # it is kept, and as a part of one product would keep the queries, too
        own = to_rows(k, rows), to_rows(v, rows)
        if rows is not None and rows.starts is not None:
            mixed = list_attention(q, k, v, rows.starts, longest=rows.source.shape[1])
        else:
            assert bias is not None
            keys, values = own
            if earlier is not None:
                keys, values = torch.cat((earlier[0], keys), dim=1), torch.cat((earlier[1], values), dim=1)
            mixed = to_list(attention(to_rows(q, rows), keys, values, bias, self.backends), rows)
        x = x + gated(linear(mixed, self.o_proj), gate)
        normed, gate = normalise(self.mlp_norm, x, behind)
        return x + gated(self.mlp(normed), gate), own


class AdaptiveLayer(GemmaLayer):
    """A layer whose norms are modulated from outside."""

    def __init__(self, width: int, *sizes: int):
        super().__init__(width, *sizes)
        self.attention_norm, self.mlp_norm = AdaptiveRMSNorm(), AdaptiveRMSNorm()


class GemmaPrefix(nn.Module):
    """The language model as an encoder: it returns one pair of keys and values per layer."""

    def __init__(
        self, *, width: int, depth: int, mlp_dim: int, num_heads: int, num_kv_heads: int, head_dim: int
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            GemmaLayer(width, mlp_dim, num_heads, num_kv_heads, head_dim) for _ in range(depth - 1)
        )
        self.last_layer = KeyValueLayer(width, num_kv_heads, head_dim)
        self.recompute = 0.0

    def forward(
        self, x: Tensor, rotation: Rotation, rows: Rows | None, bias: Tensor | None
    ) -> list[KeysValues]:
        """Tokens [..., W] -> keys and values of every layer; see `GemmaLayer.forward`."""
        cache = []
        for layer in planned(self.layers, self.recompute):
            x, keys_values = layer(x, rotation, rows, bias)
            cache.append(keys_values)
        return [*cache, self.last_layer(x, rotation, rows)]


class GemmaSuffix(nn.Module):
    """The action expert: a narrower Gemma whose layers also read the prefix's keys and values."""

    layer: type[GemmaLayer] = GemmaLayer

    def __init__(
        self, *, width: int, depth: int, mlp_dim: int, num_heads: int, num_kv_heads: int, head_dim: int
    ):
        super().__init__()
        sizes = (width, mlp_dim, num_heads, num_kv_heads, head_dim)
        self.layers = nn.ModuleList(self.layer(*sizes) for _ in range(depth))
        self.norm: nn.Module = RMSNorm(width)
        self.recompute = 0.0

    def forward(self, x: Tensor, rotation: Rotation, bias: Tensor, prefix: list[KeysValues]) -> Tensor:
        """Tokens in rows [B, L, W] -> normed tokens [B, L, W]; in `bias` the prefix's tokens come first."""
        for layer, earlier in zip(planned(self.layers, self.recompute), prefix, strict=True):
            x, _ = layer(x, rotation, None, bias, earlier)
        return self.norm(x)


class ZeroLinear(nn.Linear):
    """A linear layer that begins as zero."""


class Modulation(nn.Module):
    """The matrices that make the modulations of an expert's norms from one condition.

    They stand outside of the layers: all are computed at once, when sampling for all Euler steps before the
    first of them.
    """

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.attention = nn.ModuleList(ZeroLinear(width, 3 * width) for _ in range(depth))
        self.mlp = nn.ModuleList(ZeroLinear(width, 3 * width) for _ in range(depth))
        self.norm = ZeroLinear(width, 3 * width)

    def forward(self, condition: Tensor) -> Tensor:
        """[B, W] -> [B, 2 * depth + 1, 3 W]: before attention and MLP, layer by layer; of the last norm."""
        pairs = zip(self.attention, self.mlp, strict=True)
        matrices = [*(matrix for pair in pairs for matrix in pair), self.norm]
        return torch.stack([matrix(condition) for matrix in matrices], dim=1)


class AdaptiveSuffix(GemmaSuffix):
    """The action expert whose norms are modulated; see `Modulation`."""

    layer = AdaptiveLayer

    def __init__(self, *, width: int, depth: int, **sizes: int):
        super().__init__(width=width, depth=depth, **sizes)
        self.norm = AdaptiveRMSNorm()
        self.modulation = Modulation(width, depth)

    def forward(  # type: ignore[override]
        self, x: Tensor, rotation: Rotation, bias: Tensor, prefix: list[KeysValues], modulations: Tensor
    ) -> Tensor:
        """As `GemmaSuffix.forward`, with modulations [..., 2 * depth + 1, 3 W] that fit to [B, L]."""
        *pairs, last = modulations.unbind(dim=-2)
        layers = planned(self.layers, self.recompute)
        for layer, earlier, *pair in zip(layers, prefix, pairs[::2], pairs[1::2], strict=True):
            x, _ = layer(x, rotation, None, bias, earlier, tuple(pair))
        return self.norm(x, last)[0]
