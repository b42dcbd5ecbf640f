"""Read one dataset for training: check it, leave out bad episodes, bring its joints into one convention."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from depi.datasets.recording.cameras import slot_order
from depi.datasets.recording.convention import detect_convention, given_convention
from depi.datasets.recording.formats import DatasetMeta, Episodes, VideoTable, data_files
from depi.datasets.recording.joints import Detection, to_space
from depi.datasets.recording.metadata import read_meta
from depi.datasets.recording.sources import DatasetFiles
from depi.datasets.recording.tables import read_frames
from depi.errors import DatasetError, UserError

ACTION = "action"
STATE = "observation.state"
MAX_VALUE = 1e6
"""No joint, in no unit, is beyond this."""
MAX_STEP = 5.0
"""Two frames of an episode may be this many frame periods apart; farther is a jump."""

FPS_TOLERANCE = 0.02
"""Timestamps contradict the declared rate where theirs differs from it by more than this share."""


@dataclass(frozen=True)
class OpenDataset:
    """A dataset whose tables are read, checked and converted; F frames in E episodes.

    state: float32 [F, Ds], action: float32 [F, Da], in the units asked for
    timestamp: float32 [F], seconds since the episode's start
    task: int32 [F], positions in `tasks`
    cameras: all camera keys, the one of slot 0 first
    left_out: recorded episode_index -> why the episode is not used
    """

    meta: DatasetMeta
    detection: Detection
    state: np.ndarray
    action: np.ndarray
    timestamp: np.ndarray
    task: np.ndarray
    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    left_out: dict[int, str]


def open_dataset(
    files: DatasetFiles,
    episodes: Sequence[int] | None = None,
    joint_convention: str = "degrees",
    recorded_in: str | None = None,
) -> OpenDataset:
    """Fetch and read one dataset's metadata and tables; its videos are not touched.

    Args:
        files: where it is.
        episodes: recorded episode indices to use, all by default. The tables of the others are read too: the
            joint convention is the recording's, whichever part of it is used.
        joint_convention: the units of state and action, one of `depi.datasets.recording.joints.SPACES`.
        recorded_in: the joint convention of the recording, where the user gives it; else it is detected.

    Raises:
        DatasetError: the dataset cannot be used; the message is the reason.
        UserError: the Hub does not give it, or `episodes` names one that does not exist.
    """
    meta = read_meta(files)
    wanted = meta.episodes.episode_index if episodes is None else _wanted(meta, episodes)
    meta, frames, left_out = _read_recording(files, meta, wanted)
    if recorded_in is not None:
        detection = given_convention(recorded_in, frames[ACTION], frames[STATE])
    else:
        detection = detect_convention(
            meta.info.features[ACTION].names,
            frames[ACTION],
            frames[STATE],
            robot_type=meta.info.robot_type,
            episode_length=meta.episodes.length,
        )
    if detection.convention == "unknown":
        raise DatasetError(
            f"the joint convention is unknown: {detection.evidence}; if you know it, give it with "
            "--dataset.conventions"
        )
    if detection.convention != "native" and frames[STATE].shape[1] != frames[ACTION].shape[1]:
        raise DatasetError(
            f"an action has {frames[ACTION].shape[1]} numbers, the state {frames[STATE].shape[1]}"
        )
    left_out = {index: reason for index, reason in left_out.items() if index in wanted}
    meta, frames = _keep(meta, frames, np.isin(meta.episodes.episode_index, wanted), left_out)
    cameras = slot_order(meta.info.camera_keys)
    if not cameras:
        raise DatasetError("there is no camera")
    tasks, task = _tasks(meta, frames.get("task_index"))
    return OpenDataset(
        meta=meta,
        detection=detection,
        state=to_space(frames[STATE], detection, joint_convention),
        action=to_space(frames[ACTION], detection, joint_convention),
        timestamp=frames["timestamp"],
        task=task,
        tasks=tasks,
        cameras=cameras,
        left_out=left_out,
    )


def _wanted(meta: DatasetMeta, episodes: Sequence[int]) -> np.ndarray:
    wanted = np.unique(np.asarray(episodes, np.int64))
    missing = np.setdiff1d(wanted, meta.episodes.episode_index)
    if not len(wanted):
        raise UserError(f"no episode of dataset {meta.repo_id} is chosen, name one or leave the choice out")
    if len(missing):
        raise UserError(f"dataset {meta.repo_id} has no episode {missing[0]}, it has {len(meta.episodes)}")
    return wanted


def select_episodes(meta: DatasetMeta, chosen: np.ndarray) -> DatasetMeta:
    """The same dataset with only some of its episodes, given by their positions or as bool [E]."""
    old = meta.episodes
    positions = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
    episodes = Episodes(
        episode_index=old.episode_index[positions],
        length=old.length[positions],
        tasks=tuple(old.tasks[position] for position in positions),
        data_paths=old.data_paths,
        data_file=old.data_file[positions],
        videos={
            key: VideoTable(table.paths, table.file[positions], table.start[positions], table.end[positions])
            for key, table in old.videos.items()
        },
    )
    return replace(meta, episodes=episodes)


def _read_recording(
    files: DatasetFiles, meta: DatasetMeta, wanted: np.ndarray
) -> tuple[DatasetMeta, dict[str, np.ndarray], dict[int, str]]:
    """Fetch and read the tables of all episodes; see `_leave_out_bad_episodes`.

    A table that nobody asked for may be missing or broken: then those of the episodes `wanted` have to do.
    """
    try:
        files.fetch(data_files(meta))
        return _leave_out_bad_episodes(meta, _read_columns(meta))
    except DatasetError:
        if len(wanted) == len(meta.episodes):
            raise
    meta = select_episodes(meta, np.isin(meta.episodes.episode_index, wanted))
    return _read_recording(files, meta, wanted)


def _read_columns(meta: DatasetMeta) -> dict[str, np.ndarray]:
    """Action and state as float32 [F, D], timestamp [F], task_index [F] if recorded."""
    for name in (ACTION, STATE):
        if name not in meta.info.features:
            raise DatasetError(f"there is no column {name}")
        if meta.info.features[name].is_camera:
            raise DatasetError(f"the column {name} is a camera")
        if 0 in meta.info.features[name].shape:
            raise DatasetError(f"the column {name} is declared empty")
    columns = [ACTION, STATE, "timestamp"]
    if "task_index" in meta.info.features:
        columns.append("task_index")
    frames = read_frames(meta, columns)
    for name in (ACTION, STATE):
        if frames[name].dtype not in (np.float32, np.int64):
            raise DatasetError(f"the column {name} holds no numbers")
        frames[name] = frames[name].astype(np.float32).reshape(len(frames[name]), -1)
    for name in columns[2:]:
        if frames[name].dtype not in (np.float32, np.int64) or frames[name].size != meta.num_frames:
            raise DatasetError(f"the column {name} does not hold one number per frame")
        frames[name] = frames[name].reshape(-1)
    frames["timestamp"] = frames["timestamp"].astype(np.float32)
    return frames


def _leave_out_bad_episodes(
    meta: DatasetMeta, frames: dict[str, np.ndarray]
) -> tuple[DatasetMeta, dict[str, np.ndarray], dict[int, str]]:
    """Drop the episodes that hold what no robot recorded; DatasetError if none is left."""
    length = meta.episodes.length
    start = np.cumsum(length) - length
    time = frames["timestamp"]
    checks = {
        "an action is not a finite number": ~np.isfinite(frames[ACTION]).all(axis=1),
        "a state is not a finite number": ~np.isfinite(frames[STATE]).all(axis=1),
        "an action is absurdly large": (np.abs(frames[ACTION]) > MAX_VALUE).any(axis=1),
        "a state is absurdly large": (np.abs(frames[STATE]) > MAX_VALUE).any(axis=1),
        "a timestamp is not a finite number": ~np.isfinite(time),
        "timestamps do not increase": _backwards(time, start),
        "timestamps jump": _jumps(time, start, meta.info.fps),
    }
    left_out: dict[int, str] = {}
    for reason, bad in checks.items():
        for position in np.flatnonzero(np.logical_or.reduceat(bad, start)):
            left_out.setdefault(int(meta.episodes.episode_index[position]), reason)
    if not left_out:
        return meta, frames, left_out
    keep = ~np.isin(meta.episodes.episode_index, list(left_out))
    return *_keep(meta, frames, keep, left_out), left_out


def _keep(
    meta: DatasetMeta, frames: dict[str, np.ndarray], keep: np.ndarray, left_out: dict[int, str]
) -> tuple[DatasetMeta, dict[str, np.ndarray]]:
    """Only the episodes `keep` (bool [E]) and their frames; DatasetError if there is none."""
    if not keep.any():
        raise DatasetError(f"no episode can be used: {next(iter(left_out.values()))}")
    if keep.all():
        return meta, frames
    rows = np.repeat(keep, meta.episodes.length)
    return select_episodes(meta, keep), {name: values[rows] for name, values in frames.items()}


def _backwards(time: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Which frames (bool [F]) do not come after the one before, or an episode's first before 0."""
    backwards = np.diff(time, prepend=-np.inf) <= 0
    backwards[start] = time[start] < 0
    return backwards


