"""Which frames of a training set are drawn: episodes left out or held out, idle heads and tails cut off.

What is left is one range of frames per episode, so it is kept as bounds and never as a list of frames.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from depi.errors import UserError
from depi.files import read_json

IDLE_SHARE = 0.02
"""A joint moves when it leaves where it rested by more than this share of its range in the dataset..."""

IDLE_FLOOR = 0.005
"""... and of the widest range of any joint, so that the noise of a joint at rest is no motion."""

SPLITS = ("train", "eval", "all")


class Frames(Protocol):
    """The columns of `MultiLeRobotDataset` that the choice and order of frames depend on."""

    repo_ids: Any  # of N datasets
    state: Any  # [F, Ds]
    action: Any  # [F, Da]
    task: Any  # [F]
    episode_start: Any  # [E + 1]
    episode_dataset: Any  # [E]
    episode_recorded: Any  # [E]


@dataclass(frozen=True)
class FrameFilter:
    """What is not drawn.

    min_episode_frames: an episode with fewer frames is left out (after its idle ends are cut off)
    drop_last: frames at the end of every episode that are not drawn
    trim_idle: cut off the frames before an episode's first motion and after its last; see `moving_range`
    exclude: repo_id -> recorded episode indices that are left out
    eval_split: share of episodes that are held out of training; see `is_held_out`
    split: draw from the `train` episodes, from the held-out `eval` ones, or from `all`
    seed: decides which episodes are held out
    """

    min_episode_frames: int = 1
    drop_last: int = 0
    trim_idle: bool = False
    exclude: Mapping[str, Sequence[int]] = field(default_factory=dict)
    eval_split: float = 0.0
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} is none of {', '.join(SPLITS)}")
        if not 0 <= self.eval_split < 1:
            raise ValueError(f"eval_split must be at least 0 and below 1, not {self.eval_split}")


def frame_ranges(dataset: Frames, filters: FrameFilter) -> tuple[np.ndarray, dict[str, int]]:
    """Which frames of each episode are drawn.

    Returns:
        int64 [E, 2], first frame and the one after the last, in the numbering of the dataset; equal where the
        episode is left out. And how many episodes (and frames, for `idle_frames`) each filter took.
    """
    start = np.asarray(dataset.episode_start, np.int64)
    ranges = np.stack([start[:-1], start[1:]], axis=1)
    counts = dict.fromkeys(("excluded", "other_split", "idle_frames", "too_short"), 0)
    excluded = _excluded(dataset, filters.exclude)
    other = ~excluded & _other_split(dataset, filters)
    ranges[excluded | other, 1] = ranges[excluded | other, 0]
    if filters.trim_idle:
        before = int((ranges[:, 1] - ranges[:, 0]).sum())
        _trim(dataset, ranges)
        counts["idle_frames"] = before - int((ranges[:, 1] - ranges[:, 0]).sum())
    ranges[:, 1] = np.maximum(ranges[:, 0], np.minimum(ranges[:, 1], start[1:] - filters.drop_last))
    length = ranges[:, 1] - ranges[:, 0]
    short = ~(excluded | other) & (length < max(1, filters.min_episode_frames))
    ranges[short, 1] = ranges[short, 0]
    counts.update(excluded=int(excluded.sum()), other_split=int(other.sum()), too_short=int(short.sum()))
    return ranges, counts


def is_held_out(repo_id: str, episode_index: int, seed: int, share: float) -> bool:
    """Whether an episode is held out of training: decided by nothing but these arguments.

    So an episode stays on its side when datasets or episodes come and go, and a larger share holds out a
    superset.
    """
    digest = hashlib.blake2b(f"{seed}/{repo_id}/{episode_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


def moving_range(columns: Sequence[np.ndarray], least: Sequence[np.ndarray]) -> tuple[int, int]:
    """Where an episode's motion begins and ends.

    The head is idle while every joint stays within its `least` motion of the first frame, the tail while it
    stays so close to the last frame; slow drift is found as well as a jerk, at any frame rate. The frame from
    which the motion starts, and the one at which it ends, are kept.

    Args:
        columns: arrays [n, D] of one episode, such as its states and actions.
        least: for each of them the smallest motion per joint, [D].

    Returns:
        first frame and the one after the last; (0, 0) where nothing moves.
    """
    first, last = len(columns[0]), -1
    for values, threshold in zip(columns, least, strict=True):
        from_start = np.flatnonzero((np.abs(values - values[0]) > threshold).any(axis=1))
        from_end = np.flatnonzero((np.abs(values - values[-1]) > threshold).any(axis=1))
        if len(from_start):
            first = min(first, int(from_start[0]))
        if len(from_end):
            last = max(last, int(from_end[-1]))
    if first == len(columns[0]) and last == -1:
        return 0, 0
    # Motion that returns to where it began shows from the start only, or from the end only.
    first, last = min(first, last + 1), max(first, last + 1)
    return first - 1 if first else 0, min(last + 1, len(columns[0]))


def least_motion(values: np.ndarray) -> np.ndarray:
    """The smallest motion of each joint that counts, [D], from all frames [F, D] of a dataset."""
    extent = values.max(axis=0) - values.min(axis=0)
    return np.maximum(IDLE_SHARE * extent, IDLE_FLOOR * extent.max())


def read_exclusions(path: Path) -> dict[str, list[int]]:
    """Read `{repo_id: [recorded episode index, ...]}`.

    Raises:
        UserError: the file is missing, or is something else.
    """
    content = read_json(path)
    good = isinstance(content, dict) and all(
        isinstance(episodes, list) and all(type(index) is int for index in episodes)
        for episodes in content.values()
    )
    if not good:
        raise UserError(f"{path} must hold a JSON object of repo ids, each with a list of episode numbers")
    return content


def _excluded(dataset: Frames, exclude: Mapping[str, Sequence[int]]) -> np.ndarray:
    owner, recorded = np.asarray(dataset.episode_dataset), np.asarray(dataset.episode_recorded)
    excluded = np.zeros(len(owner), bool)
    for number, repo_id in enumerate(dataset.repo_ids):
        if exclude.get(repo_id):
            excluded |= (owner == number) & np.isin(recorded, list(exclude[repo_id]))
    return excluded


def _other_split(dataset: Frames, filters: FrameFilter) -> np.ndarray:
    """Episodes on the side that is not drawn, bool [E]."""
    owner, recorded = np.asarray(dataset.episode_dataset), np.asarray(dataset.episode_recorded)
    if filters.split == "all" or (filters.split == "train" and not filters.eval_split):
        return np.zeros(len(owner), bool)
    pairs = zip(owner.tolist(), recorded.tolist(), strict=True)
    held_out = np.array(
        [
            is_held_out(dataset.repo_ids[number], index, filters.seed, filters.eval_split)
            for number, index in pairs
        ]
    )
    return held_out if filters.split == "train" else ~held_out


def _trim(dataset: Frames, ranges: np.ndarray) -> None:
    """Cut the idle ends of the episodes off their ranges, in place."""
    start, owner = np.asarray(dataset.episode_start), np.asarray(dataset.episode_dataset)
    for number in range(len(dataset.repo_ids)):
        episodes = np.flatnonzero(owner == number)
        first, last = start[episodes[0]], start[episodes[-1] + 1]
        columns = [np.asarray(column[first:last]) for column in (dataset.state, dataset.action)]
        least = [least_motion(column) for column in columns]
        for episode in episodes:
            if ranges[episode, 0] < ranges[episode, 1]:
                begin, end = start[episode] - first, start[episode + 1] - first
                moving = moving_range([column[begin:end] for column in columns], least)
                ranges[episode] = start[episode] + np.array(moving)
