"""Training less than the whole network: LoRA adapters through PEFT, and frozen parts held in bfloat16.

Adapters are injected into DePi's modules. On disk they have LeRobot's layout and names
(`adapter_config.json`, `adapter_model.safetensors`, a config.json with `use_peft`), so that each side reads
what the other has written.
"""

import hashlib
import logging
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.default import PeftConfig
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from depi.errors import UserError, one_line
from depi.files import atomic_write, read_json
from depi.models.flow import FlowNetwork
from depi.models.scene import SceneReader
from depi.policies.convert import Layout, check_finite, lerobot_name, open_weights

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Every linear layer of the language model and of the action expert. LeRobot adapts less by default: only
# queries and values of the expert.
DEFAULT_TARGETS = r"(prefix|suffix)\..*"
INIT_TYPES = (None, "gaussian", "orthogonal")  # others change the base weights
# Settings of adapter files that change what an adapter means.
PLAIN_SETTINGS: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "bias": (None, "none"),
    "lora_bias": (None, False),
}
LARGEST_ALPHA = 1_000_000

_NAME = "default"  # PEFT can hold several adapters side by side, each with a name
_PREFIX = "base_model.model.model."  # what PEFT and the policy put before LeRobot's names
_BASE = "base_fingerprint"
# Parts that compute in bfloat16; the projections around the suffix compute in float32.
_BFLOAT16_PARTS = ("vision", "image_proj", "token_embedding", "prefix", "suffix", "trunk")

logger = logging.getLogger(__name__)


def add_adapters(model: FlowNetwork, peft: PeftConfig) -> None:
    """Freeze `model` but for new LoRA adapters, which change nothing yet, and some fully trained modules.

    Names in `peft.target_modules` and `peft.full_training_modules` may be DePi's or LeRobot's; matching is as
    in PEFT: a string is a regular expression for whole names or `all-linear`, a list holds ends of names.
    Parts that are frozen already get no adapter.

    Raises:
        UserError: a method other than LoRA, a wrong rank, or names that match nothing.
    """
    _refuse_unsupported(peft)
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    }
    targets = _matching(model, linear, peft.target_modules or DEFAULT_TARGETS)
    if not targets:
        raise UserError(
            f"--peft.target_modules={peft.target_modules} matches no linear layer that is not frozen; "
            "names are like suffix.layers.0.q_proj or LeRobot's"
        )
    wanted = around_the_suffix(model) if peft.full_training_modules is None else peft.full_training_modules
    modules = {
        name
        for name, module in model.named_modules()
        if name and any(parameter.requires_grad for parameter in module.parameters())
    }
    full = _matching(model, modules - targets, list(wanted))
    if wanted and not full and peft.full_training_modules is not None:
        raise UserError(f"--peft.full_training_modules={peft.full_training_modules} matches no module")

    alpha = {} if peft.lora_alpha is None else {"lora_alpha": peft.lora_alpha}
    config = LoraConfig(
        r=peft.r, target_modules=sorted(targets), init_lora_weights=peft.init_type or True, **alpha
    )
    model.requires_grad_(False)
    inject_adapter_in_model(config, model, adapter_name=_NAME)
    for layer in lora_layers(model).values():
        # Autocast casts, and layers that read the same tokens keep the same copy of them.
        layer.cast_input_dtype_enabled = False
    for name in full:
        model.get_submodule(name).requires_grad_(True)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info(
        "LoRA of rank %d on %d linear layers, %d modules trained fully: %.1f M trainable parameters",
        peft.r,
        len(targets),
        len(full),
        trainable / 1e6,
    )


def around_the_suffix(model: FlowNetwork) -> list[str]:
    """The layers before and behind the action expert, which are as small as adapters to them would be."""
    return [
        name
        for name, module in model.named_children()
        if isinstance(module, nn.Linear) and module is not model.image_proj
    ]


def _refuse_unsupported(peft: PeftConfig) -> None:
    if peft.method_type.upper() != "LORA":
        raise UserError(f"--peft.method_type={peft.method_type} is not available; use LORA")
    if peft.init_type not in INIT_TYPES:
        raise UserError(f"--peft.init_type={peft.init_type} is none of {', '.join(map(str, INIT_TYPES[1:]))}")
    for name, value in (("r", peft.r), ("lora_alpha", peft.lora_alpha)):
        if value is not None and value < 1:
            raise UserError(f"--peft.{name} must be at least 1, not {value}")


