"""pi0: a vision-language model reads the scene, an action expert turns noise into an action chunk.

Training draws a time and noise per sample, mixes the noise into the recorded actions, and asks the expert
for the velocity that leads from actions to noise (flow matching). Sampling follows that velocity backwards.

Letters in shapes:
    B batch           C camera slots       R image side in pixels   N patches per image
    T prompt tokens   P = C * N + T prefix tokens                   W, E width of prefix and of suffix
    H action steps    S = 1 + H suffix tokens (state, then actions) X, A padded size of state and of action
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depi.models.gemma import (
    GemmaPrefix,
    GemmaSuffix,
    KeysValues,
    Rotation,
    attention_bias,
    rotary_table,
)
from depi.models.packing import any_length, pad
from depi.models.scene import (
    SO400M,
    TINY_VISION,
    Observation,
    SceneDimensions,
    SceneReader,
    Suffix,
    place_prefix,
)


@dataclass(frozen=True)
class Pi0Dimensions(SceneDimensions):
    """Every size of the network. Prefix and suffix meet in attention: they share depth, heads, head size."""

    expert_width: int
    expert_mlp_dim: int
    chunk_size: int = 50
    state_dim: int = 32
    action_dim: int = 32
    min_period: float = 4e-3
    max_period: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expert_width % 2:
            raise ValueError(f"expert width {self.expert_width} must be even")

    @property
    def suffix(self) -> Suffix:
        """The state and the actions, through the action expert."""
        steps, width = self.chunk_size, self.expert_width
        products = (
            (1, self.state_dim, width, False),
            (steps, self.action_dim, width, False),
            (steps, 2 * width, width, True),
            (steps, width, width, True),
            (steps, width, self.action_dim, True),
        )
        return Suffix(1 + steps, width, self.expert_mlp_dim, products)

    @classmethod
    def full(cls, **changes: float) -> "Pi0Dimensions":
        """The published pi0: SigLIP So400m/14 at 224 pixels, Gemma 2B, action expert of 300 M."""
        sizes = {
            **SO400M,
            "width": 2048,
            "mlp_dim": 16_384,
            "expert_width": 1024,
            "expert_mlp_dim": 4096,
            "depth": 18,
            "num_heads": 8,
            "num_kv_heads": 1,
            "head_dim": 256,
        }
        return cls(**{**sizes, **changes})  # type: ignore[arg-type]

    @classmethod
    def tiny(cls, **changes: float) -> "Pi0Dimensions":
        """The same architecture, small enough to train on a laptop's processor in a minute."""
        sizes = {
            **TINY_VISION,
            "width": 128,
            "mlp_dim": 256,
            "expert_width": 128,
            "expert_mlp_dim": 256,
            "depth": 4,
            "num_heads": 4,
            "num_kv_heads": 1,
            "head_dim": 32,
        }
        return cls(**{**sizes, **changes})  # type: ignore[arg-type]


class Prefix(NamedTuple):
    """The encoded images and language, as the suffix uses them."""

    keys_values: list[KeysValues]  # per layer
    filled: Tensor  # bool [B, P], False where the place is empty or masked


