"""Episodes and tasks of v2.0 and v2.1: JSON lines, one parquet file and one video per episode and camera."""

from pathlib import Path
from typing import Any

import numpy as np

from depi.datasets.recording.checks import check_relative, parse_json, read_text, short, whole_number
from depi.datasets.recording.formats import (
    MAX_EPISODES,
    MAX_FRAMES,
    DatasetInfo,
    Episodes,
    TaskTexts,
    VideoTable,
)
from depi.errors import DatasetError

MAX_LINE = 4_000_000


def read_tasks(root: Path) -> dict[int, str]:
    """`meta/tasks.jsonl` as task_index -> text."""
    tasks, texts = {}, TaskTexts()
    for row in read_lines(root, "meta/tasks.jsonl"):
        index = whole_number(row.get("task_index"), "task_index", 0, MAX_EPISODES)
        tasks[index] = texts.check(row.get("task"))
    return tasks


def read_episodes(root: Path, info: DatasetInfo) -> Episodes:
    """`meta/episodes.jsonl` in ascending episode_index, with the paths of its files."""
    rows = read_lines(root, "meta/episodes.jsonl")
    index = [whole_number(row.get("episode_index"), "episode_index", 0, 10_000_000) for row in rows]
    length = [whole_number(row.get("length"), "length of an episode", 1, MAX_FRAMES) for row in rows]
    texts = TaskTexts()
    tasks = [_episode_tasks(row.get("tasks"), texts) for row in rows]
    order = np.argsort(np.array(index, np.int64), kind="stable")
    episode_index = np.array(index, np.int64)[order]
    position = np.arange(len(rows), dtype=np.int32)
    start, end = np.zeros(len(rows)), np.full(len(rows), np.inf)
    videos = {
        key: VideoTable(_paths(info, info.video_path, episode_index, key), position, start, end)
        for key in info.video_keys
        if info.video_path is not None
    }
    return Episodes(
        episode_index=episode_index,
        length=np.array(length, np.int64)[order],
        tasks=tuple(tasks[row] for row in order),
        data_paths=_paths(info, info.data_path, episode_index),
        data_file=position,
        videos=videos,
    )


def _paths(info: DatasetInfo, template: str, episode_index: np.ndarray, key: str = "") -> tuple[str, ...]:
    paths = (
        template.format(episode_chunk=index // info.chunks_size, episode_index=index, video_key=key)
        for index in episode_index.tolist()
    )
    return tuple(check_relative(path, "path") for path in paths)


def _episode_tasks(value: Any, texts: TaskTexts) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or len(value) > 10_000:
        raise DatasetError(f"tasks of an episode are {short(value)}, expected a list of texts")
    return tuple(texts.check(text) for text in value)


def read_lines(root: Path, relative: str, limit: int = 64_000_000) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; DatasetError where it is too long or holds anything else."""
    text = read_text(root, relative, limit)
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > MAX_EPISODES:
        raise DatasetError(f"{relative} has {len(lines)} lines, at most {MAX_EPISODES} are read")
    rows = []
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE:
            raise DatasetError(f"line {number} of {relative} has {len(line)} characters")
        row = parse_json(line, f"line {number} of {relative}")
        if not isinstance(row, dict):
            raise DatasetError(f"line {number} of {relative} is {short(row)}, expected an object")
        rows.append(row)
    return rows
