"""The statistics that a dataset was published with: what its author's tool once computed.

DePi computes its own. These are read to tell whether they are those of the values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from depi.datasets.recording.checks import parse_json, read_text
from depi.datasets.recording.formats import MAX_EPISODES, DatasetMeta
from depi.datasets.recording.meta_v2 import read_lines
from depi.datasets.recording.tables import ACTION, STATE, column_to_numpy, read_table
from depi.errors import DatasetError

MAX_BYTES = 2_000_000
"""Of a file of statistics; longer ones are not read."""
FILES = {"v2.1": "meta/episodes_stats.jsonl", "v3.0": "meta/stats.json"}
"""The one file beside the lists of episodes that has statistics; v2.0 computed them from samples."""
_KINDS = {"low": "min", "high": "max", "mean": "mean"}


@dataclass(frozen=True)
class Statistics:
    """Of a vector of D numbers, in each of E episodes: float64 [E, D], NaN where they are not recorded."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class RecordedStatistics:
    """Column -> its statistics, of each episode and of the dataset (E = 1), as far as they are recorded."""

    episodes: dict[str, Statistics] = field(default_factory=dict)
    dataset: dict[str, Statistics] = field(default_factory=dict)


def statistics_files(files: Mapping[str, int | None], version: str) -> list[str]:
    """Of the files of a dataset (path -> bytes) those that `read_statistics` reads, and no others do."""
    name = FILES.get(version, "")
    size = files.get(name)
    return [name] if size is not None and size <= MAX_BYTES else []


def read_statistics(meta: DatasetMeta) -> RecordedStatistics:
    """What is recorded of action and state; files that are not there, or broken, have nothing."""
    found = RecordedStatistics()
    number = {index: position for position, index in enumerate(meta.episodes.episode_index.tolist())}
    try:
        if meta.info.version == "v2.1":
            _collect(found.episodes, meta, _lines(meta, number))
        elif meta.info.version == "v3.0":
            _read_columns(found.episodes, meta, number)
            stats = parse_json(read_text(meta.root, FILES["v3.0"], MAX_BYTES), FILES["v3.0"])
            _collect(found.dataset, meta, [(0, stats)], count=1)
    except DatasetError:
        pass
    return found


def _lines(meta: DatasetMeta, number: Mapping[int, int]) -> Iterator[tuple[int, Any]]:
    for row in read_lines(meta.root, FILES["v2.1"], MAX_BYTES):
        index = row.get("episode_index")
        if isinstance(index, int) and index in number:
            yield number[index], row.get("stats")


def _collect(
    found: dict[str, Statistics], meta: DatasetMeta, rows: Iterator[tuple[int, Any]] | list, count: int = 0
) -> None:
    """Put the statistics of rows (position, JSON) into `found`."""
    rows = list(rows)
    for name in (ACTION, STATE):
        width = int(np.prod(meta.info.features[name].shape))
        values = {kind: np.full((count or len(meta.episodes), width), np.nan) for kind in _KINDS}
        for position, stats in rows:
            of_column = stats.get(name) if isinstance(stats, dict) else None
            for kind, word in _KINDS.items():
                vector = of_column.get(word) if isinstance(of_column, dict) else None
                if isinstance(vector, list) and len(vector) == width and all(map(_is_number, vector)):
                    values[kind][position] = vector
        found[name] = Statistics(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53)


def _read_columns(found: dict[str, Statistics], meta: DatasetMeta, number: Mapping[int, int]) -> None:
    """The columns `stats/...` of meta/episodes, which v3.0 has for each episode."""
    names = {(name, kind): f"stats/{name}/{_KINDS[kind]}" for name in (ACTION, STATE) for kind in _KINDS}
    files = sorted(
        str(path.relative_to(meta.root)) for path in (meta.root / "meta/episodes").glob("*/*.parquet")
    )
    values = {key: np.full((len(meta.episodes), *meta.info.features[key[0]].shape), np.nan) for key in names}
    for file in files:
        columns = list(names.values())
        table = read_table(meta.root, file, ["episode_index"], max_rows=MAX_EPISODES, optional=columns)
        if not set(columns) <= set(table.column_names):
            return
        position = _positions(table, number)
        for key, column in names.items():
            rows = column_to_numpy(table[column], file, column, meta.info.features[key[0]].shape)
            values[key][position[position >= 0]] = rows[position >= 0]
    for name in (ACTION, STATE):
        found[name] = Statistics(**{kind: values[name, kind] for kind in _KINDS})


def _positions(table: pa.Table, number: Mapping[int, int]) -> np.ndarray:
    return np.array([number.get(index, -1) for index in table["episode_index"].to_pylist()], np.int64)
