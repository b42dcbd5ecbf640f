"""The memory that a training configuration needs, before anything is allocated.

Parameters are counted on the meta device, exactly. Activations are counted by formula: what each operation
keeps for the backward pass when layers are not compiled (compiled ones keep less).

W is the width of a stack, M its MLP's size, Q query heads, G key-value heads, D the size of a head. Two-byte
numbers that one layer keeps per token, as CUDA computes (and in brackets the CPU, whose norms keep more):
    vision   10 W (8 W; CUDA's autocast takes LayerNorm to float32) + 2 M + 2 Q
    prefix   6 W (10 W) for two norms: input in float32 and result; 4 M for the MLP;
             3 Q D for queries and attention's output, in rows and in a list, or where attention takes
             lists 2 Q D and 2 Q for its sums; 2 G D for keys and values
    suffix   6 W (10 W) + 4 M + 2 Q D; and the keys and values of all its row, 2 G D per token there
In float8 the prefix keeps each product's own rounded factor, of one byte: W / 2 more, M / 2 less, and of
attention's output Q D / 2 less, or where attention takes lists, and keeps it too, Q D / 2 more; and weights
rounded to one byte instead of two.
A recomputed layer keeps its input alone, W (in the suffix also the prefix's keys and values), and is computed
again, one layer at a time, in the backward pass. Stacks that no gradient passes keep nothing.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs.default import PeftConfig
from torch import nn

from depi.errors import UserError
from depi.models.scene import SceneDimensions, SceneReader
from depi.policies.adapters import add_adapters, hold_frozen_in_bfloat16
from depi.policies.choices import attention_backends, choices_of
from depi.policies.configuration import dimensions_of, freeze_parts
from depi.policies.families import family_of
from depi.training.config import TrainConfig

# A rule of thumb for the CUDA context, workspaces, and what the allocator cannot use.
RESERVE_GB = 1.5
STACKS = ("vision", "prefix", "suffix")


@dataclass(frozen=True)
class Estimate:
    """Bytes on each GPU, by part; `activations` is also split by kind of layer."""

    weights: int
    gradients: int
    optimizer: int
    average: int  # of the weights, with --ema.decay
    compute_copies: int  # bfloat16, or float8
    activations: Mapping[str, int]
    recomputed_layer: int  # the largest one, in the backward pass
    reused: int  # by gradients, after the activations and copies of the same layers
    reserve: int
    parameters: int
    trainable: int

    @property
    def parts(self) -> dict[str, int]:
        """What adds up to the total."""
        return {
            "weights": self.weights,
            "gradients (float32)": self.gradients,
            "optimizer state": self.optimizer,
            "moving average of the weights": self.average,
            "bfloat16 copies of weights": self.compute_copies,
            **{f"activations: {kind}": size for kind, size in self.activations.items()},
            "one layer in the backward pass": self.recomputed_layer,
            "gradients where activations were": -self.reused,
            "reserve for the device": self.reserve,
        }

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())

    def line(self) -> str:
        """One line for a log."""
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "moving average": self.average,
            "bfloat16 copies": self.compute_copies,
            "activations": sum(self.activations.values()),
        }
        listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items() if size)
        return f"memory per device: about {self.total / 1e9:.1f} GB ({listed})"

    def to_dict(self) -> dict[str, object]:
        """As JSON-able values, in bytes."""
        return {
            **self.parts,
            "total": self.total,
            "parameters": self.parameters,
            "trainable_parameters": self.trainable,
        }


def estimate_run(
    config: TrainConfig,
    model: SceneReader,
    *,
    images: float = 3,
    processes: int = 1,
    local: int | None = None,
    cuda: bool = True,
) -> Estimate:
    """Bytes that each device needs for a training run.

    Args:
        config: with its policy.
        model: as the run trains it, see `model_to_train`.
        images: real images per sample, on average if they are packed.
        processes: of the run.
        local: of them on one machine; None for all.
        cuda: on a GPU.
    """
    policy: Any = config.policy
    return estimate_memory(
        model,
        batch_size=config.batch_size,
        images=images,
        words=policy.tokenizer_max_length,
        recompute=config.recompute or float(policy.gradient_checkpointing),
        shards={"none": 1, "full": processes, "hybrid": local or processes}[config.sharding],
        averaged=config.ema.decay is not None,
        accumulated=config.gradient_accumulation_steps > 1,
        bfloat16=policy.dtype == "bfloat16",
        cuda=cuda,
        lists=config.ragged and "varlen" in attention_backends(policy),
        float8=choices_of(policy).float8,
    )


def estimate_memory(
    model: SceneReader,
    *,
    batch_size: int,
    images: float = 3,
    words: int = 48,
    recompute: float = 0.0,
    shards: int = 1,
    averaged: bool = False,
    accumulated: bool = False,
    bfloat16: bool = True,
    cuda: bool = True,
    lists: bool = True,
    float8: bool = False,
) -> Estimate:
    """Bytes that a training step takes on each device.

    Args:
        model: as it is trained, frozen parts and adapters included; the meta device suffices.
        batch_size: samples per device and micro-batch.
        images: real images per sample, on average if they are packed.
        words: prompt tokens per sample.
        recompute: share, 0..1, of the layers of each stack that are recomputed in the backward pass.
        shards: devices over which weights, gradients and optimizer state are split.
        averaged: a moving average of what is trained is kept.
        accumulated: over several micro-batches: all gradients are there during a forward pass.
        bfloat16: compute in bfloat16 beside float32 weights.
        cuda: fused norms; False counts what the CPU keeps.
        lists: attention takes lists, where it can: on CUDA in bfloat16.
        float8: the language model's products are in float8.
    """
    d, parameters = model.dimensions, list(model.parameters())
    matrices = _language_matrices(model)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    # Autocast keeps a rounded copy of what is trained; what is frozen is held rounded.
    copied = sum(p.numel() for p in parameters if p.requires_grad and p.ndim >= 2)
    if shards > 1 and bfloat16 and not recompute:  # what is gathered is kept
        copied = sum(p.numel() for p in parameters)
    elif shards > 1:  # what is gathered at a time: the embedding, and two layers of the language model
        layers = sum(p.numel() for p in model.language_model.parameters())
        copied = model.token_embedding.weight.numel() + 2 * layers // d.depth
    activations, largest = activation_bytes(
        d,
        batch_size=batch_size,
        images=images,
        words=words,
        recompute=recompute,
        active=_active_stacks(model),
        number_bytes=2 if bfloat16 else 4,
        cuda=cuda,
        lists=lists and bfloat16 and cuda,
        float8=float8 and any(matrix.requires_grad for matrix in matrices),
    )
    gradients = {kind: 4 * size // shards for kind, size in _trained_by_stack(model).items()}
    copies = 2 * copied if bfloat16 else 0
    if float8:
        copies += _float8_copies(model, matrices, recompute, replaced=shards == 1)
    reused = 0 if accumulated else _reused(gradients, activations, 0 if shards > 1 else copies, largest)
    return Estimate(
        weights=sum(parameter.numel() * parameter.element_size() for parameter in parameters) // shards,
        gradients=4 * trainable // (1 if accumulated else shards),  # added up before they are split
        optimizer=8 * trainable // shards,  # AdamW in float32
        average=4 * trainable // shards if averaged else 0,
        compute_copies=copies,
        activations=activations,
        recomputed_layer=largest,
        reused=reused,
        reserve=int(RESERVE_GB * 1e9) if cuda else 0,
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=trainable,
    )


def _language_matrices(model: SceneReader) -> list[nn.Parameter]:
    """Those of the language model's layers, without adapters."""
    named = model.language_model.named_parameters()
    return [value for name, value in named if value.ndim >= 2 and ".lora_" not in name]


