"""Where a checkpoint is, and what its config.json says. The layout is LeRobot's; see `foreign` for others."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import draccus
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from depi.errors import UserError, one_line
from depi.files import read_json
from depi.flags import parse_flags
from depi.policies.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from depi.policies.choices import CHOICES_FILE, are_beside, read_choices, set_choices, split_flags
from depi.policies.configuration import check_fields
from depi.policies.families import TYPES, family
from depi.policies.foreign import NORM_STATS, present_config
from depi.policies.trust import CONFIG, POSTPROCESSOR, PREPROCESSOR

WEIGHTS = "model.safetensors"
# What training adds beside them: the units and camera slots in which the policy was trained.
TRAINING_FILES = ("train_config.json", "data_report.json")


def load_config(folder: Path, overrides: Sequence[str] = ()) -> Any:
    """The configuration in a checkpoint folder, with flags such as `--n_action_steps=10` on top.

    openpi's and older LeRobot's become today's.

    Raises:
        UserError: the file is missing or malformed, is of another policy type, or a flag is wrong.
    """
    path = folder / CONFIG
    kind, content = _read_config(path)
    if kind not in TYPES:
        shown = one_line(repr(kind), 200)
        raise UserError(f"{path} is of policy type {shown}; DePi knows {', '.join(TYPES)}")
    config_class: Any = family(kind).configs[kind]

    def parse(flags: list[str]) -> Any:
        if not flags:  # without draccus's parser of flags, which takes longer than all the rest
            return draccus.decode(config_class, content)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file, draccus.config_type("json"):
            json.dump(content, file)
            file.flush()
            return draccus.parse(config_class, file.name, args=flags)

    own: dict[str, Any] = {}
    if are_beside(kind):
        own, overrides = split_flags(overrides)
    config = parse_flags(config_class, overrides, str(path), parse=parse)
    if are_beside(kind):
        set_choices(config, {**read_choices(folder), **own}, folder / CHOICES_FILE)
    check_fields(config, path)
    return config


def policy_type(folder: Path) -> str:
    """The policy type in a checkpoint folder; openpi's checkpoints are of type `pi0` or `pi05`.

    Raises:
        UserError: the file is missing, malformed, or names none.
    """
    return _read_config(folder / CONFIG)[0]


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """The policy type and the other fields, named as LeRobot of today names them."""
    content = present_config(read_json(path), path)
    if not isinstance(content, dict) or not isinstance(kind := content.pop("type", None), str):
        raise UserError(f"{path} is no policy configuration: it names no policy type")
    return kind, content


def resolve_checkpoint(
    path_or_repo_id: str | Path, revision: str | None = None, *, weights: bool = True
) -> Path:
    """The local folder that holds a checkpoint, downloaded from the Hub if it is not a folder already.

    A run stands for its last checkpoint, a checkpoint for its `pretrained_model` folder. Without `weights`
    only the configuration is downloaded.

    Raises:
        UserError: there is no such folder or repository, it is no checkpoint, or a folder is asked for a
            revision.
    """
    folder = Path(path_or_repo_id).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{folder} is a folder: revision {revision} can only be had of a Hub repository")
        last = folder / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK
        for inner in (last / PRETRAINED_MODEL_DIR, folder / PRETRAINED_MODEL_DIR):
            if inner.is_dir() and not (folder / CONFIG).exists():
                folder = inner.resolve()
    else:
        folder = _download(str(path_or_repo_id), revision, weights)
    if not (folder / CONFIG).exists():
        raise UserError(f"{path_or_repo_id} is no checkpoint: it has no {CONFIG}{_remedy(folder)}")
    return folder


def _remedy(folder: Path) -> str:
    """openpi's own trainer writes no config.json, and a chunk's length is nowhere in the weights."""
    if not (folder / WEIGHTS).exists() or not (folder / "metadata.pt").exists():
        return ""
    return (
        "; if openpi's trainer wrote it, add one: "
        '{"action_dim": 32, "action_horizon": 50, "paligemma_variant": "gemma_2b", '
        '"action_expert_variant": "gemma_300m", "precision": "bfloat16"} '
        "with the numbers of your training configuration"
    )


def _download(repo_id: str, revision: str | None, weights: bool) -> Path:
    from depi.hub.client.api import download_files, repo_info

    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")):
        raise UserError(f"{repo_id} is neither a folder nor a Hub repository of the form user/name")
    info = repo_info(repo_id, repo_type="model", revision=revision)
    stems = (Path(PREPROCESSOR).stem, Path(POSTPROCESSOR).stem)
    wanted = [
        sibling.rfilename
        for sibling in info.siblings or []
        if sibling.rfilename
        in (CONFIG, CHOICES_FILE, WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TRAINING_FILES)
        or ("/" not in sibling.rfilename and sibling.rfilename.startswith(stems))
        or (sibling.rfilename.startswith("assets/") and sibling.rfilename.endswith("/" + NORM_STATS))
    ]
    if CONFIG not in wanted:
        raise UserError(f"{repo_id} is no checkpoint: it has no {CONFIG}")
    if not weights:
        wanted = [name for name in wanted if name in (CONFIG, CHOICES_FILE)]
    assert info.sha is not None
    return download_files(repo_id, wanted, revision=info.sha, repo_type="model", progress=True)
