"""The index: the numbers of one dataset, or of many, as flat Arrow columns in a folder, memory-mapped.

A folder holds `frames.arrow` (F rows), `episodes.arrow` (E rows), `files.arrow`, `tasks.arrow` and, written
last, `manifest.json` with the sizes and checksums of the others. Each Arrow file is one record batch without
nulls, so that a column is one flat array, shared by all processes that open it. A folder appears whole or
not at all; what does not match its manifest is not used.
"""

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from depi.datasets.recording.sources import cache_faults
from depi.files import draft_folder

logger = logging.getLogger(__name__)

NO_CAMERA, VIDEO, IMAGE = 0, 1, 2
KEEP_SECONDS = 30 * 24 * 3600
"""An index that nobody opened for so long is removed when another one is written."""

_FRAMES = ("state", "action", "timestamp", "task")
_EPISODES = ("recorded", "length", "camera_kind", "camera_file", "camera_begin", "camera_end")


@dataclass(frozen=True)
class Index:
    """F frames in E episodes of N datasets, with S camera slots.

    state: float32 [F, Ds], action: float32 [F, Da], timestamp: float32 [F] in seconds
    task: int32 [F], positions in `tasks`
    recorded: int64 [E], episode indices as recorded; length: int64 [E], frames
    camera_kind: int8 [E, S], NO_CAMERA, VIDEO or IMAGE
    camera_file: int32 [E, S], positions in `files`
    camera_begin: float64 [E, S], second in the video or row in the table where the episode begins
    camera_end: float64 [E, S], second in the video where it ends, infinite where that is not known
    files: paths within their dataset's folder; file_dataset: int32, whose file it is
    manifest: `datasets`, one entry each, and whatever else was stored with it
    """

    folder: Path
    state: np.ndarray
    action: np.ndarray
    timestamp: np.ndarray
    task: np.ndarray
    recorded: np.ndarray
    length: np.ndarray
    camera_kind: np.ndarray
    camera_file: np.ndarray
    camera_begin: np.ndarray
    camera_end: np.ndarray
    files: pa.Array
    file_dataset: np.ndarray
    tasks: pa.Array
    manifest: dict[str, Any]


def write_index(
    folder: Path,
    columns: Mapping[str, np.ndarray],
    *,
    files: Sequence[str],
    file_dataset: np.ndarray,
    tasks: Sequence[str],
    manifest: Mapping[str, Any],
) -> None:
    """Write an index as a whole; where another process was faster, its folder stays.

    Args:
        folder: to be made.
        columns: the arrays of `Index` over frames and episodes.
        files: see `Index`, as the rest.
        file_dataset: int32, as long as `files`.
        tasks: distinct texts.
        manifest: JSON-able.
    """
    with new_folder(folder) as draft:
        _write(draft / "frames.arrow", {name: _column(columns[name]) for name in _FRAMES})
        _write(draft / "episodes.arrow", {name: _column(columns[name]) for name in _EPISODES})
        _write(
            draft / "files.arrow",
            {"path": pa.array(files, pa.large_string()), "dataset": _column(file_dataset)},
        )
        _write(draft / "tasks.arrow", {"task": pa.array(tasks, pa.large_string())})
        write_manifest(draft, manifest)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Seal a folder: store `manifest` with the sizes and checksums of the Arrow files that are there."""
    sums = {path.name: [path.stat().st_size, _checksum(path)] for path in sorted(folder.glob("*.arrow"))}
    text = json.dumps({**manifest, "files": sums}, ensure_ascii=True, allow_nan=False)
    (folder / "manifest.json").write_text(json.dumps({"crc32": zlib.crc32(text.encode())}) + "\n" + text)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the name `folder` when the body is through, unless that exists."""
    with cache_faults(folder), draft_folder(folder) as draft:
        yield draft
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def read_index(folder: Path) -> Index | None:
    """The index in a folder; None where there is none, or a damaged one, which is said and removed."""
    if not folder.is_dir():
        return None
    try:
        index = map_index(folder, check=True)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        logger.warning("the cached index %s is damaged and will be built again: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with suppress(OSError):  # in a cache that others keep, this process may only read
        os.utime(folder)
    return index


def map_index(folder: Path, *, check: bool = False) -> Index:
    """Map the index of a folder, `check` its checksums first; ValueError and others if it is damaged."""
    head, _, text = (folder / "manifest.json").read_text().partition("\n")
    if zlib.crc32(text.encode()) != json.loads(head)["crc32"]:
        raise ValueError("manifest.json has another checksum")
    manifest = json.loads(text)
    sums = manifest.pop("files")
    for name in ("frames", "episodes", "files", "tasks"):
        size, checksum = sums[f"{name}.arrow"]
        path = folder / f"{name}.arrow"
        if path.stat().st_size != size or (check and _checksum(path) != checksum):
            raise ValueError(f"{path.name} has another size or checksum")
    frames, episodes, files, tasks = (
        _read(folder / f"{name}.arrow") for name in ("frames", "episodes", "files", "tasks")
    )
    return Index(
        folder=folder,
        **{name: _array(frames[name]) for name in _FRAMES},
        **{name: _array(episodes[name]) for name in _EPISODES},
        files=files["path"],
        file_dataset=_array(files["dataset"]),
        tasks=tasks["task"],
        manifest=manifest,
    )


def prune(parent: Path) -> None:
    """Remove the indexes and leftovers in `parent` that nobody opened for KEEP_SECONDS."""
    for folder in parent.iterdir():
        try:
            if folder.is_dir() and time.time() - folder.stat().st_mtime > KEEP_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:  # another process was faster
            continue


def _column(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _array(column: pa.Array) -> np.ndarray:
    width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else None
    flat = column if width is None else column.values
    # Array.to_numpy would import pandas, which takes longer than all the rest.
    values = np.frombuffer(flat.buffers()[1], flat.type.to_pandas_dtype(), len(flat))
    return values if width is None else values.reshape(len(column), width)


def _write(path: Path, columns: dict[str, pa.Array]) -> None:
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _read(path: Path) -> pa.RecordBatch:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(0)


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
