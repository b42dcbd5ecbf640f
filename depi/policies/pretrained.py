"""A value function that begins with what a trained network has seen: pi0's, or another value function's."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from depi.errors import UserError
from depi.models.value import ValueNetwork
from depi.policies.convert import (
    LANGUAGE,
    READABLE_DTYPES,
    canonical_name,
    check_finite,
    lerobot_name,
    open_weights,
)

logger = logging.getLogger(__name__)

LANGUAGE_LAYERS = LANGUAGE + "layers."
# What pi0 calls the layers of its language model, which become those of the trunk.
_PREFIX_LAYER = re.compile(r"^trunk\.layers\.")


@torch.no_grad()
def take_weights(model: ValueNetwork, path: Path) -> tuple[list[str], list[str]]:
    """Fill what a checkpoint of pi0 (or of a value function) has in the same shape; the rest stays.

    Of pi0 that is SigLIP where the sizes are those of So400m; and where the trunk is as wide as PaliGemma's
    language model (width 2048, mlp_dim 16384, num_heads 8, num_kv_heads 1, head_dim 256) the projection of
    images, the token embedding, and the first `depth` layers; never pi0's last one, which is not complete.

    Args:
        model: with weights, not on the meta device.
        path: a `model.safetensors` in LeRobot's, openpi's or DePi's names.

    Returns:
        The names in `model` that were filled, and those that were not.

    Raises:
        UserError: the file is missing or damaged, its vision tower does not fit, or it is quantised.
    """
    own = model.state_dict()
    with open_weights(path, backend="pread") as file:
        keys = {canonical_name(key): key for key in file.keys()}  # noqa: SIM118  no mapping
        unused = _last_layer(keys)
        sources = {}
        for name, value in own.items():
            theirs = (
                name,
                lerobot_name(_PREFIX_LAYER.sub("prefix.layers.", name), model.dimensions.depth),
            )
            key = next((keys[each] for each in theirs if each in keys and not each.startswith(unused)), None)
            if key is not None and _fits(file.get_slice(key), value, path, key):
                sources[name] = key
        missing = [name for name in own if name.startswith("vision.") and name not in sources]
        if missing:
            raise UserError(
                f"--policy.init_from={path}: its vision tower does not fit the value function's, "
                f"{len(missing)} tensors differ, first {missing[0]}: choose the same sizes"
            )
        for name, key in sources.items():
            own[name].copy_(file.get_tensor(key))
    check_finite(path, {sources[name]: own[name] for name in sources})
    fresh = sorted(own.keys() - sources.keys())
    sizes = {name: value.numel() for name, value in own.items()}
    logger.info("%s: taken %s; random %s", path, _parts(sources, sizes), _parts(fresh, sizes))
    return sorted(sources), fresh


def _last_layer(names: Iterable[str]) -> str:
    """How the names of the language model's last layer begin; pi0 uses nothing of it but keys and values."""
    layers = [
        name.removeprefix(LANGUAGE_LAYERS).partition(".")[0]
        for name in names
        if name.startswith(LANGUAGE_LAYERS)
    ]
    return f"{LANGUAGE_LAYERS}{max(map(int, layers), default=0)}."


def _fits(found: Any, value: torch.Tensor, path: Path, key: str) -> bool:
    if found.get_dtype() not in READABLE_DTYPES:
        raise UserError(
            f"{path}: {key} has dtype {found.get_dtype()}, not one of {', '.join(READABLE_DTYPES)}"
        )
    return list(found.get_shape()) == list(value.shape)


def _parts(names: Iterable[str], sizes: Mapping[str, int]) -> str:
    """The parts of the network that names belong to, with millions of parameters, of each and of all."""
    counts: Counter[str] = Counter()
    for name in names:
        counts[name.partition(".")[0]] += sizes[name]
    each = ", ".join(f"{part} {count / 1e6:.2f}" for part, count in counts.items())
    return f"{counts.total() / 1e6:.2f} M parameters ({each})" if counts else "nothing"
