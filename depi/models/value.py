"""The value function: it predicts the normalised return of a frame, as a distribution over bins.

RECAP (pi*0.6, Physical Intelligence 2025, section IV) trains a vision-language model to predict the return
of the policy that collected the data. Here SigLIP and a Gemma read images and prompt as pi0's prefix does;
two more tokens follow, the state and a query. The query attends to all the others and no other token attends
to it: the distribution is computed from the query, so never from padding.

Letters in shapes:
    B batch   K bins   P places of the prefix   T prefix tokens in a list   W width   X padded size of state
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depi.models.attention import attention_bias
from depi.models.checkpointing import planned
from depi.models.gemma import GemmaLayer, KeyValueLayer, RMSNorm, Rotation, rotary_table
from depi.models.packing import Rows, any_length, pad
from depi.models.scene import (
    SO400M,
    TINY_VISION,
    Observation,
    SceneDimensions,
    SceneReader,
    Suffix,
    place_prefix,
)

# The tokens behind the prefix: the state, and the query that the distribution is read from.
TAIL = 2


@dataclass(frozen=True)
class ValueBins:
    """`count` values, equally spaced from `low` to `high`, both included. Labels and decoding share them."""

    count: int = 201
    low: float = -1.0
    high: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 2 or not self.low < self.high:
            raise ValueError(f"{self.count} bins from {self.low} to {self.high} make no range")

    @property
    def width(self) -> float:
        """From one centre to the next."""
        return (self.high - self.low) / (self.count - 1)

    def centres(self, device: torch.device | str | None = None) -> Tensor:
        """The values of the bins, float32 [K], increasing."""
        return torch.linspace(self.low, self.high, self.count, device=device)

    def clamp(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values clamped to the range, and how many were outside: a scalar on the same device.

        Values beyond an end by no more than rounding (1e-6) are not counted.
        """
        outside = (values < self.low - 1e-6) | (values > self.high + 1e-6)
        return values.clamp(self.low, self.high), outside.sum()

    def position(self, values: Tensor) -> Tensor:
        """The positions of values among the bins: 0 at the first centre, K - 1 at the last; clamped."""
        return (values.clamp(self.low, self.high) - self.low) / self.width

    def index(self, values: Tensor) -> Tensor:
        """The bin whose centre is nearest to each value, int64; values outside the range are clamped."""
        return self.position(values).round().long()

    def two_hot(self, values: Tensor) -> Tensor:
        """Weights [..., K] of the two nearest bins, whose mean is the value itself; clamped."""
        position = self.position(values)
        lower = position.floor().clamp(max=self.count - 2)
        share = (position - lower)[..., None]
        weights = values.new_zeros(*values.shape, self.count)
        lower = lower.long()[..., None]
        return weights.scatter(-1, lower, 1 - share).scatter(-1, lower + 1, share)

    def decode(self, logits: Tensor) -> Tensor:
        """The mean of the distribution that logits [..., K] stand for, float32 [...]."""
        return self.mean(logits.float().softmax(dim=-1))

    def mean(self, probabilities: Tensor) -> Tensor:
        """The mean of distributions [..., K], float32 [...]."""
        return (probabilities * self.centres(probabilities.device)).sum(dim=-1)


@dataclass(frozen=True)
class ValueDimensions(SceneDimensions):
    """Every size of the network."""

    state_dim: int = 32
    bins: int = 201

    @property
    def suffix(self) -> Suffix:
        """The tail, as wide as its prefix."""
        products = ((1, self.state_dim, self.width, False), (1, self.width, self.bins, True))
        return Suffix(TAIL, self.width, self.mlp_dim, products)

    @classmethod
    def full(cls, **changes: int) -> "ValueDimensions":
        """SigLIP So400m/14 at 224 pixels and a language model with the sizes of Gemma 3 270M."""
        sizes = {
            **SO400M,
            "width": 640,
            "mlp_dim": 2048,
            "depth": 18,
            "num_heads": 4,
            "num_kv_heads": 1,
            "head_dim": 256,
        }
        return cls(**{**sizes, **changes})

    @classmethod
    def tiny(cls, **changes: int) -> "ValueDimensions":
        """The same architecture, small enough to train on a laptop's processor in a minute."""
        sizes = {
            **TINY_VISION,
            "width": 128,
            "mlp_dim": 256,
            "depth": 3,
            "num_heads": 4,
            "num_kv_heads": 1,
            "head_dim": 32,
        }
        return cls(**{**sizes, **changes})


