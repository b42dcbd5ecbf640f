"""Weights between DePi's names and the names in a LeRobot `model.safetensors`.

On disk every size has LeRobot's names, in float32, each with the prefix `model.`. LeRobot's network has parts
that never influence its output, and DePi's has not got them. They are written all the same, because stock
LeRobot refuses a file without them: the language model's `lm_head` as a copy of the token embedding (to which
PaliGemma ties it), everything else as zeros, with which the last prefix layer passes its input through.

Files from elsewhere are read too: openpi's, which lack the prefix, are often bfloat16 and hold tied tensors
once; and those of LeRobot before 0.4, which name PaliGemma's parts as older transformers did and carry their
normalisation statistics among the weights.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file
from torch import Tensor

from depi.errors import UserError, one_line
from depi.files import atomic_write
from depi.models.flow import FlowDimensions
from depi.models.scene import SceneDimensions, SceneReader

PALIGEMMA = "paligemma_with_expert.paligemma."
VISION = PALIGEMMA + "model.vision_tower.vision_model."
LANGUAGE = PALIGEMMA + "model.language_model."
EXPERT = "paligemma_with_expert.gemma_expert."

# How older versions of transformers named PaliGemma's parts; the first match counts.
OLD_NAMES = {
    PALIGEMMA + "language_model.lm_head.": PALIGEMMA + "lm_head.",
    PALIGEMMA + "language_model.model.": LANGUAGE,
    PALIGEMMA + "language_model.": LANGUAGE,
    PALIGEMMA + "vision_tower.": PALIGEMMA + "model.vision_tower.",
    PALIGEMMA + "multi_modal_projector.": PALIGEMMA + "model.multi_modal_projector.",
}
# LeRobot before 0.4 kept statistics in modules of these names.
STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
# Quantised weights mean nothing without their scales.
READABLE_DTYPES = ("F32", "BF16", "F16", "F64")

EMBEDDING = LANGUAGE + "embed_tokens.weight"
TIED_HEAD = PALIGEMMA + "lm_head.weight"

# DePi's name -> LeRobot's; `#` stands for a layer number, and the longest match counts.
# Names that match nothing are the same on both sides.
RENAMES = {
    "vision.patch_embedding": VISION + "embeddings.patch_embedding",
    "vision.position_embedding": VISION + "embeddings.position_embedding",
    "vision.layers.#.attention_norm": VISION + "encoder.layers.#.layer_norm1",
    "vision.layers.#.attention": VISION + "encoder.layers.#.self_attn",
    "vision.layers.#.mlp_norm": VISION + "encoder.layers.#.layer_norm2",
    "vision.layers.#": VISION + "encoder.layers.#.mlp",
    "vision.norm": VISION + "post_layernorm",
    "image_proj": PALIGEMMA + "model.multi_modal_projector.linear",
    "token_embedding": LANGUAGE + "embed_tokens",
    "prefix.layers.#.attention_norm": LANGUAGE + "layers.#.input_layernorm",
    "prefix.layers.#.mlp_norm": LANGUAGE + "layers.#.post_attention_layernorm",
    "prefix.layers.#.mlp": LANGUAGE + "layers.#.mlp",
    "prefix.layers.#": LANGUAGE + "layers.#.self_attn",
    "suffix.layers.#.attention_norm": EXPERT + "model.layers.#.input_layernorm",
    "suffix.layers.#.mlp_norm": EXPERT + "model.layers.#.post_attention_layernorm",
    "suffix.layers.#.mlp": EXPERT + "model.layers.#.mlp",
    "suffix.layers.#": EXPERT + "model.layers.#.self_attn",
    "suffix.norm": EXPERT + "model.norm",
    # pi0.5's expert
    "suffix.modulation.attention.#": EXPERT + "model.layers.#.input_layernorm.dense",
    "suffix.modulation.mlp.#": EXPERT + "model.layers.#.post_attention_layernorm.dense",
    "suffix.modulation.norm": EXPERT + "model.norm.dense",
}


def lerobot_name(name: str, depth: int) -> str:
    """LeRobot's name, without the leading `model.`, for a parameter of a `FlowNetwork`."""
    name = name.replace("prefix.last_layer.", f"prefix.layers.{depth - 1}.")
    number = re.search(r"\.(\d+)\.", name)
    pattern = name if number is None else name.replace(number[0], ".#.", 1)
    for ours in sorted(RENAMES, key=len, reverse=True):
        if pattern.startswith(ours + "."):
            renamed = RENAMES[ours] + pattern[len(ours) :]
            return renamed if number is None else renamed.replace(".#.", number[0], 1)
    return name


