"""Checkpoint folders of a run: which there are, whether they are whole, which are kept.

RUN/checkpoints/<step>/pretrained_model/   config, weights, processors, train config, data report
RUN/checkpoints/<step>/training_state/     optimizer, schedule, step, the other weights with --ema, manifest
RUN/checkpoints/<step>/adapter/            with --peft: LeRobot's layout for adapters alone
RUN/checkpoints/last                       link to the newest

On the Hub the files of `pretrained_model` lie at the top, with `training_state` and `adapter` beside them.
"""

import os
import shutil
import zlib
from pathlib import Path
from typing import Any

from lerobot.utils.constants import LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR, TRAINING_STATE_DIR

from depi.errors import UserError
from depi.files import read_json, write_json
from depi.hub.client.api import download_files, repo_info
from depi.hub.names import path_problem
from depi.threads import threads

ADAPTER_DIR = "adapter"
MANIFEST_NAME = "manifest.json"
TRAINING_STEP_NAME = "training_step.json"

_CHUNK_BYTES = 1 << 24


def checkpoint_part(pretrained: Path, part: str) -> Path:
    """Return a checkpoint's `training_state`, `adapter` or `pretrained_model`, given the last of these."""
    if part == PRETRAINED_MODEL_DIR:
        return pretrained
    inside = pretrained / part  # as on the Hub
    return inside if inside.is_dir() else pretrained.parent / part


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the checkpoints in a run's folder of checkpoints, by step."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if path.name.isdigit() and not path.is_symlink()]
    return sorted((path for path in found if path.is_dir()), key=lambda path: int(path.name))


def last_checkpoint(checkpoints: Path) -> Path:
    """Return the `pretrained_model` folder of a run's newest checkpoint.

    Raises:
        UserError: the run has none yet, or `last` leads nowhere; then the newest that is there is named.
    """
    link = checkpoints / LAST_CHECKPOINT_LINK
    pretrained = link.resolve() / PRETRAINED_MODEL_DIR
    if pretrained.is_dir():
        return pretrained
    if not link.is_symlink() and not link.exists():
        raise UserError(
            f"{checkpoints.parent} has no complete checkpoint to resume from: if no process trains there, "
            "remove the folder and start the run again without --resume"
        )
    raise UserError(f"{link} leads to no checkpoint; {_offer(list_checkpoints(checkpoints))}")


def point_last_to(checkpoint: Path) -> None:
    """Let `last` beside a checkpoint point to it, atomically."""
    link = checkpoint.parent / LAST_CHECKPOINT_LINK
    temporary = checkpoint.parent / f".{LAST_CHECKPOINT_LINK}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.name)
    os.replace(temporary, link)
    _sync_path(checkpoint.parent)


def put_in_place(temporary: Path, final: Path) -> None:
    """Give a folder that is complete its name, durably, and let `last` point to it.

    At no moment does `last` lead nowhere, also where `final` exists and is replaced.
    """
    sync_tree(temporary)
    if final.exists():  # the run went back to an earlier checkpoint and has come here again
        earlier = [path for path in list_checkpoints(final.parent) if int(path.name) < int(final.name)]
        if earlier and (final.parent / LAST_CHECKPOINT_LINK).resolve() == final.resolve():
            point_last_to(earlier[-1])
        _remove(final)
    temporary.rename(final)
    _sync_path(final.parent)
    point_last_to(final)


def remove_old(newest: Path, keep_last: int | None, keep_every: int | None, busy: set[Path]) -> None:
    """Remove checkpoints before `newest`, but for the last `keep_last`, every `keep_every` steps, and `busy`.

    Args:
        newest: complete; later ones, of a run that went back, stay.
        keep_last: how many to keep, `newest` among them; None for all.
        keep_every: keep those whose step is a multiple of it; None for none.
        busy: being read.
    """
    if keep_last is None:
        return
    upto = [path for path in list_checkpoints(newest.parent) if int(path.name) <= int(newest.name)]
    for path in upto[:-keep_last]:
        if path not in busy and (keep_every is None or int(path.name) % keep_every):
            _remove(path)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint in such a way that no half of it keeps its name."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(checkpoints: Path) -> None:
    """Remove what a killed run left half written or half removed."""
    for path in checkpoints.glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_manifest(checkpoint: Path) -> None:
    """Write down sizes and checksums of everything that a run needs to go on.

    People edit the JSON files and the card in `pretrained_model`: those are left out.
    """
    paths = [
        path
        for path in sorted(checkpoint.rglob("*"))
        if path.suffix == ".safetensors" or path.parent.name == TRAINING_STATE_DIR
    ]
    files = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "crc32": _checksum(path)}
        for path in paths
    }
    write_json(checkpoint / TRAINING_STATE_DIR / MANIFEST_NAME, {"files": files})


