"""Read one dataset for training: leave out bad episodes, bring its joints into one convention."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from depi.datasets.judging.examine import FetchedTables, examine_tables, keep
from depi.datasets.judging.faults import Recording, bad_episodes
from depi.datasets.judging.offsets import measure_offsets, take_out
from depi.datasets.judging.rules import LEAVING_OUT
from depi.datasets.recording.cameras import slot_order
from depi.datasets.recording.formats import DatasetMeta
from depi.datasets.recording.joints import Detection, to_space
from depi.datasets.recording.tables import ACTION, STATE
from depi.errors import DatasetError, UserError

FPS_TOLERANCE = 0.02
"""Timestamps contradict the declared rate where theirs differs from it by more than this share."""


@dataclass(frozen=True)
class OpenDataset:
    """A dataset whose tables are read, checked and converted; F frames in E episodes.

    state: float32 [F, Ds], action: float32 [F, Da], in the units asked for
    timestamp: float32 [F], seconds since the episode's start
    task: int32 [F], positions in `tasks`
    cameras: all camera keys, the one of slot 0 first
    unreadable: recorded episode_index -> why the episode cannot be used
    bad: recorded episode_index -> why the episode is left out, by a rule or by the catalogue
    offsets: by joint, the constant offset that was taken out of its commands
    """

    meta: DatasetMeta
    detection: Detection
    state: np.ndarray
    action: np.ndarray
    timestamp: np.ndarray
    task: np.ndarray
    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    unreadable: dict[int, str]
    bad: dict[int, str]
    offsets: dict[str, float]


def open_dataset(
    fetched: FetchedTables,
    episodes: Sequence[int] | None = None,
    joint_convention: str = "degrees",
    recorded_in: str | None = None,
    bad: Mapping[int, str] | None = None,
    correct_offsets: bool = False,
) -> OpenDataset:
    """Read one dataset's tables; its videos are not touched.

    Args:
        fetched: the dataset.
        episodes: recorded episode indices to use, all by default. The tables of the others are read too: the
            joint convention is the recording's, whichever part of it is used.
        joint_convention: the units of state and action, one of `depi.datasets.recording.joints.SPACES`.
        recorded_in: the joint convention of the recording, where the user gives it; else it is detected.
        bad: the episodes to leave out, by recorded index, with the reasons; None: those that the rules of
            `depi.datasets.judging` find bad.
        correct_offsets: take constant offsets out of the commands, see `depi.datasets.judging.offsets`.

    Raises:
        DatasetError: the dataset cannot be used; the message is the reason.
        UserError: `episodes` names one that does not exist.
    """
    listed = fetched.listed
    wanted = listed.episodes.episode_index if episodes is None else _wanted(listed, episodes)
    examined = examine_tables(fetched, recorded_in, LEAVING_OUT if bad is None else ())
    recording, detection = examined.recording, examined.detection
    columns = recording.columns
    if detection.convention == "unknown":
        raise DatasetError(
            f"the joint convention is unknown: {textwrap.shorten(detection.evidence, 300)}; if you know it, "
            "give it with --dataset.conventions"
        )
    if detection.convention != "native" and columns[STATE].shape[1] != columns[ACTION].shape[1]:
        raise DatasetError(
            f"an action has {columns[ACTION].shape[1]} numbers, the state {columns[STATE].shape[1]}"
        )
    bad = {**(bad_episodes(examined.faults) if bad is None else bad), **examined.unlike}
    bad = {index: reason for index, reason in bad.items() if index not in examined.unreadable}
    unreadable, bad = ({k: v for k, v in each.items() if k in wanted} for each in (examined.unreadable, bad))
    index = recording.meta.episodes.episode_index
    recording = keep(recording, np.isin(index, wanted) & ~np.isin(index, list(bad)), {**bad, **unreadable})
    meta, columns, action = recording.meta, recording.columns, recording.columns[ACTION]
    offsets = _offsets(examined.recording) if correct_offsets else {}
    if offsets:
        action = take_out(action, detection, offsets)
    cameras = slot_order(meta.info.camera_keys)
    if not cameras:
        raise DatasetError("there is no camera")
    tasks, task = _tasks(meta, columns.get("task_index"))
    return OpenDataset(
        meta=meta,
        detection=detection,
        state=to_space(columns[STATE], detection.state, joint_convention),
        action=to_space(action, detection.action, joint_convention),
        timestamp=columns["timestamp"],
        task=task,
        tasks=tasks,
        cameras=cameras,
        unreadable=unreadable,
        bad=bad,
        offsets=offsets,
    )


def _offsets(recording: Recording) -> dict[str, float]:
    """The offsets that matter, over all readable episodes; none of a robot that is no SO-100."""
    assert recording.detection is not None
    if recording.detection.convention == "native":
        return {}
    found = measure_offsets(recording.action, recording.state, recording.length, recording.fps)
    return {joint: round(value, 2) for joint, value in found.constant.items()}


def _wanted(meta: DatasetMeta, episodes: Sequence[int]) -> np.ndarray:
    wanted = np.unique(np.asarray(episodes, np.int64))
    missing = np.setdiff1d(wanted, meta.episodes.episode_index)
    if not len(wanted):
        raise UserError(f"no episode of dataset {meta.repo_id} is chosen, name one or leave the choice out")
    if len(missing):
        raise UserError(f"dataset {meta.repo_id} has no episode {missing[0]}, it has {len(meta.episodes)}")
    return wanted


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
        numbers: dict[str, int] = {}
        of_episodes = [numbers.setdefault(tasks[0], len(numbers)) for tasks in meta.episodes.tasks]
        return tuple(numbers), np.repeat(np.array(of_episodes, np.int32), meta.episodes.length)
    used, position = np.unique(task_index, return_inverse=True)
    return tuple(meta.tasks[index] for index in used.tolist()), position.astype(np.int32).reshape(-1)
