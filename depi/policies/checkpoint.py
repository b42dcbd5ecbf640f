"""Policies from nothing, from a folder, from the Hub, and back to a folder. The layout is LeRobot's."""

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import draccus
import torch
from draccus.utils import DecodingError
from lerobot.policies.pi0.configuration_pi0 import PI0Config

from depi.errors import UserError
from depi.files import read_json
from depi.policies.configuration import DepiPi0Config, set_features
from depi.policies.convert import load_weights
from depi.policies.pi0 import Pi0Policy
from depi.policies.processors import POSTPROCESSOR, PREPROCESSOR, Pipeline, save_processors

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CONFIG_CLASSES: dict[str, type[PI0Config]] = {"pi0": PI0Config, "depi_pi0": DepiPi0Config}


def make_policy(
    config: PI0Config,
    *,
    state_dim: int,
    action_dim: int,
    camera_keys: Sequence[str],
    device: str | None = None,
) -> Pi0Policy:
    """A policy with random weights, for data of the given shape.

    Args:
        config: changed in place: features, and device if given.
        state_dim: numbers in `observation.state`.
        action_dim: numbers in one action.
        camera_keys: batch keys of the cameras, in the order of the slots.
        device: where to put it; `config.device` if None.

    Raises:
        UserError: the data does not fit into the configuration.
    """
    set_features(config, state_dim=state_dim, action_dim=action_dim, camera_keys=tuple(camera_keys))
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
    device: str | None = None,
    strict: bool = True,
) -> Pi0Policy:
    """A policy from a checkpoint folder or a Hub repository, LeRobot's `pi0` or DePi's, in evaluation mode.

    Args:
        path_or_repo_id: folder, or `user/name` on the Hub.
        revision: branch, tag or commit on the Hub; it is resolved to a commit first.
        config: use this instead of the checkpoint's config.json.
        config_overrides: flags such as `--n_action_steps=10` on top of config.json.
        device: where to put it; `config.device` if None.
        strict: if False, parameters that the file lacks are drawn at random, with a warning that names them.

    Raises:
        UserError: nothing there, wrong policy type, bad override, or weights that do not fit.
    """
    folder = checkpoint_folder(path_or_repo_id, revision)
    config = config or load_config(folder, config_overrides)
    config.device = device or config.device
    with torch.device("meta"):
        policy = Pi0Policy(config)
    if not strict:
        policy.to_empty(device="cpu")
        policy.model.init_weights()
    leftovers = load_weights(folder / WEIGHTS, policy.model, strict=strict)
    if leftovers:
        logger.warning(
            "%s: %d tensors do not match; missing ones keep random values: %s",
            folder / WEIGHTS,
            len(leftovers),
            "; ".join(leftovers[:20]),
        )
    return policy.to(config.device).eval()


def save_checkpoint(folder: Path, policy: Pi0Policy, pre: Pipeline, post: Pipeline) -> None:
    """Write config, weights and processors as LeRobot does: a `pretrained_model` folder."""
    folder = Path(folder)
    policy.save_pretrained(folder)
    save_processors(folder, pre, post)


def load_config(folder: Path, overrides: Sequence[str] = ()) -> PI0Config:
    """The configuration in a checkpoint folder, with flags such as `--n_action_steps=10` on top.

    Raises:
        UserError: the file is missing or malformed, is of another policy type, or a flag is wrong.
    """
    path = folder / CONFIG
    content = read_json(path)
    kind = content.pop("type", None) if isinstance(content, dict) else None
    if kind not in CONFIG_CLASSES:
        raise UserError(f"{path} is of policy type {kind!r}; DePi knows {', '.join(CONFIG_CLASSES)}")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(content, file)
        file.flush()
        try:
            with draccus.config_type("json"):
                return draccus.parse(CONFIG_CLASSES[kind], file.name, args=list(overrides))
        except (DecodingError, ValueError, TypeError, SystemExit) as error:
            raise UserError(f"{path} with flags {list(overrides)}: {' '.join(str(error).split())}") from None


def checkpoint_folder(path_or_repo_id: str | Path, revision: str | None = None) -> Path:
    """The local folder that holds a checkpoint, downloaded from the Hub if it is not a folder already.

    A folder that holds a `pretrained_model` folder, as training writes them, stands for that one.

    Raises:
        UserError: there is no such folder or repository, or it is no checkpoint.
    """
    folder = Path(path_or_repo_id).expanduser()
    if folder.is_dir():
        inner = folder / "pretrained_model"
        folder = inner if not (folder / CONFIG).exists() and inner.is_dir() else folder
    else:
        folder = _download(str(path_or_repo_id), revision)
    if not (folder / CONFIG).exists():
        raise UserError(f"{path_or_repo_id} is no checkpoint: it has no {CONFIG}")
    return folder


def _download(repo_id: str, revision: str | None) -> Path:
    from depi.hub.client import download_files, repo_info

    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")):
        raise UserError(f"{repo_id} is neither a folder nor a Hub repository of the form user/name")
    info = repo_info(repo_id, repo_type="model", revision=revision)
    stems = (Path(PREPROCESSOR).stem, Path(POSTPROCESSOR).stem)
    wanted = [
        sibling.rfilename
        for sibling in info.siblings or []
        if sibling.rfilename in (CONFIG, WEIGHTS)
        or ("/" not in sibling.rfilename and sibling.rfilename.startswith(stems))
    ]
    if CONFIG not in wanted:
        raise UserError(f"{repo_id} is no checkpoint: it has no {CONFIG}")
    return download_files(repo_id, wanted, revision=info.sha, repo_type="model", progress=True)