@dataclass(frozen=True)
class Layout:
    """How the weights of a network are named in a file, without the leading `model.`.

    name: the network's name of a parameter -> the file's.
    unused: names and shapes of what the file holds besides, without influence on the output.
    """

    name: Callable[[str], str]
    unused: Mapping[str, tuple[int, ...]]


def own_layout(d: SceneDimensions) -> Layout:
    """The network's own names, and nothing else."""
    return Layout(str, {})


def lerobot_layout(d: FlowDimensions) -> Layout:
    """LeRobot's names, and the parameters that it has besides."""
    return Layout(partial(lerobot_name, depth=d.depth), unused_shapes(d))


def unused_shapes(d: FlowDimensions) -> dict[str, tuple[int, ...]]:
    """LeRobot's names, without `model.`, and shapes of the parameters that never influence its output."""
    last = f"{LANGUAGE}layers.{d.depth - 1}."
    return {
        TIED_HEAD: (d.vocab_size, d.width),
        EXPERT + "lm_head.weight": (d.vocab_size, d.expert_width),
        last + "self_attn.q_proj.weight": (d.num_heads * d.head_dim, d.width),
        last + "self_attn.o_proj.weight": (d.width, d.num_heads * d.head_dim),
        last + "post_attention_layernorm.weight": (d.width,),
        last + "mlp.gate_proj.weight": (d.mlp_dim, d.width),
        last + "mlp.up_proj.weight": (d.mlp_dim, d.width),
        last + "mlp.down_proj.weight": (d.width, d.mlp_dim),
        LANGUAGE + "norm.weight": (d.width,),
    }


def save_weights(path: Path, state: Mapping[str, Tensor], layout: Layout) -> None:
    """Write `state` as a `model.safetensors` of this layout, atomically.

    float32 weights on the CPU are written from where they lie, others are copied there first. The parts that
    LeRobot has and DePi has not cost no memory: they are written from the embedding and from untouched zeros.
    """
    weights = {
        layout.name(name.removeprefix("model.")): value.detach().to("cpu", torch.float32).contiguous()
        for name, value in state.items()
    }
    zeros = np.zeros(max((math.prod(shape) for shape in layout.unused.values()), default=0), dtype=np.float32)
    specs = {f"model.{name}": _spec(weights[name].shape, weights[name].data_ptr()) for name in weights}
    for name, shape in layout.unused.items():
        source = weights[EMBEDDING].data_ptr() if name == TIED_HEAD else zeros.ctypes.data
        specs[f"model.{name}"] = _spec(shape, source)
    with atomic_write(path) as temporary:
        serialize_file(specs, temporary, metadata={"format": "pt"})


def _spec(shape: Sequence[int], address: int) -> TensorSpec:
    return TensorSpec(dtype="float32", shape=shape, data_ptr=address, data_len=4 * math.prod(shape))


@contextmanager
def open_weights(path: Path, framework: str = "pt", **options: Any) -> Iterator[safe_open]:
    """A safetensors file; `options` are those of `safe_open`.

    Raises:
        UserError: it is missing or damaged, which may show while it is read.
    """
    try:
        with safe_open(path, framework=framework, **options) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or no safetensors file ({one_line(error, 300)}); fetch it again"
        ) from None


def load_weights(
    path: Path,
    model: SceneReader,
    layout: Layout,
    *,
    device: str | torch.device = "cpu",
    strict: bool = True,
) -> list[str]:
    """Fill `model`, which may be on the meta device, from a `model.safetensors`: float32, on `device`.

    Names may lack the prefix `model.` or be those of older versions; an absent token embedding is read from
    the `lm_head` tied to it. Everything is compared before anything is read. Each tensor is read once, into
    its place: the memory in use never exceeds the parameters by more than the largest tensor.

    Args:
        path: the file.
        model: the network to fill.
        layout: the names of its weights in the file.
        device: where its parameters shall be.
        strict: refuse a file that lacks parameters or has ones that belong nowhere.

    Returns:
        What did not fit, empty if strict: names that the file lacks, whose parameters are left as they are,
        and names in it that belong nowhere.

    Raises:
        UserError: the file is missing, damaged or of another network, a shape or dtype is wrong, two names
            mean the same parameter, a weight is not finite, or `strict` and names differ.
    """
    with open_weights(path, device=_numbered(device), backend="pread") as file:
        found = _canonical_names(path, file.offset_keys())
        sources, leftovers = _match(model, layout, found)
        slices = {name: file.get_slice(found[name]) for name in sources}
        _check(path, model, sources, slices, leftovers if strict else [])
        # In the order of the file: disks read forwards faster.
        weights = {
            sources[name]: file.get_tensor(key).float() for name, key in found.items() if name in sources
        }
    check_finite(path, weights)
    model.load_state_dict(weights, strict=False, assign=True)
    return leftovers


