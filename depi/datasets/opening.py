"""Open one dataset for training: fetch it, check it, bring its joints into canonical degrees."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from depi.datasets.cameras import slot_order
from depi.datasets.checks import resolve_file
from depi.datasets.formats import (
    DatasetMeta,
    Episodes,
    VideoTable,
    data_files,
    load_meta,
    metadata_files,
    read_frames,
    video_files,
)
from depi.datasets.joints import Detection, detect_convention, to_degrees
from depi.datasets.tables import first_rows
from depi.errors import DatasetError, UserError

ACTION = "action"
STATE = "observation.state"


@dataclass(frozen=True)
class DatasetSource:
    """Where a dataset is: on the Hub at a revision (None: its newest), or, with `root`, in a local folder."""

    repo_id: str
    revision: str | None = None
    root: Path | None = None


@dataclass(frozen=True)
class OpenDataset:
    """A dataset whose tables are read, checked and converted; F frames in E episodes.

    state: float32 [F, Ds], action: float32 [F, Da], canonical unless `detection` says native
    timestamp: float32 [F], seconds since the episode's start
    task: int32 [F], positions in `tasks`
    first_row: int64 [E], the episode's first row in its data file (zeros where no camera is stored there)
    cameras: camera keys, the one of slot 0 first
    left_out: recorded episode_index -> why the episode is not used
    """

    meta: DatasetMeta
    detection: Detection
    state: np.ndarray
    action: np.ndarray
    timestamp: np.ndarray
    task: np.ndarray
    tasks: tuple[str, ...]
    first_row: np.ndarray
    cameras: tuple[str, ...]
    left_out: dict[int, str]
    licence: str | None

    @property
    def kind(self) -> tuple[int, int, bool]:
        """What must agree between datasets that train together: state and action sizes, canonical or not."""
        return self.state.shape[1], self.action.shape[1], self.detection.convention != "native"


def open_dataset(
    source: DatasetSource, *, max_cameras: int, episodes: Sequence[int] | None = None
) -> OpenDataset:
    """Fetch and read one dataset; of its videos only those of the first `max_cameras` cameras.

    Args:
        source: where it is.
        max_cameras: number of camera slots.
        episodes: recorded episode indices to use, all by default.

    Raises:
        DatasetError: the dataset cannot be used; the message is the reason.
        UserError: the Hub does not give it, or `episodes` names one that does not exist.
    """
    fetch = _LocalFiles(source) if source.root is not None else _HubFiles(source)
    meta = load_meta(fetch.metadata(), source.repo_id, fetch.revision)
    if episodes is not None:
        meta = select_episodes(meta, _positions(meta, episodes))
    fetch.files(data_files(meta))
    frames = _read_columns(meta)
    detection = detect_convention(meta.info.features[ACTION].names, frames[ACTION], frames[STATE])
    if detection.convention == "unknown":
        raise DatasetError(f"the joint convention is unknown: {detection.evidence}")
    if detection.convention != "native" and frames[STATE].shape[1] != frames[ACTION].shape[1]:
        raise DatasetError(
            f"an action has {frames[ACTION].shape[1]} numbers, the state {frames[STATE].shape[1]}"
        )
    meta, frames, left_out = _leave_out_bad_episodes(meta, frames)
    cameras = slot_order(meta.info.camera_keys)[:max_cameras]
    if not cameras:
        raise DatasetError("there is no camera")
    videos = video_files(meta, cameras=cameras)
    fetch.files(videos)
    for file in videos:
        resolve_file(meta.root, file)
    stored = any(meta.info.features[key].dtype == "image" for key in cameras)
    tasks, task = _tasks(meta, frames.get("task_index"))
    return OpenDataset(
        meta=meta,
        detection=detection,
        state=to_degrees(frames[STATE], detection.convention),
        action=to_degrees(frames[ACTION], detection.convention),
        timestamp=frames["timestamp"],
        task=task,
        tasks=tasks,
        first_row=first_rows(meta) if stored else np.zeros(len(meta.episodes), np.int64),
        cameras=cameras,
        left_out=left_out,
        licence=fetch.licence,
    )


class _LocalFiles:
    """A folder that has everything already."""

    def __init__(self, source: DatasetSource) -> None:
        self.root = Path(source.root or ".")
        self.revision = source.revision
        self.licence: str | None = None

    def metadata(self) -> Path:
        if not self.root.is_dir():
            raise DatasetError(f"there is no folder {self.root}")
        return self.root

    def files(self, names: Sequence[str]) -> None:
        """All of them are here, or will be found missing."""


class _HubFiles:
    """A Hub repository at one commit, of which files are fetched as they are needed."""

    def __init__(self, source: DatasetSource) -> None:
        from depi.hub import client

        info = client.repo_info(source.repo_id, revision=source.revision)
        self.repo_id = source.repo_id
        if info.sha is None:
            raise DatasetError("the Hub names no commit")
        self.revision: str = info.sha
        self.present = {file.rfilename for file in info.siblings or []}
        licence = getattr(info.card_data, "license", None)
        self.licence = licence if isinstance(licence, str) else None

    def metadata(self) -> Path:
        names = metadata_files(self.present)
        if "meta/info.json" not in names:
            raise DatasetError("meta/info.json is missing")
        return self.files(names)

    def files(self, names: Sequence[str]) -> Path:
        from depi.hub import client

        missing = [name for name in names if name not in self.present]
        if missing:
            raise DatasetError(f"{missing[0]} is missing ({len(missing)} of {len(names)} files are)")
        return client.download_files(self.repo_id, names, revision=self.revision)


def _positions(meta: DatasetMeta, episodes: Sequence[int]) -> np.ndarray:
    wanted = np.unique(np.asarray(episodes, np.int64))
    missing = np.setdiff1d(wanted, meta.episodes.episode_index)
    if not len(wanted):
        raise UserError(f"no episode of dataset {meta.repo_id} is chosen, name one or leave the choice out")
    if len(missing):
        raise UserError(f"dataset {meta.repo_id} has no episode {missing[0]}, it has {len(meta.episodes)}")
    return np.flatnonzero(np.isin(meta.episodes.episode_index, wanted))


def select_episodes(meta: DatasetMeta, positions: np.ndarray) -> DatasetMeta:
    """The same dataset with only some of its episodes, given by their positions."""
    old = meta.episodes
    chosen = Episodes(
        episode_index=old.episode_index[positions],
        length=old.length[positions],
        tasks=tuple(old.tasks[position] for position in positions),
        data_paths=old.data_paths,
        data_file=old.data_file[positions],
        videos={
            key: VideoTable(table.paths, table.file[positions], table.start[positions])
            for key, table in old.videos.items()
        },
    )
    return replace(meta, episodes=chosen)


def _read_columns(meta: DatasetMeta) -> dict[str, np.ndarray]:
    """Action and state as float32 [F, D], timestamp [F], task_index [F] if recorded."""
    for name in (ACTION, STATE):
        if name not in meta.info.features:
            raise DatasetError(f"there is no column {name}")
        if meta.info.features[name].is_camera:
            raise DatasetError(f"the column {name} is a camera")
    columns = [ACTION, STATE, "timestamp"]
    if "task_index" in meta.info.features:
        columns.append("task_index")
    frames = read_frames(meta, columns)
    for name in (ACTION, STATE):
        if frames[name].dtype not in (np.float32, np.int64):
            raise DatasetError(f"the column {name} holds no numbers")
        frames[name] = frames[name].astype(np.float32).reshape(len(frames[name]), -1)
    frames["timestamp"] = frames["timestamp"].astype(np.float32).reshape(-1)
    return frames


def _leave_out_bad_episodes(
    meta: DatasetMeta, frames: dict[str, np.ndarray]
) -> tuple[DatasetMeta, dict[str, np.ndarray], dict[int, str]]:
    """Drop the episodes that hold what no robot recorded; DatasetError if none is left."""
    length = meta.episodes.length
    start = np.cumsum(length) - length
    time = frames["timestamp"]
    backwards = np.diff(time, prepend=-np.inf) <= 0
    backwards[start] = time[start] < 0
    checks = {
        "an action is not a finite number": ~np.isfinite(frames[ACTION]).all(axis=1),
        "a state is not a finite number": ~np.isfinite(frames[STATE]).all(axis=1),
        "a timestamp is not a finite number": ~np.isfinite(time),
        "timestamps do not increase": backwards,
    }
    left_out: dict[int, str] = {}
    for reason, bad in checks.items():
        for position in np.flatnonzero(np.logical_or.reduceat(bad, start)):
            left_out.setdefault(int(meta.episodes.episode_index[position]), reason)
    if not left_out:
        return meta, frames, left_out
    keep = ~np.isin(meta.episodes.episode_index, list(left_out))
    if not keep.any():
        raise DatasetError(f"no episode can be used: {next(iter(left_out.values()))}")
    rows = np.repeat(keep, length)
    frames = {name: values[rows] for name, values in frames.items()}
    return select_episodes(meta, np.flatnonzero(keep)), frames, left_out


def _tasks(meta: DatasetMeta, task_index: np.ndarray | None) -> tuple[tuple[str, ...], np.ndarray]:
    """The dataset's task texts, and for each frame the position of its own (int32 [F])."""
    if task_index is None:
        if not all(meta.episodes.tasks):
            raise DatasetError("there is no task_index, and an episode without a task")
        texts = tuple(dict.fromkeys(tasks[0] for tasks in meta.episodes.tasks))
        per_episode = np.array([texts.index(tasks[0]) for tasks in meta.episodes.tasks], np.int32)
        return texts, np.repeat(per_episode, meta.episodes.length)
    used, position = np.unique(task_index, return_inverse=True)
    unknown = [index for index in used.tolist() if index not in meta.tasks]
    if unknown:
        raise DatasetError(f"task_index {unknown[0]} has no task")
    return tuple(meta.tasks[index] for index in used.tolist()), position.astype(np.int32).reshape(-1)