def _jumps(time: np.ndarray, start: np.ndarray, fps: float) -> np.ndarray:
    """Which frames (bool [F]) come more than MAX_STEP periods after the one before.

    The period is the declared one or the episode's own median, whichever is longer: the declared rate of
    many recordings is wrong.
    """
    step = np.diff(time, prepend=time[:1])
    step[start] = 0
    jumps = step > MAX_STEP / fps
    end = np.append(start[1:], len(time))
    for episode in np.flatnonzero(np.logical_or.reduceat(jumps, start)):
        rows = slice(start[episode], end[episode])
        jumps[rows] &= step[rows] > MAX_STEP * np.median(step[rows][1:])
    return jumps


def recorded_fps(time: np.ndarray, length: np.ndarray, fps: float) -> float:
    """The frames per second that timestamps show, where that is not about the declared rate; else that.

    Args:
        time: float32 [F], seconds since each episode's start, increasing.
        length: int64 [E], frames of each episode.
        fps: declared.
    """
    inside = np.ones(len(time), bool)
    inside[np.cumsum(length) - length] = False
    steps = np.diff(time.astype(np.float64), prepend=0)[inside]
    if not len(steps):
        return fps
    shown = 1 / float(np.median(steps))
    return fps if abs(shown / fps - 1) < FPS_TOLERANCE else round(shown, 2)


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