def check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not numbers, with which every answer of a policy would be none either.

    Raises:
        UserError: one is NaN or infinite; the message names its tensor.
    """
    # A sum passes over the memory once and needs no more of it.
    damaged = [name for name, value in weights.items() if not value.sum(dtype=torch.float32).isfinite()]
    if damaged:
        raise UserError(
            f"{path} has weights that are NaN or infinite, in {len(damaged)} of {len(weights)} "
            f"tensors, first {damaged[0]}: choose another checkpoint"
        )


@contextmanager
def no_larger_than(path: Path) -> Iterator[None]:
    """Let the body build networks about as large as a file's weights, and not larger ones.

    LeRobot builds a network of whatever size a configuration says before it looks into the file: terabytes,
    or a million layers. A network may hold parameters that the file has once or not at all, so there is room.

    Raises:
        UserError: it builds a larger one, or the file is missing or damaged.
    """
    with open_weights(path) as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118  no mapping
    room = {"tensors": 4 * len(shapes) + 2000, "numbers": 4 * sum(map(math.prod, shapes)) + (1 << 26)}

    def count(module: torch.nn.Module, name: str, parameter: Tensor | None) -> None:
        room["tensors"] -= 1
        room["numbers"] -= 0 if parameter is None else parameter.numel()
        if min(room.values()) < 0:
            raise UserError(f"{path} is far smaller than the policy that its config.json describes")

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _numbered(device: str | torch.device) -> str:
    """A device as safetensors takes it, for which `cuda` is the first one, whatever the process's own is."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return f"cuda:{torch.cuda.current_device()}"
    return str(device)


def canonical_name(key: str) -> str:
    """LeRobot's present name, without the leading `model.`, for a key of a file of any version."""
    name = key.removeprefix("model.")
    for old, new in OLD_NAMES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _canonical_names(path: Path, keys: Iterable[str]) -> dict[str, str]:
    """Canonical name -> key in the file, for everything in it but statistics."""
    found: dict[str, str] = {}
    for key in keys:
        name = canonical_name(key)
        if name.startswith(STATISTICS):
            continue
        if name in found:
            raise UserError(f"{path} holds {name} twice, as {found[name]} and as {key}")
        found[name] = key
    return found


def _match(model: SceneReader, layout: Layout, found: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Names in the file -> the network's, and a description of every name that has no partner."""
    sources = {}
    missing = []
    for ours in model.state_dict():
        name = layout.name(ours)
        if name == EMBEDDING and name not in found:
            name = TIED_HEAD
        if name in found:
            sources[name] = ours
        else:
            missing.append(f"missing {name}")
    known = sources.keys() | layout.unused.keys()
    return sources, missing + [f"unexpected {name}" for name in sorted(found) if name not in known]


def _check(
    path: Path,
    model: SceneReader,
    sources: Mapping[str, str],
    slices: Mapping[str, Any],
    leftovers: list[str],
) -> None:
    expected = {ours: list(value.shape) for ours, value in model.state_dict().items()}
    problems = list(leftovers)
    for name, ours in sources.items():
        shape, dtype = list(slices[name].get_shape()), slices[name].get_dtype()
        if shape != expected[ours]:
            problems.append(f"{name} has shape {shape}, the policy needs {expected[ours]}")
        if dtype not in READABLE_DTYPES:
            problems.append(f"{name} has dtype {dtype}, not one of {', '.join(READABLE_DTYPES)}")
    if problems:
        listed = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise UserError(
            f"{path} does not fit the policy in its config.json, {len(problems)} tensors differ: {listed}"
        )
