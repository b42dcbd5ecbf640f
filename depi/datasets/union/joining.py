"""Join the indexes of many datasets into one, streaming: the frames go through files.

Only the statistics, whose quantiles are exact, hold more: one joint of all frames at a time.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from depi.datasets.recording.sources import cache_faults
from depi.datasets.recording.tables import ACTION, STATE
from depi.datasets.union.dataset_index import Part
from depi.datasets.union.index import NO_CAMERA, Index, map_index, write_index
from depi.datasets.union.statistics import compute_stats, stats_to_json
from depi.files import draft_folder


def join(folder: Path, parts: Sequence[Part], max_cameras: int | None, manifest: Mapping[str, Any]) -> None:
    """Write the index of several datasets, which agree in kind, with their statistics.

    Args:
        folder: to be made.
        parts: the datasets in order; at least one.
        max_cameras: camera slots; None for as many as a dataset has cameras.
        manifest: what else to store.
    """
    frames_folder = folder.with_name(f"{folder.name}.frames")
    with cache_faults(folder), draft_folder(frames_folder) as scratch:
        slots = max(len(part.cameras) for part in parts) if max_cameras is None else max_cameras
        episodes = _Episodes(slots)
        frames = _stream_frames(scratch, parts, episodes)
        joints = {STATE: frames["state"], ACTION: frames["action"]}
        write_index(
            folder,
            {**frames, **{name: np.concatenate(pieces) for name, pieces in episodes.columns.items()}},
            files=episodes.files,
            file_dataset=np.repeat(np.arange(len(parts), dtype=np.int32), episodes.file_counts),
            tasks=list(episodes.tasks),
            manifest={
                **manifest,
                "datasets": [_entry(part) for part in parts],
                "stats": stats_to_json({key: compute_stats(values) for key, values in joints.items()}),
            },
        )


def _stream_frames(scratch: Path, parts: Sequence[Part], episodes: "_Episodes") -> dict[str, np.ndarray]:
    """Append all datasets' frames to raw files, and their episodes to `episodes`; the files, mapped."""
    shapes: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    with ExitStack() as stack:
        raw = {
            name: stack.enter_context((scratch / name).open("wb"))
            for name in ("state", "action", "timestamp", "task")
        }
        for part in parts:
            index = map_index(part.folder)
            task = episodes.add(index, part.cameras)
            for name, file in raw.items():
                values = task if name == "task" else getattr(index, name)
                file.write(np.ascontiguousarray(values))  # numpy's `tofile` hides why it fails
                shapes[name] = values.dtype, values.shape[1:]
    frames = sum(part.entry["frames"] for part in parts)
    return {
        name: np.memmap(scratch / name, dtype, mode="r", shape=(frames, *shape))
        for name, (dtype, shape) in shapes.items()
    }


class _Episodes:
    """What is collected of the datasets one after another: episode columns, files and tasks."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.columns: dict[str, list[np.ndarray]] = {}
        self.files: list[str] = []
        self.file_counts: list[int] = []
        self.tasks: dict[str, int] = {}

    def add(self, index: Index, cameras: tuple[int, ...]) -> np.ndarray:
        """Append one dataset; returns its frames' positions in the common list of tasks, int32 [F]."""
        kind = _to_slots(index.camera_kind[:, cameras], self.slots, NO_CAMERA)
        used, position = np.unique(index.camera_file[:, cameras], return_inverse=True)
        file = position.reshape(len(kind), -1).astype(np.int32) + np.int32(len(self.files))
        self.files += [index.files[number].as_py() for number in used.tolist()]
        self.file_counts.append(len(used))
        columns = {
            "recorded": index.recorded,
            "length": index.length,
            "camera_kind": kind,
            "camera_file": _to_slots(file, self.slots, 0),
            "camera_begin": _to_slots(index.camera_begin[:, cameras], self.slots, 0),
            "camera_end": _to_slots(index.camera_end[:, cameras], self.slots, 0),
        }
        for name, values in columns.items():
            self.columns.setdefault(name, []).append(values)
        texts = index.tasks.to_pylist()
        numbers = [self.tasks.setdefault(text, len(self.tasks)) for text in texts]
        return np.array(numbers, np.int32)[index.task]


def _to_slots(values: np.ndarray, slots: int, absent: int) -> np.ndarray:
    """[E, C] to [E, slots]: missing cameras filled in."""
    return np.pad(values, ((0, 0), (0, slots - values.shape[1])), constant_values=absent)


def _entry(part: Part) -> dict[str, Any]:
    keys = part.entry["cameras"]
    used = [keys[position] for position in part.cameras]
    return {**part.entry, "cameras": used, "cameras_not_used": [key for key in keys if key not in used]}
