"""Weights between DePi's names and the names in a LeRobot `model.safetensors`.

On disk every size has LeRobot's names, in float32, each with the prefix `model.`. LeRobot's network has parts
that never influence its output, and DePi's has not got them. They are written all the same, because stock
LeRobot refuses a file without them: the language model's `lm_head` as a copy of the token embedding (to which
PaliGemma ties it), everything else as zeros, with which the last prefix layer passes its input through.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from depi.errors import UserError
from depi.files import atomic_write
from depi.models.pi0 import Pi0, Pi0Dimensions

PALIGEMMA = "paligemma_with_expert.paligemma."
VISION = PALIGEMMA + "model.vision_tower.vision_model."
LANGUAGE = PALIGEMMA + "model.language_model."
EXPERT = "paligemma_with_expert.gemma_expert."

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
}


def lerobot_name(name: str, depth: int) -> str:
    """LeRobot's name, without the leading `model.`, for a parameter of `Pi0`."""
    name = name.replace("prefix.last_layer.", f"prefix.layers.{depth - 1}.")
    number = re.search(r"\.(\d+)\.", name)
    pattern = name if number is None else name.replace(number[0], ".#.", 1)
    for ours in sorted(RENAMES, key=len, reverse=True):
        if pattern.startswith(ours + "."):
            renamed = RENAMES[ours] + pattern[len(ours) :]
            return renamed if number is None else renamed.replace(".#.", number[0], 1)
    return name


def unused_shapes(d: Pi0Dimensions) -> dict[str, tuple[int, ...]]:
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


def to_lerobot(state: Mapping[str, Tensor], d: Pi0Dimensions) -> dict[str, Tensor]:
    """State dict of a `Pi0` or a policy around it -> every tensor of a LeRobot `pi0`, float32 on the CPU."""
    renamed = {
        lerobot_name(name.removeprefix("model."), d.depth): value.detach()
        .to("cpu", torch.float32)
        .contiguous()
        for name, value in state.items()
    }
    for name, shape in unused_shapes(d).items():
        renamed[name] = renamed[EMBEDDING].clone() if name == TIED_HEAD else torch.zeros(shape)
    return {f"model.{name}": value for name, value in renamed.items()}


def save_weights(path: Path, state: Mapping[str, Tensor], d: Pi0Dimensions) -> None:
    """Write `state` as LeRobot's `model.safetensors`, atomically."""
    with atomic_write(path) as temporary:
        save_file(to_lerobot(state, d), temporary, metadata={"format": "pt"})


def load_weights(path: Path, model: Pi0, *, strict: bool = True) -> list[str]:
    """Fill `model`, maybe on the meta device, from a LeRobot `model.safetensors`, in float32 on the CPU.

    Names may lack the prefix `model.`; an absent token embedding is read from the `lm_head` tied to it.
    Shapes are compared before anything is read.

    Args:
        path: the file.
        model: the network to fill.
        strict: refuse a file that lacks parameters or has ones that belong nowhere.

    Returns:
        What did not fit, empty if strict: names that the file lacks, and names in it that belong nowhere.

    Raises:
        UserError: the file is missing or damaged, a shape differs, or `strict` and names differ.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            found = {key.removeprefix("model."): key for key in file.keys()}  # noqa: SIM118 (not a dict)
            sources, leftovers = _match(model, found)
            shapes = {name: tuple(file.get_slice(found[name]).get_shape()) for name in sources}
            _check(path, model, sources, shapes, leftovers if strict else [])
            weights = {ours: file.get_tensor(found[name]).float() for name, ours in sources.items()}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from None
    model.load_state_dict(weights, strict=False, assign=True)
    return leftovers


def _match(model: Pi0, found: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """LeRobot's names in the file -> DePi's, and a description of every name that has no partner."""
    d = model.dimensions
    sources = {}
    missing = []
    for ours in model.state_dict():
        name = lerobot_name(ours, d.depth)
        if name == EMBEDDING and name not in found:
            name = TIED_HEAD
        if name in found:
            sources[name] = ours
        else:
            missing.append(f"missing {name}")
    known = set(sources) | set(unused_shapes(d))
    return sources, missing + [f"unexpected {name}" for name in sorted(found) if name not in known]


def _check(
    path: Path,
    model: Pi0,
    sources: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    leftovers: list[str],
) -> None:
    expected = {ours: tuple(value.shape) for ours, value in model.state_dict().items()}
    problems = leftovers + [
        f"{name} has shape {list(shapes[name])}, the policy needs {list(expected[ours])}"
        for name, ours in sources.items()
        if shapes[name] != expected[ours]
    ]
    if problems:
        listed = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise UserError(
            f"{path} does not fit the policy in its config.json, {len(problems)} tensors differ: {listed}"
        )
