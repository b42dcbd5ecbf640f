"""Policies with random weights, from a checkpoint, and back into one."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from depi.errors import UserError
from depi.models.scene import SceneReader, draw_weights
from depi.policies.adapters import base_of, is_adapter, merge_adapters, save_adapters
from depi.policies.checkpoint import WEIGHTS, load_config, policy_type, resolve_checkpoint
from depi.policies.choices import save_config
from depi.policies.configuration import TrainingData, set_features
from depi.policies.convert import load_weights
from depi.policies.families import family_of
from depi.policies.gpus import follow_verdict
from depi.policies.processors import Pipeline, save_processors
from depi.policies.trust import check_checkpoint

logger = logging.getLogger(__name__)

# Whatever can be trained: of any family.
type AnyPolicy = PreTrainedPolicy


def empty_policy(config: Any) -> AnyPolicy:
    """The policy of a configuration, without memory for its weights: on the meta device."""
    with torch.device("meta"):
        return family_of(config).policy(config)


def read_policy(config: Any, weights: Path, *, device: str | None = None, strict: bool = True) -> AnyPolicy:
    """The policy of a configuration, on `config.device` or `device`, with the weights of a file.

    Args:
        config: of the policy, with features.
        weights: a safetensors file; see `depi.policies.convert.load_weights`.
        device: where to put it.
        strict: if False, parameters that the file lacks are drawn at random, with a warning that names them.

    Raises:
        UserError: the file is missing, damaged, or of another network.
    """
    device = device or config.device or "cpu"
    if not family_of(config).own:
        return family_of(config).policy.read(config, weights, device=device, strict=strict)
    policy = empty_policy(config)
    leftovers = load_weights(weights, policy.model, policy.layout, device=device, strict=strict)
    if leftovers:
        _draw_missing(policy.model, device)
        logger.warning(
            "%s: %d tensors do not match; missing ones keep random values: %s",
            weights,
            len(leftovers),
            "; ".join(leftovers[:20]),
        )
    return policy


def make_policy(config: Any, data: TrainingData, *, device: str | None = None) -> AnyPolicy:
    """A policy with random weights; of a value function, those that `init_from` has not got.

    Args:
        config: changed in place: its features become those of `data`, and device if given.
        data: the dataset to train on, or anything that knows its shape.
        device: where to put it; `config.device` if None.

    Raises:
        UserError: the data does not fit into the configuration.
    """
    if config.use_peft:
        raise UserError("policy configuration: use_peft needs a checkpoint to which the adapters belong")
    set_features(config, data)
    config.device = device or config.device
    if not family_of(config).own:
        return family_of(config).policy(config).to(config.device)
    policy = empty_policy(config)
    policy.to_empty(device=config.device)
    policy.init_weights()
    return policy


def load_policy(path_or_repo_id: str | Path, **choices: Any) -> AnyPolicy:
    """A policy that acts, from a checkpoint; see `load_any_policy` for the arguments.

    On a GPU it uses nothing that failed when such a GPU was checked.

    Raises:
        UserError: as there; or it is a value function.
    """
    policy = load_any_policy(path_or_repo_id, **choices, following=True)
    if not family_of(policy.config).acts:
        raise UserError(f"{path_or_repo_id} is a value function, which takes no actions: name a policy")
    return policy


def ready_to_act(policy: AnyPolicy) -> AnyPolicy:
    """A policy of DePi's own for acting alone: on a GPU `for_inference`; a CPU computes as it was trained."""
    if next(policy.parameters()).device.type == "cuda":
        policy.for_inference()
    return policy


def load_value(path_or_repo_id: str | Path, **choices: Any) -> AnyPolicy:
    """A value function from a checkpoint, as `load_policy` does.

    Raises:
        UserError: as there; or it is a policy that acts.
    """
    policy = load_any_policy(path_or_repo_id, **choices, following=True)
    if family_of(policy.config).name != "value":
        raise UserError(
            f"{path_or_repo_id} is of policy type {policy.config.type}, not a value function: train one with "
            "--policy.type=value"
        )
    return policy


