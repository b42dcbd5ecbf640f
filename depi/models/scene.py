"""The first part of every network of DePi: images and prompt become tokens of a language model.

Letters in shapes:
    B batch   C camera slots   R image side in pixels   N patches per image   L prompt tokens
    T tokens of all samples in one list   X padded size of state   W width of the language model
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.init import normal_, ones_, zeros_

from depi.models.attention import BACKENDS, Backends, attention_bias, takes_lists
from depi.models.float8 import use_float8
from depi.models.gemma import RMSNorm, Rotation, ZeroLinear, rotary_table
from depi.models.packing import Packing, Rows, any_length, by_sample
from depi.models.siglip import SiglipTower

# SigLIP So400m/14 at 224 pixels and PaliGemma's vocabulary, as published; and sizes that train on a laptop.
SO400M = {
    "image_size": 224,
    "patch_size": 14,
    "vision_width": 1152,
    "vision_depth": 27,
    "vision_heads": 16,
    "vision_mlp_dim": 4304,
    "vocab_size": 257_152,
}
# Modes of torch.compile that capture CUDA graphs -> the same without.
WITHOUT_GRAPHS = {"max-autotune": "max-autotune-no-cudagraphs", "reduce-overhead": "default"}
TINY_VISION = {
    "image_size": 84,
    "patch_size": 14,
    "vision_width": 128,
    "vision_depth": 2,
    "vision_heads": 4,
    "vision_mlp_dim": 256,
    "vocab_size": 1024,
}


Product = tuple[int, int, int, bool]


class Observation(NamedTuple):
    """The inputs of a network."""

    images: Tensor  # [B, C, 3, R, R], uint8 0..255 or float 0..1
    image_mask: Tensor  # bool [B, C], False where the camera is absent; its pixels are then ignored
    tokens: Tensor  # int64 [B, L]
    token_mask: Tensor  # bool [B, L], False where padded
    state: Tensor  # normalised, float32 [B, X]
    packing: Packing | None = None  # of both masks, on the same device; None computes what is masked as well


class Suffix(NamedTuple):
    """The tokens behind a prefix, which read it layer by layer.

    products: the matrix products around them, for `depi.models.flops`: vectors, their size, the result's, and
        whether a gradient passes on to the vectors.
    once: those that sampling has once for all Euler steps.
    """

    tokens: int
    width: int
    mlp_dim: int
    products: tuple[Product, ...]
    once: tuple[Product, ...] = ()


@dataclass(frozen=True)
class SceneDimensions:
    """Sizes of a vision tower and a language model."""

    image_size: int
    patch_size: int
    vision_width: int
    vision_depth: int
    vision_heads: int
    vision_mlp_dim: int
    vocab_size: int
    width: int
    mlp_dim: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image size {self.image_size} is not a multiple of patch size {self.patch_size}"
            )
        if self.vision_width % self.vision_heads:
            raise ValueError(
                f"vision width {self.vision_width} is not a multiple of its {self.vision_heads} heads"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} key-value heads evenly"
            )
        if self.head_dim % 2:
            raise ValueError(f"head size {self.head_dim} must be even")

    @property
    def patches(self) -> int:
        """Patches per image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def suffix(self) -> Suffix:
        """What stands behind images and prompt."""
        raise NotImplementedError

    @property
    def heads_per_group(self) -> int:
        """Query heads that share a key-value head."""
        return self.num_heads // self.num_kv_heads