def _float8_copies(
    model: SceneReader, matrices: Collection[nn.Parameter], recompute: float, *, replaced: bool
) -> int:
    """Bytes of weights in float8, which layers keep where gradients pass, less those that they replace.

    Args:
        model: as it is trained.
        matrices: its weights that products round to float8.
        recompute: share of the layers that are recomputed, and keep none.
        replaced: copies in bfloat16 of all that is trained would be kept.
    """
    kept = sum(matrix.numel() for matrix in matrices) if "prefix" in _active_stacks(model) else 0
    instead = 2 * sum(matrix.numel() for matrix in matrices if matrix.requires_grad) if replaced else 0
    return int((1.0 - recompute) * kept) - instead


def _trained_by_stack(model: SceneReader) -> dict[str, int]:
    """Trained parameters by kind of layer, in the order in which the backward pass comes to them."""
    early = _trained_parameters(model.vision, model.image_proj, model.token_embedding)
    prefix = _trained_parameters(model.language_model)
    return {
        "action expert": _trained_parameters(model) - prefix - early,
        "language model": prefix,
        "vision": early,
    }


def _trained_parameters(*parts: nn.Module) -> int:
    return sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)


def _reused(gradients: Mapping[str, int], activations: Mapping[str, int], copies: int, largest: int) -> int:
    """Bytes by which the peak of a step is below the sum of its parts.

    The peak is at the end of the forward pass, or where the backward pass has made gradients of some kinds of
    layers, and dropped what they kept and their copies; there it may compute the largest layer again.

    Args:
        gradients: bytes by kind of layer, in the order of the backward pass.
        activations: bytes by kind of layer.
        copies: bytes of rounded weights that go with the activations.
        largest: bytes of the largest recomputed layer.
    """
    trained = max(1, sum(gradients.values()))
    above, most = 0, 0
    for kind, made in gradients.items():
        most = max(most, above + largest)
        above += made - activations[kind] - copies * made // trained
    return sum(gradients.values()) + largest - max(most, above)


