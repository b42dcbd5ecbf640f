"""Episodes and tasks of v2.0 and v2.1: JSON lines, one parquet file and one video per episode and camera."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from depi.datasets.recording.checks import (
    check_bytes,
    check_relative,
    decode,
    parse_json,
    resolve_file,
    short,
    whole_number,
)
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
    index, length, tasks = [], [], []
    texts = TaskTexts()
    for row in read_lines(root, "meta/episodes.jsonl", max_lines=info.max_episodes):
        index.append(whole_number(row.get("episode_index"), "episode_index", 0, 10_000_000))
        length.append(whole_number(row.get("length"), "length of an episode", 1, MAX_FRAMES))
        tasks.append(_episode_tasks(row.get("tasks"), texts))
    order = np.argsort(np.array(index, np.int64), kind="stable")
    episode_index = np.array(index, np.int64)[order]
    position = np.arange(len(index), dtype=np.int32)
    start, end = np.zeros(len(index)), np.full(len(index), np.inf)
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
    paths = tuple(
        template.format(episode_chunk=index // info.chunks_size, episode_index=index, video_key=key)
        for index in episode_index.tolist()
    )
    # They differ in their digits alone: if the one with the most is acceptable, all are.
    check_relative(max(paths, key=len, default=template), "path")
    return paths


def _episode_tasks(value: Any, texts: TaskTexts) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or len(value) > 10_000:
        raise DatasetError(f"tasks of an episode are {short(value)}, expected a list of texts")
    return tuple(texts.check(text) for text in value)


def read_lines(
    root: Path, relative: str, limit: int = 64_000_000, max_lines: int = MAX_EPISODES
) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, one after another.

    Raises:
        DatasetError: it has more than `limit` bytes or `max_lines` lines, or holds anything else; when the
            iterator comes to it.
    """
    path = resolve_file(root, relative)
    check_bytes(path, relative, limit)
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            name = f"line {number} of {relative}"
            if len(line) > MAX_LINE:
                raise DatasetError(f"{name} has more than {MAX_LINE} bytes")
            if number > max_lines:
                raise DatasetError(f"{relative} has more than {max_lines} lines, no more are read")
            text = decode(line, name)
            if not text.strip():
                continue
            row = parse_json(text, name)
            if not isinstance(row, dict):
                raise DatasetError(f"{name} is {short(row)}, expected an object")
            yield row
