"""Exact floating-point operations of pi0's matrix products: what DePi has to do, and what LeRobot does.

Counted are matrix products, attention and the patch convolution, two operations per multiplication and
addition. Attention counts every pair of query and key that a mask of that shape has room for, also masked
ones. All figures are per sample; where samples differ, sum over them.

Letters: N patches per image, P prefix tokens, S suffix tokens.
"""

from dataclasses import dataclass

from depi.models.pi0 import Pi0Dimensions
from depi.models.scene import SceneDimensions
from depi.models.value import TAIL, ValueDimensions


@dataclass(frozen=True)
class Flops:
    """Operations of the forward and of the backward pass."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> "Flops":
        return Flops(self.forward * times, self.backward * times)

    @property
    def total(self) -> int:
        """Both passes, nothing recomputed."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Pi0Flops:
    """Operations of one sample by part; `suffix` includes everything around the action expert."""

    vision: Flops
    prefix: Flops
    suffix: Flops
    recomputable: int  # forward operations inside layers, which checkpointing does a second time

    @property
    def forward(self) -> int:
        """The forward pass."""
        return self.vision.forward + self.prefix.forward + self.suffix.forward

    def training(self, recompute: float = 0.0) -> int:
        """Forward and backward pass, with a share 0..1 of the layers computed twice."""
        if not 0 <= recompute <= 1:
            raise ValueError(f"recompute must be between 0 and 1, not {recompute}")
        backward = self.vision.backward + self.prefix.backward + self.suffix.backward
        return self.forward + backward + round(recompute * self.recomputable)


def product(rows: int, inputs: int, outputs: int, *, input_grad: bool = True) -> Flops:
    """`rows` vectors through a matrix; backward has one such product for the weight, one for the input."""
    forward = 2 * rows * inputs * outputs
    return Flops(forward, forward * (1 + input_grad))


def attention_flops(queries: int, keys: int, width: int) -> Flops:
    """Scores and weighted sums over all heads, whose sizes add up to `width`."""
    return product(queries, width, keys) + product(queries, keys, width)


def pi0_flops(d: Pi0Dimensions, cameras: int, prompt_tokens: int) -> Pi0Flops:
    """The least that the mathematics of pi0 asks for.

    DePi computes just that where all samples are alike. In mixed batches attention works on rows as long as
    the longest, and lengths are rounded up, which adds a few percent.

    Args:
        d: the network's sizes.
        cameras: images that the sample really has.
        prompt_tokens: tokens of its prompt that are no padding.
    """
    patches = cameras * _patches(d)
    p, s = patches + prompt_tokens, 1 + d.chunk_size
    layer = attention_flops(_patches(d), _patches(d), d.vision_width) * cameras + _vision_linears(d, patches)
    whole = _keys_values(d, p, d.width) + _rest_of_layer(d, p, d.width, d.mlp_dim, keys=p)
    last = _keys_values(d, p, d.width)
    expert = _keys_values(d, s, d.expert_width) + _rest_of_layer(
        d, s, d.expert_width, d.expert_mlp_dim, keys=p + s
    )
    return Pi0Flops(
        vision=_vision_ends(d, patches) + layer * d.vision_depth,
        prefix=whole * (d.depth - 1) + last,
        suffix=expert * d.depth + _suffix_ends(d),
        recomputable=(layer * d.vision_depth + whole * (d.depth - 1) + last + expert * d.depth).forward,
    )


def value_flops(d: ValueDimensions, cameras: int, prompt_tokens: int) -> Pi0Flops:
    """As `pi0_flops`, for the value function: its `suffix` is the tail, and everything around it."""
    patches = cameras * _patches(d)
    p = patches + prompt_tokens
    layer = attention_flops(_patches(d), _patches(d), d.vision_width) * cameras + _vision_linears(d, patches)
    whole = _keys_values(d, p, d.width) + _rest_of_layer(d, p, d.width, d.mlp_dim, keys=p)
    last = _keys_values(d, p, d.width)
    tail = _keys_values(d, TAIL, d.width) + _rest_of_layer(d, TAIL, d.width, d.mlp_dim, keys=p + TAIL)
    ends = product(1, d.state_dim, d.width, input_grad=False) + product(1, d.width, d.bins)
    return Pi0Flops(
        vision=_vision_ends(d, patches) + layer * d.vision_depth,
        prefix=whole * (d.depth - 1) + last,
        suffix=tail * d.depth + ends,
        recomputable=(layer * d.vision_depth + whole * (d.depth - 1) + last + tail * d.depth).forward,
    )