def _active_stacks(model: SceneReader) -> list[str]:
    """The stacks that gradients pass, on their way to whatever is trained."""
    vision = _trained(model.vision)
    prefix = vision or any(map(_trained, (model.image_proj, model.token_embedding, model.language_model)))
    return [stack for stack, active in zip(STACKS, (vision, prefix, True), strict=True) if active]


def _trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def activation_bytes(
    d: SceneDimensions,
    *,
    batch_size: int,
    images: float = 3,
    words: int = 48,
    recompute: float = 0.0,
    active: Collection[str] = STACKS,
    number_bytes: int = 2,
    cuda: bool = True,
    lists: bool = False,
    float8: bool = False,
) -> tuple[dict[str, int], int]:
    """Bytes kept for the backward pass by kind of layer, and those of the largest layer that is recomputed.

    Arguments as for `estimate_memory`; `active` are the stacks that gradients pass. The formulas stand at the
    top of this file.
    """
    patches = batch_size * images * d.patches
    prefix = patches + batch_size * words
    tokens, width, mlp_dim = d.suffix[:3]
    suffix = batch_size * tokens
    queries, keys = d.num_heads * d.head_dim, 2 * d.num_kv_heads * d.head_dim
    norms, vision_norms = (6, 10) if cuda else (10, 8)
    mixing = 2 * queries + 2 * d.num_heads if lists else 3 * queries
    rounded = (d.width - d.mlp_dim + (queries if lists else -queries)) / 2 if float8 else 0
    # stack: name, layers, numbers that a layer keeps, numbers that a recomputed one keeps
    layers: dict[str, tuple[str, int, float, float]] = {
        "vision": (
            "vision",
            d.vision_depth,
            patches * (vision_norms * d.vision_width + 2 * d.vision_mlp_dim + 2 * d.vision_heads),
            patches * d.vision_width,
        ),
        "prefix": (
            "language model",
            d.depth - 1,
            prefix * (norms * d.width + 4 * d.mlp_dim + mixing + keys + rounded),
            prefix * d.width,
        ),
        "suffix": (
            "action expert",
            d.depth,
            suffix * (norms * width + 4 * mlp_dim + 2 * queries) + (prefix + suffix) * keys,
            suffix * width + prefix * keys,
        ),
    }
    kinds = {}
    largest = 0.0
    for stack, (name, depth, whole, kept) in layers.items():
        again = int(depth * recompute)
        present = stack in active
        kinds[name] = int(number_bytes * ((depth - again) * whole + again * kept)) if present else 0
        largest = max(largest, number_bytes * whole if present and again else 0)
    # Between the layers: rotary tables, the suffix's mask, what its embeddings are made of and its last norm,
    # the last layer of the prefix (one norm), the images and vision's last norm.
    row = math.ceil((prefix + suffix) / batch_size / 16) * 16
    rest = 4 * d.head_dim * (prefix + suffix) + number_bytes * suffix * d.num_heads // d.num_kv_heads * row
    around = sum(vectors * size for vectors, size, _, grad in d.suffix.products if grad)
    rest += 4 * batch_size * around + suffix * width * (4 + norms)
    rest += prefix * d.width * norms if "prefix" in active else 0
    rest += number_bytes * patches * (3 * d.patch_size**2 + 2 * d.vision_width) if "vision" in active else 0
    return {**kinds, "between layers": int(rest)}, int(largest)


def model_to_train(config: Any, peft: PeftConfig | None) -> SceneReader:
    """The network of a configuration as training would hold it, on the meta device.

    Raises:
        UserError: the configuration is not available, or adapters find no target.
    """
    with torch.device("meta"):
        model = family_of(config).network(dimensions_of(config))
    freeze_parts(model, config)
    if peft is not None:
        if not family_of(config).acts:
            raise UserError("--peft adapts pi0, a value function is trained whole: leave it out")
        add_adapters(model, peft)
    if config.dtype == "bfloat16":
        hold_frozen_in_bfloat16(model)
    return model
