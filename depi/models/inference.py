"""Weights for sampling only: in the compute type of the network, and joined into fewer matrices.

For one chunk of one sample, reading weights and launching kernels takes more time than arithmetic: no weight
is cast while sampling, and matrices that multiply the same vectors are one product.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depi.models.attention import attention
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
from depi.models.packing import Rows, to_list, to_rows


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
        earlier: KeysValues | None = None,
        modulations: Modulations | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """As `GemmaLayer.forward`."""
        before, behind = modulations or (None, None)
        normed, passed = normalise(self.attention_norm, x, before)
        heads = F.linear(normed, self.qkv).unflatten(-1, (-1, self.head_dim))
        turned = to_rows(rotate(heads[..., : -self.kv_heads, :], rotation), rows)
        q, own_k = turned[..., : -self.kv_heads, :], turned[..., -self.kv_heads :, :]
        own_v = to_rows(heads[..., -self.kv_heads :, :], rows)
        if earlier is None:
            # They are kept: as views of a larger tensor they would make compiled code compile again.
            own_k, own_v = own_k.contiguous(), own_v.contiguous()
            mixed = attention(q.contiguous(), own_k, own_v, bias, self.backends)
        else:
            k, v = torch.cat((earlier[0], own_k), dim=1), torch.cat((earlier[1], own_v), dim=1)
            mixed = short_attention(q, k, v, bias)
        x = x + gated(F.linear(to_list(mixed, rows), self.o), passed)
        normed, passed = normalise(self.mlp_norm, x, behind)
        gate, up = F.linear(normed, self.gate_up).chunk(2, dim=-1)
        change = F.linear(F.gelu(gate, approximate="tanh") * up, self.down)
        return x + gated(change, passed), (own_k, own_v)


def short_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """What `attention` computes, for few queries over many keys.

    Fused kernels parallelise over queries, and the 400 of a chunk would occupy a tenth of a GPU; plain matrix
    products are parallelised over keys and channels too.
    """
    length, head_dim = q.shape[1], q.shape[3]
    q = q.unflatten(2, (k.shape[2], -1)).transpose(1, 2).flatten(2, 3)  # [B, G, L * Q / G, D]
    scores = (q * head_dim**-0.5) @ k.permute(0, 2, 3, 1)
    weights = (scores.float() + bias).softmax(dim=-1).type_as(v)
    return (weights @ v.transpose(1, 2)).unflatten(2, (length, -1)).transpose(1, 2).flatten(2)


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
    rest = (model.prefix.last_layer, model.suffix)  # of the suffix, what modulates its norms
    wide = (model.vision.layers, model.image_proj, model.token_embedding, *rest)
    for module in (model.vision.patch_embedding, *(inner for part in wide for inner in part.modules())):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