def training_flops(d: Pi0Dimensions | ValueDimensions, cameras: int, prompt_tokens: int) -> int:
    """Operations of forward and backward pass of one sample, nothing computed twice."""
    if isinstance(d, ValueDimensions):
        return value_flops(d, cameras, prompt_tokens).training()
    return pi0_flops(d, cameras, prompt_tokens).training()


def sampling_flops(d: Pi0Dimensions, cameras: int, prompt_tokens: int, num_steps: int = 10) -> int:
    """Forward operations of one action chunk: prefix and state once, the suffix at every Euler step."""
    parts = pi0_flops(d, cameras, prompt_tokens)
    state = product(1, d.state_dim, d.expert_width).forward
    return parts.vision.forward + parts.prefix.forward + num_steps * (parts.suffix.forward - state) + state


def lerobot_flops(d: Pi0Dimensions, camera_slots: int, padded_tokens: int) -> Pi0Flops:
    """The same sample in LeRobot 0.6.1, which has every camera slot and padded token computed.

    Prefix and suffix share one attention over all tokens, and the last prefix layer is computed in full:
    its output projection and MLP only forwards, since the loss does not depend on them.

    Args:
        d: the network's sizes.
        camera_slots: cameras of the policy, present or not.
        padded_tokens: length to which prompts are padded.
    """
    patches = camera_slots * _patches(d)
    p, s = patches + padded_tokens, 1 + d.chunk_size
    vision = attention_flops(_patches(d), _patches(d), d.vision_width) * camera_slots + _vision_linears(
        d, patches
    )
    inner = d.num_heads * d.head_dim
    own = _keys_values(d, p, d.width) + product(p, d.width, inner) + attention_flops(p, p + s, inner)
    tail = product(p, inner, d.width) + _mlp(p, d.width, d.mlp_dim)
    rotary = Flops(2 * (d.head_dim // 2) * (p + s))  # angles of positions, once per layer
    expert = _keys_values(d, s, d.expert_width) + _rest_of_layer(
        d, s, d.expert_width, d.expert_mlp_dim, keys=p + s
    )
    prefix = own * d.depth + tail * (d.depth - 1) + Flops(tail.forward) + rotary * d.depth
    return Pi0Flops(
        vision=_vision_ends(d, patches) + vision * d.vision_depth,
        prefix=prefix,
        suffix=expert * d.depth + _suffix_ends(d),
        recomputable=(vision * d.vision_depth + prefix + expert * d.depth).forward,
    )


def _patches(d: SceneDimensions) -> int:
    return (d.image_size // d.patch_size) ** 2


def _vision_ends(d: SceneDimensions, patches: int) -> Flops:
    pixels = 3 * d.patch_size**2
    return product(patches, pixels, d.vision_width, input_grad=False) + product(
        patches, d.vision_width, d.width
    )


def _vision_linears(d: SceneDimensions, patches: int) -> Flops:
    square = product(patches, d.vision_width, d.vision_width)
    return square * 4 + product(patches, d.vision_width, d.vision_mlp_dim) * 2


def _keys_values(d: SceneDimensions, tokens: int, width: int) -> Flops:
    return product(tokens, width, d.num_kv_heads * d.head_dim) * 2


def _mlp(tokens: int, width: int, mlp_dim: int) -> Flops:
    return product(tokens, width, mlp_dim) * 3


def _rest_of_layer(d: SceneDimensions, tokens: int, width: int, mlp_dim: int, *, keys: int) -> Flops:
    inner = d.num_heads * d.head_dim
    return (
        product(tokens, width, inner) * 2
        + attention_flops(tokens, keys, inner)
        + _mlp(tokens, width, mlp_dim)
    )


def _suffix_ends(d: Pi0Dimensions) -> Flops:
    steps, width = d.chunk_size, d.expert_width
    return (
        product(1, d.state_dim, width, input_grad=False)
        + product(steps, d.action_dim, width, input_grad=False)
        + product(steps, 2 * width, width)
        + product(steps, width, width)
        + product(steps, width, d.action_dim)
    )