def _matching(model: FlowNetwork, names: Collection[str], wanted: str | list[str]) -> set[str]:
    """Those of `names` that are `wanted`, by their own name or by LeRobot's."""

    def is_wanted(name: str) -> bool:
        both = (name, f"model.{_lerobot_module(model, name)}")
        if isinstance(wanted, str):
            return wanted == "all-linear" or any(re.fullmatch(wanted, each) for each in both)
        return any(each == end or each.endswith(f".{end}") for each in both for end in wanted)

    try:
        return {name for name in names if is_wanted(name)}
    except re.error as error:
        raise UserError(f"--peft.target_modules={wanted} is no regular expression: {error}") from None


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted layers by name; empty where there are none."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def hold_frozen_in_bfloat16(model: SceneReader) -> None:
    """Halve the memory of frozen matrices that are computed with in bfloat16: nothing is ever added to them.

    Autocast would round them to the same values. Norms and positions, which count in float32, stay so. Only
    for a model that always runs under autocast to bfloat16.
    """
    for part in (part for name, part in model.named_children() if name in _BFLOAT16_PARTS):
        for module in part.modules():
            if not isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
                continue
            if module is model.vision.position_embedding:
                continue
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()


def merged_state(state: Mapping[str, Tensor], model: SceneReader) -> dict[str, Tensor]:
    """A state of `model`, or of its policy, as if it had no adapters: they are added to their weights.

    Sums are float32 and on the CPU. Without adapters `state` is returned as it is.
    """
    scalings = {name: layer.scaling[_NAME] for name, layer in lora_layers(model).items()}
    merged = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        stem, base, rest = name.partition(".base_layer.")
        if base and rest == "weight":
            down = state[f"{stem}.lora_A.{_NAME}.weight"].detach().float().cpu()
            up = state[f"{stem}.lora_B.{_NAME}.weight"].detach().float().cpu()
            scaling = scalings[stem if stem in scalings else stem.removeprefix("model.")]
            value = torch.addmm(value.detach().float().cpu(), up, down, alpha=scaling)
        merged[f"{stem}.{rest}" if base else name] = value
    return merged


