"""Episodes and tasks of v3.0: parquet tables; many episodes share a data file and a video."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from depi.datasets.recording.checks import check_relative, short, whole_number
from depi.datasets.recording.formats import (
    MAX_EPISODES,
    MAX_FRAMES,
    DatasetInfo,
    Episodes,
    TaskTexts,
    VideoTable,
)
from depi.datasets.recording.tables import column_names, columns_and_rows, iter_rows, read_table
from depi.errors import DatasetError

MAX_FILES = 2_000
"""Over which the list of episodes may be spread; LeRobot begins another one after 100 MB."""
MAX_SECONDS = 1e7
ROWS = ("dataset_from_index", "dataset_to_index")


def read_tasks(root: Path) -> dict[int, str]:
    """`meta/tasks.parquet` as task_index -> text; the text is the pandas index or a column `task`."""
    file = "meta/tasks.parquet"
    names = column_names(root, file)
    texts = [name for name in names if name != "task_index"]
    if "task_index" not in names or not texts:
        raise DatasetError(f"{file} lacks the task text or task_index")
    column = "task" if "task" in texts else texts[-1]
    checked = TaskTexts()
    return {
        whole_number(row["task_index"], "task_index", 0, MAX_EPISODES): checked.check(row[column])
        for row in iter_rows(root, file, ["task_index", column], max_rows=MAX_EPISODES)
    }


def read_episodes(root: Path, info: DatasetInfo) -> Episodes:
    """`meta/episodes/**.parquet` in ascending episode_index; the per-episode statistics are not read."""
    files = sorted(str(path.relative_to(root)) for path in (root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError("meta/episodes is missing")
    if len(files) > MAX_FILES:
        raise DatasetError(f"meta/episodes has {len(files)} files, at most {MAX_FILES} are read")
    outlines = {file: columns_and_rows(root, file) for file in files}
    rows = sum(count for _, count in outlines.values())
    if rows > info.max_episodes:
        cameras = len(info.camera_keys)
        raise DatasetError(
            f"{rows} episodes with {cameras} cameras are listed, at most {info.max_episodes} are read"
        )
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in info.video_keys:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    optional = {*ROWS, *(f"videos/{key}/to_timestamp" for key in info.video_keys)}
    columns += sorted(optional.intersection(*(names for names, _ in outlines.values())))
    tables = []
    tasks: list[tuple[str, ...]] = []
    texts = TaskTexts()
    for file, (names, count) in outlines.items():
        tables.append(read_table(root, file, columns, max_rows=count))
        if "tasks" in names:
            listed = iter_rows(root, file, ["tasks"], max_rows=count)
            tasks += [_texts(row["tasks"], texts) for row in listed]
        else:
            tasks += [()] * count
    index = _integers(tables, "episode_index", 10_000_000)
    order = np.argsort(index, kind="stable")
    data_paths, data_file = _files(info.data_path, tables, "data", order)
    videos = {
        key: VideoTable(
            *_files(info.video_path, tables, f"videos/{key}", order, key),
            *(seconds[order] for seconds in _begin_and_end(tables, key)),
        )
        for key in info.video_keys
        if info.video_path is not None
    }
    length = _integers(tables, "length", MAX_FRAMES)
    if rows and length.min() < 1:
        raise DatasetError("length of an episode is 0")
    return Episodes(
        episode_index=index[order],
        length=length[order],
        tasks=tuple(tasks[row] for row in order),
        data_paths=data_paths,
        data_file=data_file,
        videos=videos,
        rows=_rows(tables, order),
    )


def _texts(value: Any, texts: TaskTexts) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(texts.check(text) for text in (value if isinstance(value, list) else [value]))


def _integers(tables: list[pa.Table], name: str, high: int) -> np.ndarray:
    values = np.concatenate([_numbers(table, name) for table in tables])
    if len(values) and not (values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= high):
        raise DatasetError(f"{name} in meta/episodes is not a whole number between 0 and {high}")
    return values.astype(np.int64)


def _rows(tables: list[pa.Table], order: np.ndarray) -> np.ndarray | None:
    """See `Episodes.rows`: DePi reads nothing by them, so that what is no number is as good as not there."""
    if not all(name in tables[0].column_names for name in ROWS):
        return None
    try:
        columns = [_integers(tables, name, MAX_FRAMES) for name in ROWS]
    except DatasetError:
        return None
    return np.stack(columns, axis=1)[order]


def _begin_and_end(tables: list[pa.Table], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Where each episode begins and ends in its video, in seconds; infinite ends where none are recorded."""
    begin = _seconds(tables, key, "from_timestamp")
    if f"videos/{key}/to_timestamp" not in tables[0].column_names:
        return begin, np.full(len(begin), np.inf)
    end = _seconds(tables, key, "to_timestamp")
    if (end <= begin).any():
        raise DatasetError(
            f"an episode's to_timestamp of {short(key)} does not come after its from_timestamp"
        )
    return begin, end


def _seconds(tables: list[pa.Table], key: str, name: str) -> np.ndarray:
    columns = [_numbers(table, f"videos/{key}/{name}") for table in tables]
    values = np.concatenate(columns).astype(np.float64)
    if len(values) and not (values.min() >= 0 and values.max() <= MAX_SECONDS):
        worst = values[~np.isfinite(values)] if not math.isfinite(values.sum()) else values
        raise DatasetError(f"{name} of {short(key)} is {short(float(worst.max()))} seconds")
    return values


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    column = table[name]
    if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DatasetError(f"{name} in meta/episodes has gaps or is not a number")
    return column.to_numpy()


def _files(
    template: str, tables: list[pa.Table], prefix: str, order: np.ndarray, key: str = ""
) -> tuple[tuple[str, ...], np.ndarray]:
    """Distinct paths in episode order, and for each episode the position of its path (int32 [E])."""
    chunk = _integers(tables, f"{prefix}/chunk_index", 10_000_000)[order]
    file = _integers(tables, f"{prefix}/file_index", 10_000_000)[order]
    pairs = list(zip(chunk.tolist(), file.tolist(), strict=True))
    position = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    paths = tuple(template.format(chunk_index=a, file_index=b, video_key=key) for a, b in position)
    # They differ in their digits alone: if the one with the most is acceptable, all are.
    check_relative(max(paths, key=len, default=template), "path")
    return paths, np.array([position[pair] for pair in pairs], np.int32)