def load_any_policy(
    path_or_repo_id: str | Path,
    *,
    revision: str | None = None,
    config: Any = None,
    config_overrides: Sequence[str] = (),
    data: TrainingData | None = None,
    device: str | None = None,
    strict: bool = True,
    following: bool = False,
) -> AnyPolicy:
    """A policy or value function from a checkpoint folder or a Hub repository, in evaluation mode.

    It may be DePi's, LeRobot's `pi0`, also of versions before 0.4, or openpi's in its PyTorch layout. Of LoRA
    adapters the base is loaded, and they are merged into it.

    Args:
        path_or_repo_id: folder, or `user/name` on the Hub.
        revision: branch, tag or commit on the Hub, for configuration and weights alike; it is resolved to a
            commit first.
        config: use this instead of the checkpoint's config.json.
        config_overrides: flags such as `--n_action_steps=10` on top of config.json.
        data: fine-tune on this: its cameras, state and action replace the checkpoint's.
        device: where to put it; `config.device` if None.
        strict: if False, parameters that the file lacks are drawn at random, with a warning that names them.
        following: use nothing that failed when such a GPU was checked; a training has seen to that before.

    Raises:
        UserError: nothing there, wrong policy type, bad override, weights that do not fit, or processors that
            are not on the lists of `depi.policies.trust`.
    """
    folder = resolve_checkpoint(path_or_repo_id, revision)
    config = config or load_config(folder, config_overrides)
    # Here, and not only in load_processors: LeRobot's commands build the processors themselves, after this.
    check_checkpoint(folder, policy_type(folder))
    config.device = device or config.device
    if data is not None:
        set_features(config, data)
    if is_adapter(folder) and not family_of(config).own:
        raise UserError(f"{folder} holds adapters of a {config.type} policy, which DePi does not merge")
    if following and family_of(config).own:
        follow_verdict(config, torch.device(config.device or "cpu"))
    weights = _base_folder(folder) if is_adapter(folder) else folder
    policy = read_policy(config, weights / WEIGHTS, strict=strict)
    if is_adapter(folder):
        merge_adapters(policy.model, policy.layout, folder)
        config.use_peft = False
    return policy.eval()


def _base_folder(folder: Path) -> Path:
    base = resolve_checkpoint(*base_of(folder))
    if is_adapter(base):
        raise UserError(f"the adapters in {folder} belong to other adapters, {base}; merge those first")
    return base


def _draw_missing(model: SceneReader, device: str) -> None:
    """Random values for the parameters that are still on the meta device; the others stay."""
    for part in model.modules():
        own = dict(part.named_parameters(recurse=False))
        if not any(parameter.is_meta for parameter in own.values()):
            continue
        loaded = {name: parameter for name, parameter in own.items() if not parameter.is_meta}
        part.to_empty(device=device, recurse=False)
        draw_weights(part)
        part.load_state_dict(loaded, strict=False, assign=True)


def save_checkpoint(
    folder: Path,
    policy: AnyPolicy,
    pre: Pipeline,
    post: Pipeline,
    *,
    weights: dict[str, Tensor] | None = None,
    adapters: bool = False,
) -> None:
    """Write config, weights and processors as LeRobot does: a `pretrained_model` folder.

    Args:
        folder: where to.
        policy: what is saved.
        pre, post: its processors.
        weights: the policy's state dict, where it is not at hand in this process or of another moment.
        adapters: write those instead of all weights: the small folder of LeRobot's `--peft`, which goes with
            the checkpoint that the policy was fine-tuned from, `policy.config.pretrained_path`.
    """
    folder = Path(folder)
    if adapters:
        config = copy.copy(policy.config)
        config.use_peft = True
        save_config(config, folder)
        save_adapters(folder, policy.model, policy.config.pretrained_path, weights)
    else:
        policy.save_pretrained(folder, state_dict=weights)
    save_processors(folder, pre, post)
