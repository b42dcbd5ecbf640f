"""Defects of time, of episodes, and of files that contradict each other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clean_sets import Episode
from planting import Copy, kind

from depi.files import read_json, write_json


@kind(
    "action state time videos",
    (1, "one episode once more, without its first three frames and with other flicker"),
    (2, "one episode once more, its videos encoded anew"),
    (3, "one episode twice more, byte by byte"),
)
def duplicated(copy: Copy, amount: float) -> list[int]:
    """Episodes were uploaded or merged twice: they stand in the place of others."""
    first, *places = copy.draw(3 if amount == 3 else 2)
    for place in places:
        copied = copy.set.episodes[place] = _copy_of(copy.set.episodes[first])
        if amount == 1:
            copy.take(place, np.arange(3, len(copied)))
            copied.state += copy.jitter(copied.state.shape)
        if amount == 2:
            copy.take(place, np.arange(len(copied)))
    return [first, *places]


def _copy_of(episode: Episode) -> Episode:
    arrays = (episode.action.copy(), episode.state.copy(), episode.time.copy())
    return Episode(*arrays, episode.task, dict(episode.videos))


@kind(
    "action state time videos",
    (0.05, "5% of one episode's frames"),
    (0.15, "15% of one episode's frames"),
    (0.3, "30% of one episode's frames"),
)
def dropped_frames(copy: Copy, share: float) -> list[int]:
    """The recorder falls behind and drops two to five frames at a time; its clock does not tell."""
    number, episode = copy.one()
    kept = np.ones(len(episode), bool)
    while (~kept).mean() < share:
        start = copy.rng.integers(1, len(episode) - 6)
        kept[start : start + copy.rng.integers(2, 6)] = False
    copy.take(number, np.flatnonzero(kept))
    return [number]


@kind(
    "action state time",
    (0.2, "0.2 s of one episode's rows"),
    (0.7, "0.7 s of one episode's rows"),
    (1.5, "1.5 s of one episode's rows"),
)
def gap_in_time(copy: Copy, seconds: float) -> list[int]:
    """Rows are lost, timestamps and videos tell."""
    number, episode = copy.one()
    length = round(seconds * copy.set.fps)
    start = int(copy.rng.integers(5, len(episode) - length - 5))
    rows = np.r_[0:start, start + length : len(episode)]
    episode.action, episode.state, episode.time = (
        episode.action[rows],
        episode.state[rows],
        episode.time[rows],
    )
    return [number]


@kind(
    "files",
    (1.1, "declared as 1.1 times the true rate"),
    (0.5, "declared as half of the true rate"),
    (0.2, "declared as a fifth of the true rate"),
)
def wrong_rate(copy: Copy, factor: float) -> list[int]:
    """`fps` in info.json is not that of timestamps and videos."""
    copy.edits.append(lambda root: _edit_info(root, fps=round(copy.set.fps * factor)))
    return []


@kind(
    "files",
    (1, "one episode's rows begin one too late"),
    (10, "one episode's rows begin ten too late"),
    (1000, "one episode has the rows of the first"),
)
def index_contradictory(copy: Copy, amount: float) -> list[int]:
    """A list of episodes (v3.0) or the running index of a table (v2.1) points to rows of another episode."""
    number = int(copy.rng.integers(2, len(copy.set.episodes)))
    start = sum(len(episode) for episode in copy.set.episodes[:number])
    shift = int(amount) if amount < 1000 else -start

    def edit_list(rows: list[dict[str, Any]]) -> None:
        for name in ("dataset_from_index", "dataset_to_index"):
            rows[number][name] += shift

    def edit_table(root: Path) -> None:
        path = root / f"data/chunk-000/episode_{number:06d}.parquet"
        table = pq.read_table(path)
        place = table.column_names.index("index")
        shifted = pa.array(table["index"].to_numpy() + shift)
        pq.write_table(table.set_column(place, "index", shifted), path)

    copy.edits.append(edit_table if copy.set.format == "v2.1" else lambda root: _edit_rows(root, edit_list))
    return [number]


@kind(
    "files",
    (1, "37 frames more declared than there are"),
    (2, "three episodes more listed than there are"),
    (3, "one data file missing"),
)
def counts_contradictory(copy: Copy, amount: float) -> list[int]:
    """An upload was cut, or metadata edited by hand."""
    frames, count = sum(len(episode) for episode in copy.set.episodes), len(copy.set.episodes)
    if amount == 1:
        copy.edits.append(lambda root: _edit_info(root, total_frames=frames + 37))
        return []
    if amount == 2:
        copy.edits.append(lambda root: _list_more(root, copy.set.episodes[-1], 3))
        copy.edits.append(
            lambda root: _edit_info(
                root,
                total_episodes=count + 3,
                total_frames=frames + 3 * len(copy.set.episodes[-1]),
                splits={"train": f"0:{count + 3}"},
            )
        )
        return []
    copy.edits.append(lambda root: sorted((root / "data").rglob("*.parquet"))[1].unlink())
    return [1] if copy.set.format == "v2.1" else [4, 5, 6, 7]


def _list_more(root: Path, last: Episode, count: int) -> None:
    """List `count` more episodes like the last one."""
    if (root / "meta/episodes.jsonl").exists():
        path = root / "meta/episodes.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows += [{**rows[-1], "episode_index": len(rows) + more} for more in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return

    def edit(rows: list[dict[str, Any]]) -> None:
        for _ in range(count):
            begin = rows[-1]["dataset_to_index"]
            more = {"dataset_from_index": begin, "dataset_to_index": begin + len(last)}
            rows.append({**rows[-1], **more, "episode_index": len(rows)})

    _edit_rows(root, edit)


@kind(
    "files",
    (1, "those of the first half of the data"),
    (2, "those from before one joint was calibrated anew, by 25 units"),
    (3, "those of the data in radians"),
)
def stale_statistics(copy: Copy, amount: float) -> list[int]:
    """Statistics are not of these tables: data was added or changed after they were computed."""
    joint = copy.joint(range(len(copy.set.episodes)))

    def change(stats: dict[str, Any]) -> None:
        for key in ("action", "observation.state"):
            for name in stats[key]:
                values = np.array(stats[key][name], float)
                if amount == 2 and name not in ("std", "count"):
                    values[joint] += 25
                elif amount == 3 and name != "count":
                    values = np.radians(values)
                stats[key][name] = values.tolist()

    copy.edits.append(lambda root: _edit_stats(root, change if amount > 1 else None))
    return []


def _edit_stats(root: Path, change: Callable[[dict[str, Any]], None] | None) -> None:
    """Change the statistics of a set, or (None) make them those of its first half."""
    path = root / "meta/stats.json"
    if path.exists():
        stats = read_json(path) if change else _first_half(root)
        if change:
            change(stats)
        write_json(path, stats)
        return
    path = root / "meta/episodes_stats.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        if change:
            change(row["stats"])
        elif number >= len(rows) // 2:
            row["stats"] = rows[number - len(rows) // 2]["stats"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _first_half(root: Path) -> dict[str, Any]:
    from lerobot.datasets.compute_stats import aggregate_stats

    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    parts: list[dict[str, dict[str, np.ndarray]]] = []
    for row in rows[: len(rows) // 2]:
        parts.append({})
        for column, value in row.items():
            if column.startswith("stats/"):
                _, key, name = column.split("/")
                parts[-1].setdefault(key, {})[name] = np.array(value)
    merged = aggregate_stats(parts)
    return {
        key: {name: np.asarray(v).tolist() for name, v in values.items()} for key, values in merged.items()
    }


@kind(
    "action state time videos",
    (20, "one episode of 20 frames"),
    (8, "one episode of 8 frames"),
    (1, "one episode of one frame"),
)
def too_short(copy: Copy, frames: float) -> list[int]:
    """The operator ended an episode by mistake, just after its start."""
    number, _ = copy.one()
    copy.take(number, np.arange(int(frames)))
    return [number]


@kind(
    "task",
    (1, "`task 1`"),
    (2, "`test`"),
    (3, "the empty text"),
)
def task_empty(copy: Copy, amount: float) -> list[int]:
    """Nobody wrote an instruction."""
    for episode in copy.set.episodes:
        episode.task = ("task 1", "test", "")[int(amount) - 1]
    return []


@kind(
    "task",
    (4, "four episodes with another task's text"),
    (2, "two episodes with another task's text"),
    (1, "one episode with another task's text"),
)
def wrong_task(copy: Copy, count: float) -> list[int]:
    """Somebody forgot to change the text back: the motion is that of the other episodes."""
    numbers = copy.draw(int(count))
    for number in numbers:
        copy.set.episodes[number].task = "Open the top drawer and take out the spoon."
    return numbers


def _edit_info(root: Path, **values: Any) -> None:
    path = root / "meta/info.json"
    write_json(path, {**read_json(path), **values})


def _edit_rows(root: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
