"""Flow matching with an action expert: what pi0 and pi0.5 have in common.

A vision-language model reads the scene, an action expert turns noise into an action chunk. Training draws a
time and noise per sample, mixes the noise into the recorded actions, and asks the expert for the velocity
that leads from actions to noise. Sampling follows that velocity backwards.

Letters in shapes:
    B batch           C camera slots       R image side in pixels   N patches per image
    T prompt tokens   P = C * N + T prefix tokens                   W, E width of prefix and of suffix
    H action steps    S suffix tokens: the actions, behind what else there is
    X, A padded size of state and of action
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from depi.models.attention import attention_bias
from depi.models.gemma import GemmaPrefix, GemmaSuffix, KeysValues, Rotation, rotary_table
from depi.models.packing import any_length, pad
from depi.models.scene import (
    SO400M,
    TINY_VISION,
    Observation,
    SceneDimensions,
    SceneReader,
    compilation,
    place_prefix,
)


@dataclass(frozen=True)
class FlowDimensions(SceneDimensions):
    """Every size of the network. Prefix and suffix meet in attention: they share depth, heads, head size."""

    expert_width: int
    expert_mlp_dim: int
    chunk_size: int = 50
    action_dim: int = 32
    min_period: float = 4e-3
    max_period: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expert_width % 2:
            raise ValueError(f"expert width {self.expert_width} must be even")

    @property
    def heads(self) -> dict[str, int]:
        """What the layers of prefix and suffix share."""
        names = ("depth", "num_heads", "num_kv_heads", "head_dim")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def full(cls, **changes: float) -> Self:
        """The published sizes: SigLIP So400m/14 at 224 pixels, Gemma 2B, action expert of 300 M."""
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
    def tiny(cls, **changes: float) -> Self:
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


class FlowNetwork(SceneReader):
    """The network; float32 parameters, computing in bfloat16 where the caller turns autocast on.

    A family has a constructor that makes prefix, suffix and the layers around the suffix, `embed_state`,
    `embed_time` and `expert`.
    """

    dimensions: FlowDimensions
    prefix: GemmaPrefix
    suffix: GemmaSuffix
    action_out_proj: nn.Linear

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
        x, rotation, rows, bias = place_prefix(x, packing, self.dimensions, self.backends)
        return Prefix(self.prefix(x, rotation, rows, bias), rows.filled)

    def velocity(self, prefix: Prefix, state: Tensor, x_t: Tensor, time: Tensor) -> Tensor:
        """Predicted `noise - actions`, float32 [B, H, A], from state [B, X], x_t [B, H, A] and time.

        Time is [B], or [B, H] where steps have their own.
        """
        view = self.suffix_view(prefix, x_t.shape[1])
        return self.respond(x_t, self.embed_state(state), self.embed_time(time), *view, prefix.keys_values)

    def suffix_view(self, prefix: Prefix, steps: int) -> tuple[Rotation, Tensor]:
        """Rotary table of a suffix with so many action steps, and its `attention_bias` over P + S keys."""
        d, filled = self.dimensions, prefix.filled
        before = d.suffix.tokens - d.chunk_size
        tokens = before + steps
        positions = filled.sum(dim=1, keepdim=True) + torch.arange(tokens, device=filled.device)
        visible = torch.cat(
            (
                filled[:, None, :].expand(-1, tokens, -1),
                suffix_mask(before, steps, filled.device).expand(len(filled), -1, -1),
            ),
            dim=2,
        )  # [B, S, P + S]
        bias = attention_bias(visible, d.heads_per_group, prefix.keys_values[0][0].dtype)
        return rotary_table(positions, d.head_dim), any_length(bias, 3)

    def respond(
        self,
        x_t: Tensor,
        state: Tensor,
        moment: Tensor,
        rotation: Rotation,
        bias: Tensor,
        keys_values: list[KeysValues],
    ) -> Tensor:
        """Velocity, float32 [B, H, A], at noisy actions x_t [B, H, A]; see `expert` for the rest."""
        out = self.expert(x_t, state, moment, rotation, bias, keys_values)
        with torch.autocast(out.device.type, enabled=False):  # velocities and the loss stay in float32
            return self.action_out_proj(out[:, -x_t.shape[1] :].float())

    def embed_state(self, state: Tensor) -> Tensor:
        """State [B, X] -> its tokens in the suffix, float32 [B, S - H, E]."""
        raise NotImplementedError

    def embed_time(self, time: Tensor) -> Tensor:
        """Time [B] -> what the expert is told of it, [B, 1, ...]; of each step, [B, H] -> [B, H, ...]."""
        raise NotImplementedError

    def expert(
        self,
        x_t: Tensor,
        state: Tensor,
        moment: Tensor,
        rotation: Rotation,
        bias: Tensor,
        keys_values: list[KeysValues],
    ) -> Tensor:
        """What the action expert makes of the suffix, [B, S, E].

        Args:
            x_t: noisy actions, [B, H, A].
            state: `embed_state`.
            moment: `embed_time`, of all samples or of one for all.
            rotation, bias: see `suffix_view`.
            keys_values: of the prefix.
        """
        raise NotImplementedError

    def stacks(self) -> tuple[nn.Module, ...]:
        """Vision tower, language model, action expert."""
        return self.vision, self.prefix, self.suffix

    def blocks(self) -> tuple[nn.Module, ...]:
        """Every layer of the stacks."""
        return *self.vision.layers, *self.prefix.layers, self.prefix.last_layer, *self.suffix.layers

    def compile_for_sampling(self, mode: str | None = None) -> None:
        """As `compile_layers`, but an Euler step is compiled as a whole.

        That takes longer to compile than layers, which share their code, and gives fewer and larger kernels.
        """
        in_steps = {id(layer) for layer in self.suffix.layers}
        for block in self.blocks():
            if id(block) not in in_steps:
                block.compile(**compilation(mode))
        self.respond = torch.compile(self.respond, **compilation(mode))  # type: ignore[method-assign]

    def leave_uncompiled(self) -> None:
        """Undo `compile_for_sampling`; what was captured of it stays."""
        for block in self.blocks():
            block._compiled_call_impl = None  # there is no other way
        self.__dict__.pop("respond", None)


def suffix_mask(before: int, steps: int, device: torch.device) -> Tensor:
    """The attention mask of the suffix, bool [S, S].

    Actions attend to everything; the tokens before them to themselves.
    """
    mask = torch.ones(before + steps, before + steps, dtype=torch.bool, device=device)
    mask[:before, before:] = False
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
