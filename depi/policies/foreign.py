"""Checkpoints that others wrote: openpi's in its PyTorch layout, and those of LeRobot before 0.4.

Their weights are `convert`'s business; here their configuration becomes LeRobot's of today, and their
normalisation statistics are found.

openpi: `model.safetensors` and `config.json` of `convert_jax_model_to_pytorch.py`, and beside them
`assets/<asset id>/norm_stats.json`. The converter does not write whether it is a pi0 or a pi0.5: the names of
the weights say it. LeRobot before 0.4: other field names, statistics among the weights.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.utils.constants import ACTION, OBS_STATE

from depi.errors import UserError, one_line
from depi.files import read_json
from depi.policies.configuration import MOST_COUNTED
from depi.policies.convert import open_weights

logger = logging.getLogger(__name__)

NORM_STATS = "norm_stats.json"
KINDS = ("mean", "std", "q01", "q99")  # of its statistics; pi0.5 normalises by the quantiles
# openpi's names of its cameras, as LeRobot's published pi0 carries them.
OPENPI_CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
OPENPI_FIELDS = {"action_dim", "action_horizon"}
MOST_TOKENS = {"pi0": 48, "pi05": 200}  # of a prompt, by openpi's defaults
RENAMED = {"num_steps": "num_inference_steps", "resize_imgs_with_padding": "image_resolution"}
# What older LeRobot could be told, and the only value that means what DePi does; None: any value does.
DROPPED: dict[str, Any] = {
    "adapt_to_pi_aloha": False,
    "use_delta_joint_actions_aloha": False,
    "proj_width": 1024,
    "train_state_proj": True,
    "use_cache": None,
    "attention_implementation": None,
}

type Stats = dict[str, dict[str, np.ndarray]]


def present_config(content: Any, path: Path) -> Any:
    """Turn the content of a foreign config.json into LeRobot's; anything else is returned as it is.

    Raises:
        UserError: it asks for something that DePi does not do.
    """
    if not isinstance(content, dict):
        return content
    if "type" not in content and content.keys() >= OPENPI_FIELDS:
        return _from_openpi(content, path)
    if content.get("type") == "pi0" and content.keys() & (RENAMED.keys() | DROPPED.keys()):
        return _from_old_lerobot(content, path)
    return content


def _from_openpi(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kind = "pi05" if content.get("pi05") or _is_pi05(path.parent) else "pi0"
    if kind == "pi05" and content.get("discrete_state_input") is False:
        raise UserError(
            f"{path}: discrete_state_input false is not available: DePi's pi0.5 has its state in the prompt"
        )
    for name in ("paligemma_variant", "action_expert_variant"):
        if str(content.get(name, "")).endswith("_lora"):
            raise UserError(
                f"{path}: {name} {content[name]} has adapters; merge them into the weights first, with openpi"
            )
    for name in OPENPI_FIELDS:
        if type(content[name]) is not int or not 0 < content[name] <= MOST_COUNTED:
            raise UserError(
                f"{path}: {name} must be an integer of 1 to {MOST_COUNTED}, not {one_line(content[name], 40)}"
            )
    horizon, room = content["action_horizon"], content["action_dim"]
    state_dim, action_dim = _stored_sizes(path.parent, room)
    return {
        "type": kind,
        "paligemma_variant": content.get("paligemma_variant", "gemma_2b"),
        "action_expert_variant": content.get("action_expert_variant", "gemma_300m"),
        "dtype": "float32" if content.get("precision") == "float32" else "bfloat16",
        "chunk_size": horizon,
        "n_action_steps": horizon,
        "max_state_dim": room,
        "max_action_dim": room,
        "tokenizer_max_length": content.get("max_token_len") or MOST_TOKENS[kind],
        "input_features": {
            **{
                f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 224, 224]}
                for name in OPENPI_CAMERAS
            },
            OBS_STATE: {"type": "STATE", "shape": [state_dim]},
        },
        "output_features": {ACTION: {"type": "ACTION", "shape": [action_dim]}},
    }


def _is_pi05(folder: Path) -> bool:
    """Whether the weights are those of a pi0.5; False where there are none."""
    path = folder / "model.safetensors"
    if not path.exists():
        return False
    with open_weights(path) as file:
        return any(name.removeprefix("model.").startswith("time_mlp_in.") for name in file.offset_keys())


def _stored_sizes(folder: Path, room: int) -> tuple[int, int]:
    """Sizes of state and action by the statistics, or all the room where they do not tell."""
    files = sorted(folder.glob(f"assets/**/{NORM_STATS}"))
    if len(files) != 1:
        return room, room
    stats = _openpi_stats(files[0])
    return len(stats[OBS_STATE]["mean"]), len(stats[ACTION]["mean"])


def _from_old_lerobot(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    for name, value in DROPPED.items():
        if value is not None and content.get(name, value) != value:
            raise UserError(
                f"{path}: {name} {one_line(repr(content[name]), 80)} is not available, only {value!r}"
            )
    kept = {name: value for name, value in content.items() if name not in DROPPED}
    return {RENAMED.get(name, name): value for name, value in kept.items()}


def stored_stats(folder: Path) -> Stats:
    """Statistics of state and action in a checkpoint without processors.

    Raises:
        UserError: it has none, several, or broken ones.
    """
    files = sorted(folder.glob(f"assets/**/{NORM_STATS}"))
    if len(files) == 1:
        logger.warning(
            "%s: these statistics are of state and action as openpi's data transforms hand them to the "
            "model; if they make actions relative or turn joints, do the same around the policy",
            files[0],
        )
        return _openpi_stats(files[0])
    stats = {} if files else _stats_in_weights(folder / "model.safetensors")
    if stats.keys() >= {OBS_STATE, ACTION}:
        return stats
    choice = ", ".join(str(file.parent.relative_to(folder / "assets")) for file in files)
    found = (
        f"statistics of several robots ({choice}): keep one of these folders" if files else "no statistics"
    )
    raise UserError(
        f"{folder} has no processors and {found}; training on a dataset computes that dataset's, "
        "and writes them with its checkpoints"
    )


def _openpi_stats(path: Path) -> Stats:
    content = read_json(path)
    found = content.get("norm_stats", content) if isinstance(content, dict) else {}
    stats: Stats = {}
    for name, key in (("state", OBS_STATE), ("actions", ACTION)):
        entry = found.get(name) if isinstance(found, dict) else None
        if not isinstance(entry, dict) or not {"mean", "std"} <= entry.keys():
            raise UserError(f"{path} has no mean and std of {name}")
        kinds = [kind for kind in KINDS if entry.get(kind) is not None]
        stats[key] = {kind: _vector(entry[kind], f"{path}: {name} {kind}") for kind in kinds}
        if len({len(values) for values in stats[key].values()}) > 1:
            raise UserError(f"{path}: {', '.join(kinds)} of {name} have different lengths")
    return stats


def _vector(value: Any, what: str) -> np.ndarray:
    numbers = value if isinstance(value, list) else []
    if not numbers or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise UserError(f"{what} is not a list of numbers")
    return np.asarray(numbers, dtype=np.float32)


def _stats_in_weights(path: Path) -> Stats:
    """What LeRobot before 0.4 kept among the weights."""
    stats: Stats = {}
    with open_weights(path, framework="np") as file:
        for prefix, name, key in (
            ("normalize_inputs.", "buffer_observation_state.", OBS_STATE),
            ("unnormalize_outputs.", "buffer_action.", ACTION),
        ):
            names = {kind: prefix + name + kind for kind in ("mean", "std")}
            if set(names.values()) <= set(file.keys()):
                stats[key] = {kind: file.get_tensor(full) for kind, full in names.items()}
    # A policy that never saw data has infinite ones.
    if any(not np.isfinite(value).all() for values in stats.values() for value in values.values()):
        raise UserError(
            f"{path} has statistics that were never computed; training on a dataset computes them"
        )
    return stats