class ReadingLayer(GemmaLayer):
    """A Gemma layer that computes first the prefix, then the tail, which attends to the prefix.

    Of the last layer only the tail is used, so there only keys and values of the prefix are computed.
    """

    def __init__(self, *, last: bool, **sizes: int):
        super().__init__(**sizes)
        self.last = last

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        rotation: Rotation,
        rows: Rows,
        bias: Tensor | None,
        tail: Tensor,
        tail_rotation: Rotation,
        tail_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Prefix tokens [T, W] and tail [B, 2, W] -> both, one layer on.

        `bias` is the prefix's `attention_bias` over its P places, or None as for `GemmaLayer.forward`,
        `tail_bias` the tail's over P + 2.
        """
        if self.last:
            read = KeyValueLayer.forward(self, x, rotation, rows)
        else:
            x, read = super().forward(x, rotation, rows, bias)
        tail, _ = super().forward(tail, tail_rotation, None, tail_bias, read)
        return x, tail


class ReadingGemma(nn.Module):
    """One Gemma for prefix and tail."""

    def __init__(self, *, depth: int, **sizes: int):
        super().__init__()
        self.layers = nn.ModuleList(
            ReadingLayer(last=number == depth - 1, **sizes) for number in range(depth)
        )
        self.norm = RMSNorm(sizes["width"])
        self.recompute = 0.0

    def forward(self, x: Tensor, tail: Tensor, *seen: Any) -> Tensor:
        """Prefix [T, W], tail [B, 2, W] and the further arguments of a layer -> normed tail [B, 2, W]."""
        rotation, rows, bias, tail_rotation, tail_bias = seen
        for layer in planned(self.layers, self.recompute):
            x, tail = layer(x, rotation, rows, bias, tail, tail_rotation, tail_bias)
        return self.norm(tail)


class ValueNetwork(SceneReader):
    """The network; float32 parameters, computing in bfloat16 where the caller turns autocast on."""

    dimensions: ValueDimensions

    def __init__(self, dimensions: ValueDimensions):
        super().__init__(dimensions)
        d = dimensions
        self.trunk = ReadingGemma(
            depth=d.depth,
            width=d.width,
            mlp_dim=d.mlp_dim,
            num_heads=d.num_heads,
            num_kv_heads=d.num_kv_heads,
            head_dim=d.head_dim,
        )
        self.state_proj = nn.Linear(d.state_dim, d.width)
        self.query = nn.Embedding(1, d.width)
        self.value_head = nn.Linear(d.width, d.bins)

    def forward(self, observation: Observation) -> Tensor:
        """Logits of the bins, float32 [B, K]."""
        images, image_mask, tokens, token_mask, state, packing = observation
        d = self.dimensions
        packing = packing or pad(image_mask, token_mask, d.patches)
        x = self.embed_prefix(images, tokens, packing)
        x, rotation, rows, bias = place_prefix(x, packing, d, self.backends)
        tail_rotation, tail_bias = self._place_tail(rows.filled, x.dtype)
        out = self.trunk(
            x, self._embed_tail(state).to(x.dtype), rotation, rows, bias, tail_rotation, tail_bias
        )
        with torch.autocast(out.device.type, enabled=False):  # the distribution and the loss stay in float32
            return self.value_head(out[:, -1].float())

    def _embed_tail(self, state: Tensor) -> Tensor:
        """State [B, X] -> state and query, float32 [B, 2, W]."""
        with torch.autocast(state.device.type, enabled=False):
            number = torch.zeros(len(state), dtype=torch.int64, device=state.device)
            query = self.query(number) * self.dimensions.width**0.5
            return torch.stack((self.state_proj(state), query), dim=1)

    def _place_tail(self, filled: Tensor, dtype: torch.dtype) -> tuple[Rotation, Tensor]:
        """Positions of the tail after the prefix, and its attention mask: real tokens and its own past."""
        d = self.dimensions
        own = torch.arange(TAIL, device=filled.device)
        positions = filled.sum(dim=1, keepdim=True) + own
        visible = torch.cat(
            (filled[:, None].expand(-1, TAIL, -1), (own <= own[:, None]).expand(len(filled), -1, -1)), dim=2
        )  # [B, 2, P + 2]
        return rotary_table(positions, d.head_dim), any_length(
            attention_bias(visible, d.heads_per_group, dtype), 3
        )

    def stacks(self) -> tuple[nn.Module, ...]:
        """Vision tower and language model."""
        return self.vision, self.trunk

    def blocks(self) -> tuple[nn.Module, ...]:
        """Every layer of both."""
        return *self.vision.layers, *self.trunk.layers


def value_loss(logits: Tensor, values: Tensor, bins: ValueBins, *, two_hot: bool = False) -> Tensor:
    """Cross-entropy of logits [B, K] to normalised returns [B] (clamped), float32 [B]."""
    target = bins.two_hot(values.float()) if two_hot else bins.index(values)
    return F.cross_entropy(logits.float(), target, reduction="none")