def check_checkpoint(pretrained: Path) -> None:
    """Compare a checkpoint with its manifest; one of an earlier version, without a manifest, passes.

    Raises:
        UserError: files are missing, truncated or changed; the sentence offers the checkpoint before.
    """
    problem = find_damage(pretrained)
    if problem:
        checkpoints = pretrained.parent.parent
        name = pretrained.parent.name
        before = [
            path
            for path in list_checkpoints(checkpoints)
            if name.isdigit() and int(path.name) < int(name) and not find_damage(path / PRETRAINED_MODEL_DIR)
        ]
        raise UserError(f"the checkpoint in {pretrained.parent} is damaged: {problem}; {_offer(before)}")


def find_damage(pretrained: Path) -> str | None:
    """Say what differs between a checkpoint and its manifest; None if nothing does."""
    manifest = checkpoint_part(pretrained, TRAINING_STATE_DIR) / MANIFEST_NAME
    if not manifest.exists():
        return None if manifest.parent.is_dir() else f"{manifest.parent} is missing"
    try:
        files = {_locate(pretrained, name): facts for name, facts in read_json(manifest)["files"].items()}
        for path, facts in files.items():
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                return f"{path.name} is missing"
            if size != facts["bytes"]:
                return f"{path.name} has {size:,} bytes of {facts['bytes']:,}"
        with threads(os.cpu_count() or 1) as pool:
            for path, checksum in zip(files, pool.map(_checksum, files), strict=True):
                if checksum != files[path]["crc32"]:
                    return f"the checksum of {path.name} is wrong"
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        return f"{manifest.name} cannot be read"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return None


def _locate(pretrained: Path, name: str) -> Path:
    part, _, rest = name.partition("/")
    if path_problem(name) or not rest or part not in (PRETRAINED_MODEL_DIR, TRAINING_STATE_DIR, ADAPTER_DIR):
        raise ValueError(name)
    return checkpoint_part(pretrained, part) / rest


def _offer(checkpoints: list[Path]) -> str:
    if not checkpoints:
        return "there is no checkpoint before it"
    return (
        f"go on from an earlier one with --resume=true --config_path={checkpoints[-1] / PRETRAINED_MODEL_DIR}"
    )


def fetch_checkpoint(repo_id: str, revision: str | None = None) -> Path:
    """Download a checkpoint to go on from, as `depi upload --all` publishes it, and return its folder.

    Raises:
        HubError: missing, private or unreachable.
        UserError: the repository holds no training state.
    """
    info = repo_info(repo_id, repo_type="model", revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    if f"{TRAINING_STATE_DIR}/{TRAINING_STEP_NAME}" not in names:
        raise UserError(
            f"{repo_id} holds no training state: publish one with `depi upload RUN {repo_id} --all`, or "
            f"start a new run from its weights with --policy.path={repo_id}"
        )
    wanted = [name for name in names if name.rpartition("/")[0] in ("", TRAINING_STATE_DIR, ADAPTER_DIR)]
    assert info.sha is not None
    return download_files(repo_id, wanted, revision=info.sha, repo_type="model", progress=True)


def read_training_step(pretrained: Path) -> dict[str, Any]:
    """Return `step`, `global_batch` and `exported` of a checkpoint.

    Raises:
        UserError: the file is missing or no JSON.
    """
    return read_json(checkpoint_part(pretrained, TRAINING_STATE_DIR) / TRAINING_STEP_NAME)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def sync_tree(folder: Path) -> None:
    """Make a folder and everything in it durable."""
    for path in [*folder.rglob("*"), folder]:
        _sync_path(path)


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