class Pi0(SceneReader):
    """The network; float32 parameters, computing in bfloat16 where the caller turns autocast on."""

    dimensions: Pi0Dimensions

    def __init__(self, dimensions: Pi0Dimensions):
        super().__init__(dimensions)
        d = dimensions
        heads = {
            "depth": d.depth,
            "num_heads": d.num_heads,
            "num_kv_heads": d.num_kv_heads,
            "head_dim": d.head_dim,
        }
        self.prefix = GemmaPrefix(width=d.width, mlp_dim=d.mlp_dim, **heads)
        self.state_proj = nn.Linear(d.state_dim, d.expert_width)
        self.action_in_proj = nn.Linear(d.action_dim, d.expert_width)
        self.action_time_mlp_in = nn.Linear(2 * d.expert_width, d.expert_width)
        self.action_time_mlp_out = nn.Linear(d.expert_width, d.expert_width)
        self.suffix = GemmaSuffix(width=d.expert_width, mlp_dim=d.expert_mlp_dim, **heads)
        self.action_out_proj = nn.Linear(d.expert_width, d.action_dim)

    def forward(self, observation: Observation, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Squared error of the predicted velocity, float32 [B, H, A].

        Args:
            observation: see `Observation`.
            actions: normalised, float32 [B, H, A].
            noise: standard normal, float32 [B, H, A].
            time: float32 [B], in (0, 1]; see `sample_time`. Or [B, H], one for each step: 0 gives an action
                as it is, see `prefix_times`.
        """
        # Time runs from actions (t = 0) to noise (t = 1), as in openpi; the paper's runs the other way.
        # Training draws it from Beta(1.5, 1) * 0.999 + 0.001: noisy times are the hard ones.
        t = time.reshape(len(time), -1, 1)
        x_t = t * noise + (1 - t) * actions
        u_t = noise - actions
        v_t = self.velocity(self.encode_prefix(observation), observation.state, x_t, time)
        return (v_t - u_t).square()

    def encode_prefix(self, observation: Observation) -> Prefix:
        """Read images and prompt once."""
        images, image_mask, tokens, token_mask, _, packing = observation
        packing = packing or pad(image_mask, token_mask, self.dimensions.patches)
        x = self.embed_prefix(images, tokens, packing)
        rotation, bias = place_prefix(x, packing.rows, self.dimensions)
        rows = packing.rows
        return Prefix(self.prefix(x, rotation, rows, bias), rows.filled)

    def velocity(self, prefix: Prefix, state: Tensor, x_t: Tensor, time: Tensor) -> Tensor:
        """Predicted `noise - actions`, float32 [B, H, A], from state [B, X], x_t [B, H, A] and time.

        Time is [B], or [B, H] where steps have their own.
        """
        embeddings = self.embed_suffix(self.embed_state(state), x_t, self.embed_time(time))
        rotation, bias = self.suffix_view(prefix, x_t.shape[1])
        return self.read_suffix(embeddings, rotation, bias, prefix.keys_values)

    def suffix_view(self, prefix: Prefix, steps: int) -> tuple[Rotation, Tensor]:
        """Rotary table of a suffix with so many action steps, and its `attention_bias` over P + S keys."""
        d, filled = self.dimensions, prefix.filled
        positions = filled.sum(dim=1, keepdim=True) + torch.arange(1 + steps, device=filled.device)
        visible = torch.cat(
            (
                filled[:, None, :].expand(-1, 1 + steps, -1),
                suffix_mask(steps, filled.device).expand(len(filled), -1, -1),
            ),
            dim=2,
        )  # [B, S, P + S]
        bias = attention_bias(visible, d.heads_per_group, prefix.keys_values[0][0].dtype)
        return rotary_table(positions, d.head_dim), any_length(bias, 3)

    def embed_state(self, state: Tensor) -> Tensor:
        """State [B, X] -> float32 [B, 1, E]."""
        with torch.autocast(state.device.type, enabled=False):
            return self.state_proj(state)[:, None]

    def embed_time(self, time: Tensor) -> Tensor:
        """Time [B] -> float32 [B, 1, E]; of each step, [B, H] -> [B, H, E]."""
        d = self.dimensions
        embedded = time_embedding(time.flatten(), d.expert_width, d.min_period, d.max_period)
        return embedded.unflatten(0, (len(time), -1))

    def embed_suffix(self, state: Tensor, x_t: Tensor, moment: Tensor) -> Tensor:
        """Suffix tokens, float32 [B, S, E]; they are few, so less precision would save nothing.

        Args:
            state: `embed_state`, [B, 1, E].
            x_t: noisy actions, [B, H, A].
            moment: `embed_time`, [B or 1, 1 or H, E].
        """
        with torch.autocast(x_t.device.type, enabled=False):
            actions = self.action_in_proj(x_t)  # [B, H, E]
            both = torch.cat((actions, moment.expand_as(actions)), dim=2)
            hidden = F.silu(self.action_time_mlp_in(both))
            return torch.cat((state, self.action_time_mlp_out(hidden)), dim=1)

    def read_suffix(
        self, embeddings: Tensor, rotation: Rotation, bias: Tensor, keys_values: list[KeysValues]
    ) -> Tensor:
        """Velocity, float32 [B, H, A], that the expert gives for suffix [B, S, E]; see `suffix_view`."""
        out = self.suffix(embeddings.to(keys_values[0][0].dtype), rotation, bias, keys_values)
        with torch.autocast(out.device.type, enabled=False):  # velocities and the loss stay in float32
            return self.action_out_proj(out[:, 1:].float())

    def stacks(self) -> tuple[nn.Module, ...]:
        """Vision tower, language model, action expert."""
        return self.vision, self.prefix, self.suffix

    def blocks(self) -> tuple[nn.Module, ...]:
        """Every layer of the stacks."""
        return *self.vision.layers, *self.prefix.layers, self.prefix.last_layer, *self.suffix.layers


def suffix_mask(steps: int, device: torch.device) -> Tensor:
    """The attention mask of the suffix, bool [S, S]: the state attends to itself, actions to everything."""
    mask = torch.ones(1 + steps, 1 + steps, dtype=torch.bool, device=device)
    mask[0, 1:] = False
    return mask


def time_embedding(time: Tensor, width: int, min_period: float, max_period: float) -> Tensor:
    """Sines, then cosines, of `time` [B] at periods spread evenly in logarithm -> float32 [B, width]."""
    precise = torch.float32 if time.device.type == "mps" else torch.float64
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=precise, device=time.device)
    period = min_period * (max_period / min_period) ** fraction
    angles = 2 * math.pi * time.to(precise)[:, None] / period
    return torch.cat((angles.sin(), angles.cos()), dim=1).float()


def prefix_times(time: Tensor, delay: Tensor, steps: int) -> Tensor:
    """Times of each step, float32 [B, H]: 0 for the first `delay` [B] of them, `time` [B] for the others.

    So the first actions are given without noise, and the network learns to go on from them (Black et al.,
    Training-Time Action Conditioning for Efficient Real-Time Chunking, 2025, section IV; its time runs the
    other way).
    """
    given = torch.arange(steps, device=time.device) < delay[:, None]
    return time[:, None].expand(-1, steps).masked_fill(given, 0.0)


def sample_noise(
    shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal noise, float32."""
    return torch.randn(shape, device=device, generator=generator)


def sample_time(
    batch_size: int,
    device: torch.device,
    generator: torch.Generator | None = None,
    *,
    alpha: float = 1.5,
    scale: float = 0.999,
    offset: float = 0.001,
) -> Tensor:
    """Times `Beta(alpha, 1) * scale + offset`, float32 [B]: mostly noisy, never exactly at the actions.

    Beta(alpha, 1) is a uniform variable to the power 1 / alpha.
    """
    return torch.rand(batch_size, device=device, generator=generator) ** (1 / alpha) * scale + offset
