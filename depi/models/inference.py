"""Weights for sampling only: in the compute type of the network, and joined into fewer matrices.

For one chunk of one sample, reading weights and launching kernels takes more time than arithmetic: no weight
is cast while sampling, and matrices that multiply the same vectors are one product.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depi.models.attention import attention, dot_product_attention
from depi.models.flow import FlowNetwork
from depi.models.gemma import (
    GemmaLayer,
    KeysValues,
    Modulations,
    Rotation,
    gated,
    normalise,
    rotate,
)
from depi.models.packing import Rows, any_length, to_list, to_rows
from depi.models.siglip import SiglipAttention


class FusedSiglipAttention(nn.Module):
    """A `SiglipAttention` with one matrix for queries, keys and values."""

    def __init__(self, layer: SiglipAttention, dtype: torch.dtype):
        super().__init__()
        self.num_heads, self.backends = layer.num_heads, layer.backends
        parts = [layer.q_proj, layer.k_proj, layer.v_proj]
        self.qkv = side_by_side(parts, dtype)
        self.bias = nn.Parameter(torch.cat([part.bias.detach().to(dtype) for part in parts]), False)
        self.out_proj = layer.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """As `SiglipAttention.forward`."""
        heads = F.linear(x, self.qkv, self.bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = heads.transpose(1, 3).unbind(dim=2)  # [I, heads, N, W / heads]
        mixed = dot_product_attention(q, k, v, backends=self.backends)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class FusedLayer(nn.Module):
    """A `GemmaLayer` with one matrix for queries, keys and values, and one for gate and up."""

    def __init__(self, layer: GemmaLayer, dtype: torch.dtype):
        super().__init__()
        self.head_dim = layer.head_dim
        self.backends = layer.backends
        self.kv_heads = layer.k_proj.out_features // layer.head_dim
        self.attention_norm, self.mlp_norm = layer.attention_norm, layer.mlp_norm
        self.qkv = side_by_side([layer.q_proj, layer.k_proj, layer.v_proj], dtype)
        self.o = side_by_side([layer.o_proj], dtype)
        self.gate_up = side_by_side([layer.mlp.gate_proj, layer.mlp.up_proj], dtype)
        self.down = side_by_side([layer.mlp.down_proj], dtype)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        rows: Rows | None,
        bias: Tensor,
        cache: Tensor | None = None,
        modulations: Modulations | None = None,
    ) -> tuple[Tensor, KeysValues | None]:
        """As `GemmaLayer.forward`, but earlier keys and values stand in a `cache`; see `with_room`.

        Its own ones then stand there, too, and are not returned.
        """
        before, behind = modulations or (None, None)
        normed, passed = normalise(self.attention_norm, x, before)
        heads = F.linear(normed, self.qkv).unflatten(-1, (-1, self.head_dim))
        turned = to_rows(rotate(heads[..., : -self.kv_heads, :], rotation), rows)
        q, k = turned[..., : -self.kv_heads, :], turned[..., -self.kv_heads :, :]
        v = to_rows(heads[..., -self.kv_heads :, :], rows)
        own = None
        if cache is None:
            # They are kept: as they are they would keep the queries, too.
            k, v = torch.stack((k, v), dim=2).unbind(dim=2)
            own = k, v
            mixed = attention(q.contiguous(), k, v, bias, self.backends)
        else:
            cache[:, -k.shape[1] :] = torch.stack((k, v), dim=2)
            mixed = short_attention(q, cache, bias)
        x = x + gated(F.linear(to_list(mixed, rows), self.o), passed)
        normed, passed = normalise(self.mlp_norm, x, behind)
        gate, up = F.linear(normed, self.gate_up).chunk(2, dim=-1)
        change = F.linear(F.gelu(gate, approximate="tanh") * up, self.down)
        return x + gated(change, passed), own


def with_room(keys_values: Sequence[KeysValues], tokens: int) -> list[Tensor]:
    """Keys and values of earlier tokens, for each layer [B, P, G, D], as caches, each [B, P + L, 2, G, D].

    Behind them is room for those of so many tokens, L, which a layer writes there itself.
    """
    together = torch.stack([each for pair in keys_values for each in pair])
    together = together.unflatten(0, (-1, 2)).permute(0, 2, 3, 1, 4, 5)  # [layers, B, P, 2, G, D]
    layers, batch, earlier, *heads = together.shape
    room = together.new_empty(layers, batch, earlier + tokens, *heads)
    room[:, :, :earlier] = together
    return [any_length(cache, 1) for cache in room]


def short_attention(q: Tensor, cache: Tensor, bias: Tensor) -> Tensor:
    """What `attention` computes, for few queries over many keys and values, [B, K, 2, G, D].

    Fused kernels parallelise over queries, and the 400 of a chunk would occupy a tenth of a GPU; plain matrix
    products are parallelised over keys and channels too.
    """
    length, groups = q.shape[1], cache.shape[3]
    k, v = cache.transpose(1, 3).unbind(dim=2)  # each [B, G, K, D]
    q = q.unflatten(2, (groups, -1)).transpose(1, 2).flatten(2, 3)  # [B, G, L * Q / G, D]
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3) + bias
    # It computes in float32, and rounds once; autocast would make a float32 tensor of the scores first.
    with torch.autocast(q.device.type, enabled=False):
        weights = scores.softmax(dim=-1)
    return (weights @ v).unflatten(2, (length, -1)).transpose(1, 2).flatten(2)


def side_by_side(layers: Sequence[nn.Linear], dtype: torch.dtype) -> nn.Parameter:
    """One frozen matrix that replaces those of `layers`, with their outputs one after the other."""
    weights = torch.cat([layer.weight.detach().to(dtype) for layer in layers])
    return nn.Parameter(weights, requires_grad=False)


@torch.no_grad()
def prepare_for_inference(model: FlowNetwork, dtype: torch.dtype) -> None:
    """Convert the matrices of all layers to `dtype`, in place and one layer at a time, and freeze everything.

    Norms, positions, and the layers around the action expert stay in float32, as in training.
    Afterwards the network can neither be trained nor saved: its parameters have other names.

    Raises:
        TypeError: a layer has other modules than its matrices, such as an adapter; nothing is changed then.
    """
    for name, module in (*model.prefix.named_modules(), *model.suffix.named_modules()):
        if hasattr(module, "base_layer"):
            raise TypeError(f"{name} is a {type(module).__name__}; merge adapters into the weights first")
    model.requires_grad_(False)
    for stack in (model.prefix, model.suffix):
        for number, layer in enumerate(stack.layers):
            stack.layers[number] = FusedLayer(layer, dtype)
    for layer in model.vision.layers:
        layer.attention = FusedSiglipAttention(layer.attention, dtype)
    rest = (model.prefix.last_layer, model.suffix)  # of the suffix, what modulates its norms
    wide = (model.vision.layers, model.image_proj, model.token_embedding, *rest)
    for module in (model.vision.patch_embedding, *(inner for part in wide for inner in part.modules())):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
