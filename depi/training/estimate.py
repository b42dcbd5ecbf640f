"""`depi estimate`: the memory that a training configuration needs, before anything is allocated.

Parameters are counted on the meta device, exactly. Activations are counted by formula: what each operation
keeps for the backward pass when layers are not compiled (compiled ones keep less).

W is the width of a stack, M its MLP's size, Q query heads, G key-value heads, D the size of a head. Two-byte
numbers that one layer keeps per token, as CUDA computes (and in brackets the CPU, whose norms keep more):
    vision   10 W (8 W; CUDA's autocast takes LayerNorm to float32) + 2 M + 2 Q
    prefix   6 W (10 W) for two norms: input in float32 and result; 4 M for the MLP;
             3 Q D for queries and attention's output, in rows and in a list; 2 G D for keys and values
    suffix   6 W (10 W) + 4 M + 2 Q D; and the keys and values of all its row, 2 G D per token there
A recomputed layer keeps its input alone, W (in the suffix also the prefix's keys and values), and is computed
again, one layer at a time, in the backward pass. Stacks that no gradient passes keep nothing.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import draccus
import torch
from lerobot.configs import PreTrainedConfig, parser
from lerobot.configs.default import PeftConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from depi.errors import UserError
from depi.flags import parse_flags
from depi.models.scene import SceneDimensions, SceneReader
from depi.policies.adapters import add_adapters, hold_frozen_in_bfloat16
from depi.policies.checkpoint import load_config, resolve_checkpoint
from depi.policies.configuration import dimensions_of, freeze_parts
from depi.policies.families import TYPES, family_of
from depi.training.config import SHARDINGS

CARDS_GB = (24, 40, 48, 80, 141)
# A rule of thumb for the CUDA context, workspaces, and what the allocator cannot use.
RESERVE_GB = 1.5
STACKS = ("vision", "prefix", "suffix")


@dataclass(frozen=True)
class Estimate:
    """Bytes on each GPU, by part; `activations` is also split by kind of layer."""

    weights: int
    gradients: int
    optimizer: int
    compute_copies: int  # bfloat16
    activations: Mapping[str, int]
    recomputed_layer: int  # the largest one, in the backward pass
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
            "bfloat16 copies of weights": self.compute_copies,
            **{f"activations: {kind}": size for kind, size in self.activations.items()},
            "one layer in the backward pass": self.recomputed_layer,
            "reserve for the device": self.reserve,
        }

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())

    def fits(self) -> dict[int, bool]:
        """Whether it fits, by card size in GB."""
        return {card: self.total <= card * 1e9 for card in CARDS_GB}

    def line(self) -> str:
        """One line for a log."""
        return (
            f"memory per device: about {self.total / 1e9:.1f} GB (weights {self.weights / 1e9:.1f}, "
            f"gradients {self.gradients / 1e9:.1f}, optimizer {self.optimizer / 1e9:.1f}, bfloat16 copies "
            f"{self.compute_copies / 1e9:.1f}, activations {sum(self.activations.values()) / 1e9:.1f})"
        )

    def to_dict(self) -> dict[str, object]:
        """As JSON-able values, in bytes."""
        return {
            **self.parts,
            "total": self.total,
            "parameters": self.parameters,
            "trainable_parameters": self.trainable,
            "fits_gb": {str(card): fits for card, fits in self.fits().items()},
        }


def estimate_memory(
    model: SceneReader,
    *,
    batch_size: int,
    images: float = 3,
    words: int = 48,
    recompute: float = 0.0,
    shards: int = 1,
    bfloat16: bool = True,
    cuda: bool = True,
) -> Estimate:
    """Bytes that a training step takes on each device.

    Args:
        model: as it is trained, frozen parts and adapters included; the meta device suffices.
        batch_size: samples per device and micro-batch.
        images: real images per sample, on average if they are packed.
        words: prompt tokens per sample.
        recompute: share, 0..1, of the layers of each stack that are recomputed in the backward pass.
        shards: devices over which weights, gradients and optimizer state are split.
        bfloat16: compute in bfloat16 beside float32 weights.
        cuda: fused norms; False counts what the CPU keeps.
    """
    d, parameters = model.dimensions, list(model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    # Autocast keeps a rounded copy of what is trained; what is frozen is held rounded.
    copied = sum(p.numel() for p in parameters if p.requires_grad and p.ndim >= 2)
    if shards > 1:  # what is gathered at a time: the embedding, and two layers of the language model
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
    )
    return Estimate(
        weights=sum(parameter.numel() * parameter.element_size() for parameter in parameters) // shards,
        gradients=4 * trainable // shards,
        optimizer=8 * trainable // shards,  # AdamW in float32
        compute_copies=2 * copied if bfloat16 else 0,
        activations=activations,
        recomputed_layer=largest,
        reserve=int(RESERVE_GB * 1e9) if cuda else 0,
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=trainable,
    )


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
            prefix * (norms * d.width + 4 * d.mlp_dim + 3 * queries + keys),
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


@dataclass
class EstimateConfig:
    """Say what memory a training configuration needs, and which cards have it; nothing is allocated.

    depi estimate --policy.type=pi0 --policy.dtype=bfloat16 --batch_size=8
    """

    # --policy.type=pi0 or --policy.path=FOLDER_OR_REPO, with the flags that training takes.
    policy: PreTrainedConfig | None = None
    # Samples per process and micro-batch.
    batch_size: int = 8
    # Real images per sample, on average.
    images: float = 3.0
    # Share, 0 to 1, of the layers that are computed again in the backward pass.
    recompute: float = 0.0
    # Adapters, as LeRobot names them: --peft.r=16, --peft.target_modules.
    peft: PeftConfig | None = None
    num_processes: int = 1
    # none: every process holds everything. full: weights, gradients and optimizer state are split; so they
    # are with hybrid, over the processes of one machine.
    sharding: str = "none"
    # Print JSON, in bytes, instead of a table.
    json: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.recompute <= 1:
            raise ValueError(f"--recompute must be 0 to 1, not {self.recompute}")
        if not 0 < self.images <= 100:
            raise ValueError(f"--images must be above 0 and at most 100, not {self.images}")
        if self.sharding not in SHARDINGS:
            raise ValueError(f"--sharding={self.sharding} is none of {', '.join(SHARDINGS)}")


def main(args: list[str]) -> int:
    """Run `depi estimate`."""
    config = parse_flags(
        EstimateConfig,
        args,
        "depi estimate",
        parse=lambda flags: draccus.parse(EstimateConfig, args=parser.filter_path_args(["policy"], flags)),
    )
    path = parser.get_path_arg("policy", args)
    if path:
        overrides = parser.get_cli_overrides("policy", args) or []
        folder = resolve_checkpoint(path, parser.parse_arg("pretrained_revision", overrides))
        config.policy = load_config(folder, overrides)
    if config.policy is None or config.policy.type not in TYPES:
        raise UserError(
            "depi estimate: no policy that DePi trains: give --policy.type=pi0 or value, or --policy.path"
        )
    estimate = estimate_memory(
        model_to_train(config.policy, config.peft),
        batch_size=config.batch_size,
        images=config.images,
        words=config.policy.tokenizer_max_length,
        recompute=config.recompute,
        shards=1 if config.sharding == "none" else config.num_processes,
        bfloat16=config.policy.dtype == "bfloat16",
    )
    if config.json:
        print(json.dumps(estimate.to_dict()))
    else:
        Console().print(_table(estimate))
        print(", ".join(f"{card} GB: {'yes' if fits else 'no'}" for card, fits in estimate.fits().items()))
    return 0


def _table(estimate: Estimate) -> Table:
    title = f"{estimate.parameters / 1e6:,.0f} M parameters, {estimate.trainable / 1e6:,.0f} M trained"
    table = Table("per device", title=title)
    table.add_column("GB", justify="right")
    for name, size in estimate.parts.items():
        table.add_row(name, f"{size / 1e9:.2f}")
    table.add_section()
    table.add_row("total", f"{estimate.total / 1e9:.2f}")
    return table