def save_adapters(
    folder: Path, model: FlowNetwork, base: str | Path | None, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` in LeRobot's layout, float32.

    Args:
        folder: where to.
        model: with adapters.
        base: the checkpoint, folder or repository, to which they belong.
        weights: the state dict of the model's policy at the moment to write, if that is not now.
    """
    layers = lora_layers(model)
    tensors = {
        _saved_name(model, name): (weights[f"model.{name}"] if weights else parameter.detach())
        .float()
        .cpu()
        .contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    full = {
        name.rpartition(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    }
    first = next(iter(layers.values()))
    LoraConfig(
        r=first.r[_NAME],
        lora_alpha=first.lora_alpha[_NAME],
        target_modules=sorted(f"model.{_lerobot_module(model, name)}" for name in layers),
        modules_to_save=sorted(f"model.{_lerobot_module(model, name)}" for name in full),
        base_model_name_or_path=None if base is None else str(base),
    ).save_pretrained(str(folder))
    with atomic_write(folder / ADAPTER_WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", _BASE: base_fingerprint(model)})


@torch.no_grad()
def load_adapters(model: FlowNetwork, folder: Path) -> None:
    """Fill the adapters and fully trained modules of `model` from what `save_adapters` wrote.

    Raises:
        UserError: a file is missing or damaged, has other adapters, or belongs to other base weights.
    """
    tensors, metadata = _read(folder / ADAPTER_WEIGHTS)
    mine = {
        _saved_name(model, name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    differing = mine.keys() ^ tensors.keys() or {
        name for name, tensor in tensors.items() if tensor.shape != mine[name].shape
    }
    if differing:
        raise UserError(
            f"{folder / ADAPTER_WEIGHTS} has other adapters than --peft asks for: {min(differing)}"
        )
    if metadata.get(_BASE) != base_fingerprint(model):
        raise UserError(
            f"the adapters in {folder} were trained on other base weights than those of this policy"
        )
    for name, parameter in mine.items():
        parameter.copy_(tensors[name])


def base_fingerprint(model: FlowNetwork) -> str:
    """A hash over some numbers of every frozen parameter, rounded or not yet."""
    samples = [
        parameter.detach().flatten()[:: max(1, parameter.numel() // 64)].bfloat16().float()
        for parameter in model.parameters()
        if not parameter.requires_grad
    ]
    return hashlib.sha256(torch.cat(samples).cpu().numpy().tobytes()).hexdigest()


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint folder holds adapters in place of the weights."""
    return (folder / ADAPTER_CONFIG).exists() and not (folder / "model.safetensors").exists()


def base_of(folder: Path) -> tuple[str, str | None]:
    """Folder or repository, and revision, of the checkpoint to which the adapters in `folder` belong.

    Raises:
        UserError: the file does not say, or does not hold plain LoRA adapters.
    """
    config = _read_config(folder)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise UserError(
            f"{folder / ADAPTER_CONFIG} does not name the checkpoint to which its adapters belong"
        )
    return base, revision


@torch.no_grad()
def merge_adapters(model: SceneReader, layout: Layout, folder: Path) -> None:
    """Add the adapters in `folder`, DePi's or LeRobot's, to the weights of `model`, for good.

    Raises:
        UserError: files are missing or damaged, the adapters are no plain LoRA, or do not fit the model.
    """
    config = _read_config(folder)
    tensors, _ = _read(folder / ADAPTER_WEIGHTS)
    parameters = {layout.name(name): value for name, value in model.named_parameters()}
    for key, tensor in tensors.items():
        stem, part, end = key.removeprefix(_PREFIX).partition(".lora_")
        name = f"{stem}.weight" if part else stem
        if name in layout.unused:
            continue  # LeRobot adapts layers that never influence its output
        if name not in parameters or (part and end not in ("A.weight", "B.weight")):
            raise UserError(f"{folder / ADAPTER_WEIGHTS} has {key}, which belongs nowhere in the policy")
        if not part:
            _same_shape(folder, key, list(tensor.shape), parameters[name])
            parameters[name].copy_(tensor)
            continue
        partner = (
            key.replace(".lora_A.", ".lora_B.") if end[0] == "A" else key.replace(".lora_B.", ".lora_A.")
        )
        if partner not in tensors:
            raise UserError(f"{folder / ADAPTER_WEIGHTS} has {key} without {partner}")
        if end[0] == "A":
            _add(folder, key, parameters[name], tensor, tensors[partner], config)


def _add(folder: Path, key: str, target: Tensor, down: Tensor, up: Tensor, config: Mapping[str, Any]) -> None:
    """Add one adapter, [r, in] and [out, r], to its matrix [out, in]."""
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or not len(down):
        raise UserError(f"{folder / ADAPTER_WEIGHTS}: {key} and its lora_B do not fit together")
    _same_shape(folder, key, [len(up), down.shape[1]], target)
    rank = math.sqrt(len(down)) if config.get("use_rslora") else len(down)
    change = up.float() @ down.float() * (config["lora_alpha"] / rank)
    target.add_(change.to(target.device))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} is no adapter configuration")
    for name, plain in PLAIN_SETTINGS.items():
        if config.get(name) not in plain:
            shown = one_line(repr(config.get(name)), 80)
            raise UserError(f"{path}: {name} {shown} is not available; merge the adapter first")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= LARGEST_ALPHA:
        raise UserError(
            f"{path}: lora_alpha must be a number of at most {LARGEST_ALPHA}, not {str(alpha)[:40]!r}"
        )
    return config


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    with open_weights(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        check_finite(path, tensors)
        return tensors, file.metadata() or {}


def _same_shape(folder: Path, key: str, shape: list[int], target: Tensor) -> None:
    if shape != list(target.shape):
        raise UserError(
            f"{folder / ADAPTER_WEIGHTS}: {key} has or makes shape {shape}, "
            f"the policy needs {list(target.shape)}"
        )


def _lerobot_module(model: FlowNetwork, name: str) -> str:
    return lerobot_name(f"{name}.weight", model.dimensions.depth).removesuffix(".weight")


def _saved_name(model: FlowNetwork, name: str) -> str:
    """The key in LeRobot's adapter file for one of `model`'s trainable parameters."""
    stem, part, rest = name.partition(".lora_")
    if not part:
        return _PREFIX + lerobot_name(name, model.dimensions.depth)
    return f"{_PREFIX}{_lerobot_module(model, stem)}.lora_{rest.replace(f'.{_NAME}.', '.')}"
