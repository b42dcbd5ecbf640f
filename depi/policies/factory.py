"""Policies with random weights, from a checkpoint, and back into one."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from lerobot.policies.pi0.configuration_pi0 import PI0Config

from depi.models.pi0 import Pi0
from depi.policies.checkpoint import WEIGHTS, load_config, resolve_checkpoint
from depi.policies.configuration import TrainingData, set_features
from depi.policies.convert import load_weights
from depi.policies.pi0 import Pi0Policy
from depi.policies.processors import Pipeline, save_processors

logger = logging.getLogger(__name__)


def make_policy(config: PI0Config, data: TrainingData, *, device: str | None = None) -> Pi0Policy:
    """A policy with random weights.

    Args:
        config: changed in place: its features become those of `data`, and device if given.
        data: the dataset to train on, or anything that knows its shape.
        device: where to put it; `config.device` if None.

    Raises:
        UserError: the data does not fit into the configuration.
    """
    set_features(config, data)
    config.device = device or config.device
    with torch.device("meta"):
        policy = Pi0Policy(config)
    policy.to_empty(device=config.device)
    policy.model.init_weights()
    return policy


def load_policy(
    path_or_repo_id: str | Path,
    *,
    revision: str | None = None,
    config: PI0Config | None = None,
    config_overrides: Sequence[str] = (),
    data: TrainingData | None = None,
    device: str | None = None,
    strict: bool = True,
) -> Pi0Policy:
    """A policy from a checkpoint folder or a Hub repository, in evaluation mode.

    It may be DePi's, LeRobot's `pi0` of any version, or openpi's in its PyTorch layout.

    Args:
        path_or_repo_id: folder, or `user/name` on the Hub.
        revision: branch, tag or commit on the Hub, for configuration and weights alike; it is resolved to a
            commit first.
        config: use this instead of the checkpoint's config.json.
        config_overrides: flags such as `--n_action_steps=10` on top of config.json.
        data: fine-tune on this: its cameras, state and action replace the checkpoint's.
        device: where to put it; `config.device` if None.
        strict: if False, parameters that the file lacks are drawn at random, with a warning that names them.

    Raises:
        UserError: nothing there, wrong policy type, bad override, or weights that do not fit.
    """
    folder = resolve_checkpoint(path_or_repo_id, revision)
    config = config or load_config(folder, config_overrides)
    config.device = device or config.device
    if data is not None:
        set_features(config, data)
    with torch.device("meta"):
        policy = Pi0Policy(config)
    leftovers = load_weights(folder / WEIGHTS, policy.model, device=config.device or "cpu", strict=strict)
    if leftovers:
        _draw_missing(policy.model, config.device or "cpu")
        logger.warning(
            "%s: %d tensors do not match; missing ones keep random values: %s",
            folder / WEIGHTS,
            len(leftovers),
            "; ".join(leftovers[:20]),
        )
    return policy.eval()


def _draw_missing(model: Pi0, device: str) -> None:
    """Random values for the parameters that are still on the meta device; the others stay."""
    for part in model.modules():
        own = dict(part.named_parameters(recurse=False))
        if not any(parameter.is_meta for parameter in own.values()):
            continue
        loaded = {name: parameter for name, parameter in own.items() if not parameter.is_meta}
        part.to_empty(device=device, recurse=False)
        Pi0.init_weights(part)
        part.load_state_dict(loaded, strict=False, assign=True)


def save_checkpoint(folder: Path, policy: Pi0Policy, pre: Pipeline, post: Pipeline) -> None:
    """Write config, weights and processors as LeRobot does: a `pretrained_model` folder."""
    folder = Path(folder)
    policy.save_pretrained(folder)
    save_processors(folder, pre, post)