class SceneReader(nn.Module):
    """A network that reads images and a prompt; the order of the tokens enters only by their positions."""

    backends: Backends = BACKENDS

    def __init__(self, d: SceneDimensions):
        super().__init__()
        self.dimensions = d
        self.vision = SiglipTower(
            image_size=d.image_size,
            patch_size=d.patch_size,
            width=d.vision_width,
            depth=d.vision_depth,
            num_heads=d.vision_heads,
            mlp_dim=d.vision_mlp_dim,
        )
        self.image_proj = nn.Linear(d.vision_width, d.width)
        self.token_embedding = nn.Embedding(d.vocab_size, d.width)

    def embed_prefix(self, images: Tensor, tokens: Tensor, packing: Packing, prompts: int = 1) -> Tensor:
        """Images [B, C, 3, R, R] and tokens [B, L] -> list of tokens [T, W]: patches, then words.

        With several prompts for each sample, `tokens` and `packing`, which is made by `pad`, have all samples
        with their first prompts, then all with their second ones; images are encoded once.
        """
        scale = 127.5 if images.dtype == torch.uint8 else 0.5
        # All cameras of all samples in one call; in -1..1.
        encoded = packing.image[: len(packing.image) // prompts]
        pixels = images.flatten(0, 1).index_select(0, encoded).float() / scale - 1.0
        patches = self.image_proj(self.vision(pixels)).flatten(0, 1)  # [I * N, W]
        if prompts > 1:
            patches = patches.repeat(prompts, 1)
        embedding = self.token_embedding
        words = embedding(tokens.flatten()[packing.word]) * math.sqrt(embedding.embedding_dim)
        return torch.cat((patches, words.type_as(patches)))

    @property
    def language_model(self) -> nn.Module:
        """The stack that reads images and prompt."""
        return self.stacks()[1]

    def stacks(self) -> tuple[nn.Module, ...]:
        """Its transformers: vision tower, language model, and what more there is.

        Each has the attribute `recompute`, a share of its layers; see `planned`.
        """
        raise NotImplementedError

    def blocks(self) -> tuple[nn.Module, ...]:
        """The layers of all transformers: what is compiled, and sharded, one by one."""
        raise NotImplementedError

    def set_recompute(self, share: float) -> None:
        """Recompute this share, 0..1, of each stack's layers in the backward pass; see `planned`."""
        for part in self.stacks():
            part.recompute = share

    def set_attention(self, backends: Backends) -> None:
        """Allow these kernels of `depi.models.attention` alone."""
        for module in self.modules():
            if hasattr(module, "backends"):
                module.backends = backends

    def use_float8(self) -> None:
        """Let the language model, which has most of the products, multiply in float8 in training.

        Raises:
            ValueError: its sizes are no multiples of 16.
        """
        use_float8(self.language_model)

    def compile_layers(self, mode: str | None = None, **options: Any) -> None:
        """Compile every layer in place, with `torch.compile`'s options: equal layers share their code.

        Masks, rotary tables and random numbers are made outside, once per step. Lengths of lists and rows are
        symbolic in the compiled code, so that new lengths do not recompile it. CUDA graphs of compile modes
        are left out: each layer would be a graph of its own, whose memory the next one reuses.
        """
        for layer in self.blocks():
            layer.compile(**compilation(mode), **options)

    def init_weights(self) -> None:
        """Random weights; see `draw_weights`."""
        draw_weights(self)


def compilation(mode: str | None) -> dict[str, Any]:
    """Options of `torch.compile` for parts of a network; see `SceneReader.compile_layers`."""
    # Training, evaluation and sampling each compile a layer again: more often than the default of 8.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return {"fullgraph": True, "mode": WITHOUT_GRAPHS.get(mode or "", mode)}


@torch.no_grad()
def draw_weights(part: nn.Module) -> None:
    """Random weights: normal with variance 1 / inputs for matrices, zero biases, unit norms, no modulation.

    Token and position vectors have length about 1 (tokens are scaled by sqrt(width) when they are read).
    """
    for module in part.modules():
        if isinstance(module, ZeroLinear):
            zeros_(module.weight)
            zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.LayerNorm):
            ones_(module.weight)
            zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            zeros_(module.weight)


def place_prefix(
    x: Tensor, packing: Packing, d: SceneDimensions, backends: Backends
) -> tuple[Tensor, Rotation, Rows, Tensor | None]:
    """Positions of the tokens [T, W] that `embed_prefix` lists, and the attention mask among them.

    Returns:
        The list, in the order of its samples where attention takes lists; its rotary table and rows; and an
        `attention_bias` for rows where it does not. Compiled code takes any lengths.
    """
    rows = packing.rows
    if packing.sequences is not None and takes_lists(x, d.head_dim, backends):
        x, rows = by_sample(x, packing)
    # Absent tokens have no position: the others are numbered without them.
    positions = (rows.filled.cumsum(dim=1) - 1).flatten()[rows.place]
    rotation = rotary_table(positions, d.head_dim)
    for tensor in (x, *rotation, rows.place, rows.used):
        any_length(tensor, 0)
    for tensor in (rows.source, rows.filled):
        any_length(tensor, 1)
    if rows.starts is not None:
        return x, rotation, rows, None
    # Every prefix token attends to every real one of its sample.
    bias = attention_bias(rows.filled[:, None], d.heads_per_group, x.dtype)
    return x, rotation, rows, any_length(bias, 3)
