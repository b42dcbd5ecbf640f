"""Exact floating-point operations of a network's matrix products.

Counted are matrix products, attention and the patch convolution, two operations per multiplication and
addition. Attention counts every pair of query and key that a mask of that shape has room for, also masked
ones. All figures are per sample; where samples differ, sum over them.

Letters: N patches per image, P prefix tokens, S suffix tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from depi.models.scene import Product, SceneDimensions


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
class SampleFlops:
    """Operations of one sample by part; `suffix` includes everything around it."""

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


def sample_flops(d: SceneDimensions, cameras: int, prompt_tokens: int) -> SampleFlops:
    """The operations that a network needs, without padding and recomputation.

    DePi computes exactly these where all samples are of equal size. In mixed batches attention works on rows
    as long as the longest, and lengths are rounded up, which adds a few percent.

    Args:
        d: the network's sizes.
        cameras: images of the sample, without absent ones.
        prompt_tokens: tokens of its prompt, without padding.
    """
    patches, suffix = cameras * d.patches, d.suffix
    p, s = patches + prompt_tokens, suffix.tokens
    vision = vision_layer(d, cameras) * d.vision_depth
    last = keys_values(d, p, d.width)  # of the last prefix layer nothing else is used
    prefix = (last + rest_of_layer(d, p, d.width, d.mlp_dim, keys=p)) * (d.depth - 1) + last
    behind = keys_values(d, s, suffix.width) + rest_of_layer(d, s, suffix.width, suffix.mlp_dim, keys=p + s)
    return SampleFlops(
        vision=vision_ends(d, patches) + vision,
        prefix=prefix,
        suffix=behind * d.depth + suffix_ends(d),
        recomputable=(vision + prefix + behind * d.depth).forward,
    )


def sampling_flops(d: SceneDimensions, cameras: int, prompt_tokens: int, num_steps: int = 10) -> int:
    """Forward operations of one action chunk: prefix and state once, the suffix at every Euler step."""
    parts = sample_flops(d, cameras, prompt_tokens)
    once = sum_of(d.suffix.once).forward
    return parts.vision.forward + parts.prefix.forward + num_steps * (parts.suffix.forward - once) + once


def vision_ends(d: SceneDimensions, patches: int) -> Flops:
    """The patch convolution, and the projection to the width of the language model."""
    pixels = 3 * d.patch_size**2
    return product(patches, pixels, d.vision_width, input_grad=False) + product(
        patches, d.vision_width, d.width
    )


def vision_layer(d: SceneDimensions, cameras: int) -> Flops:
    """One layer of the vision tower over all images: each attends to itself."""
    n, width = d.patches, d.vision_width
    linears = product(n, width, width) * 4 + product(n, width, d.vision_mlp_dim) * 2
    return (attention_flops(n, n, width) + linears) * cameras


def keys_values(d: SceneDimensions, tokens: int, width: int) -> Flops:
    """The projections to keys and values."""
    return product(tokens, width, d.num_kv_heads * d.head_dim) * 2


def mlp_flops(tokens: int, width: int, mlp_dim: int) -> Flops:
    """A gated MLP."""
    return product(tokens, width, mlp_dim) * 3


def rest_of_layer(d: SceneDimensions, tokens: int, width: int, mlp_dim: int, *, keys: int) -> Flops:
    """A layer without the projections to keys and values."""
    inner = d.num_heads * d.head_dim
    return (
        product(tokens, width, inner) * 2
        + attention_flops(tokens, keys, inner)
        + mlp_flops(tokens, width, mlp_dim)
    )


def suffix_ends(d: SceneDimensions) -> Flops:
    """What surrounds the layers behind the prefix, such as pi0's state, actions, time and output."""
    return sum_of((*d.suffix.products, *d.suffix.once))


def sum_of(products: Iterable[Product]) -> Flops:
    """The operations of matrix products that a `Suffix` names."""
    return sum((product(*sizes, input_grad=grad) for *sizes, grad in products), Flops())
