"""Atomic writing of files: a file appears complete or not at all; and where the cache is."""

import fcntl
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from depi.errors import UserError


def cache_folder() -> Path:
    """Where DePi keeps what it can build again: DEPI_CACHE, by default `depi` in HF_HOME."""
    from huggingface_hub import constants

    return Path(os.environ.get("DEPI_CACHE") or Path(constants.HF_HOME, "depi"))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make OSErrors of the body name `path` where they name no file, as errors of writing do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield an empty draft beside `path`; on success it takes the name `path`, synced unless told otherwise.

    Readers see the old content or the new, never a part. If the body raises, `path` is untouched. The draft
    of a process that was killed is removed by the next one that writes `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, handle = _new_draft(path, folder=False)
    mode = draft.stat().st_mode
    try:
        with naming(path):
            yield draft
            draft.chmod(mode)  # safetensors replaces it by a file that only its owner may read
            if sync:
                with draft.open("rb") as file:
                    os.fsync(file.fileno())
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, named after it; in the end it is removed, unless it was renamed.

    What a killed process left of it is removed by the next one that asks for it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, handle = _new_draft(path, folder=True)
    try:
        yield draft
    finally:
        if _is_open(draft, handle):
            shutil.rmtree(draft, ignore_errors=True)
        os.close(handle)


def _new_draft(path: Path, *, folder: bool) -> tuple[Path, int]:
    """Create an empty file or folder beside `path`; it is locked until the returned handle is closed.

    Its name is always the same, so that there are never two leftovers. Only while another process has it, or
    where there are no locks, is the name a random one.
    """
    draft = path.with_name(f".{path.name}.tmp")
    if (handle := _take(draft, folder)) is None:
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        _create(draft, folder)
        handle = os.open(draft, os.O_RDONLY)
        _is_locked(draft, handle)
    return draft, handle


def _take(draft: Path, folder: bool) -> int | None:
    """Create the draft in place of a leftover, and lock it; None where that cannot be."""
    with suppress(FileNotFoundError):
        left = os.open(draft, os.O_RDONLY)
        try:
            if not _is_locked(draft, left):
                return None
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
        finally:
            os.close(left)
    try:
        _create(draft, folder)
        handle = os.open(draft, os.O_RDONLY)
    except (FileExistsError, FileNotFoundError):  # another process was faster
        return None
    if _is_locked(draft, handle):
        return handle
    os.close(handle)
    return None


def _create(draft: Path, folder: bool) -> None:
    draft.mkdir() if folder else draft.touch(exist_ok=False)


def _is_locked(draft: Path, handle: int) -> bool:
    """Lock the open draft; false where another process has it, or the name is of another file now."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # BlockingIOError, or a file system without locks
        return False
    return _is_open(draft, handle)


def _is_open(draft: Path, handle: int) -> bool:
    try:
        return os.path.samestat(draft.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def remove_drafts(path: Path) -> None:
    """Remove the drafts of processes that were killed while they wrote `path`, or files in a folder.

    To be called only where no other process writes there.
    """
    path = Path(path)
    folder, name = (path, "") if path.is_dir() else (path.parent, f"{glob.escape(path.name)}.")
    drafts = {draft for pattern in (f".{name}tmp", f".{name}*.tmp") for draft in folder.glob(pattern)}
    for draft in drafts:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with a final newline. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that a user named.

    Raises:
        UserError: the file is missing, cannot be read, is not UTF-8, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a JSON file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
