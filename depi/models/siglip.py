"""SigLIP's vision tower: an image becomes one vector per patch.

Letters in shapes: I images, N patches per image, W width, R image side in pixels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from depi.models.attention import BACKENDS, Backends, dot_product_attention
from depi.models.checkpointing import planned
from depi.models.linear import linear
from depi.models.packing import any_length


class SiglipAttention(nn.Module):
    """Every patch attends to every patch."""

    backends: Backends = BACKENDS

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[I, N, W] -> [I, N, W]."""
        q, k, v = (
            linear(x, proj).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [I, heads, N, W / heads]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = dot_product_attention(q, k, v, backends=self.backends)
        return linear(mixed.transpose(1, 2).flatten(2), self.out_proj)


class SiglipLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = SiglipAttention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """[I, N, W] -> [I, N, W]."""
        # Autocast leaves norms in float32; rounded here once, no layer keeps a copy of its own.
        x = x + self.attention(self.attention_norm(x).type_as(x))
        hidden = F.gelu(linear(self.mlp_norm(x).type_as(x), self.fc1), approximate="tanh")
        return x + linear(hidden, self.fc2)


class SiglipTower(nn.Module):
    """Patch embedding, learned positions, transformer blocks, final norm; no pooling head."""

    def __init__(
        self, *, image_size: int, patch_size: int, width: int, depth: int, num_heads: int, mlp_dim: int
    ):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.position_embedding = nn.Embedding((image_size // patch_size) ** 2, width)
        self.layers = nn.ModuleList(SiglipLayer(width, num_heads, mlp_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.recompute = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Float images [I, 3, R, R] in -1..1 -> [I, N, W]."""
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)  # [I, N, W], rows of patches first
        x = (patches + self.position_embedding.weight).type_as(patches)  # autocast leaves the sum in float32
        x = any_length(x.contiguous(), 0)  # else all layers would keep the order of the convolution's result
        for layer in planned(self.layers, self.recompute):
            x = layer(x)
        return self.norm(x)
