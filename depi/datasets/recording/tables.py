"""Columns of parquet files as numpy arrays, with bounds on what a file may make us allocate."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from depi.datasets.recording.border import reading
from depi.datasets.recording.checks import resolve_file, short
from depi.datasets.recording.formats import MAX_FRAMES, DatasetMeta, select_episodes, table_cameras
from depi.datasets.recording.pages import arrow_footer, belongs_to, column_chunks
from depi.errors import DatasetError

ACTION = "action"
STATE = "observation.state"
NUMBERING = ("frame_index", "index", "episode_index")
"""Columns that number the frames; they are read where they are recorded, and nothing depends on them."""
MAX_COLUMN_BYTES = 1_000_000_000
"""Of the columns that are read in one file."""
MAX_FRAME_BYTES = 200
"""Of them in all tables together, if there are so many frames that it is more. Usual are 130."""
MAX_TEXT_BYTES = 100_000_000
"""Of a table whose rows become Python objects, in which a text may take four times the room."""
MAX_FOOTER_BYTES = 32_000_000
MAX_VALUES_PER_ROW = 16
"""On average, in tables whose rows become Python objects."""
MAX_HALVINGS = 64
"""A file whose episodes cannot all be converted is halved this often, to find those that can."""

type Check = Callable[[str, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Tables:
    """The numbers of the episodes that can be read: F frames in episode order, NaN included.

    meta: of these episodes
    columns: `action` and `observation.state` as float32 [F, D], `timestamp` float32 [F] in seconds,
        `task_index` int64 [F] if declared, and of NUMBERING what all tables have, int64 [F]
    unread: recorded numbers of the other episodes, each with the reason
    """

    meta: DatasetMeta
    columns: dict[str, np.ndarray]
    unread: dict[int, str]


def read_table(
    root: Path,
    relative: str,
    columns: Sequence[str] | None = None,
    *,
    max_rows: int,
    optional: Sequence[str] = (),
    images: Sequence[str] = (),
) -> pa.Table:
    """Columns of one parquet file; plain texts come dictionary-encoded, so that repeated ones cost nothing.

    Those of the `optional` columns that the file lacks are left out. The columns `images` are not read, but
    have to be there.

    Raises:
        DatasetError: the file is missing, broken, larger than promised, lacks a column or has it twice, or a
            column has texts within lists.
    """
    with _opened(root, relative) as (path, file):
        _check_rows(file, relative, max_rows)
        _check_images(file, relative, images)
        names = file.schema_arrow.names
        wanted = list(names) if columns is None else list(columns)
        wanted += [name for name in optional if name in names]
        leaves = _leaves(file, relative, wanted)
        for leaf in leaves:
            if _is_text(leaf) and leaf.path not in wanted:
                raise DatasetError(f"column {short(leaf.path)} of {relative} has texts within it")
        total, _ = _unfolded(path, file, leaves, wanted)
        if total > MAX_COLUMN_BYTES:
            raise DatasetError(f"{relative} unfolds to {total} bytes, at most {MAX_COLUMN_BYTES} are read")
        return _read_leaves(path, file, leaves, wanted)


def iter_rows(
    root: Path, relative: str, columns: Sequence[str], *, max_rows: int
) -> Iterator[dict[str, Any]]:
    """Rows of one parquet file; a text that is there often, also within lists, is one object.

    Raises:
        DatasetError: as `read_table` does, or a list or a text is too long.
    """
    with _opened(root, relative) as (path, file):
        _check_rows(file, relative, max_rows)
        leaves = _leaves(file, relative, columns)
        total, longest = _unfolded(path, file, leaves, columns)
        # A list in a row may repeat one long text at no cost in the file.
        bound = MAX_VALUES_PER_ROW * file.metadata.num_rows + 10_000
        if longest > bound:
            raise DatasetError(f"{relative} has {longest} values, at most {bound} are read")
        if total > MAX_TEXT_BYTES:
            raise DatasetError(f"{relative} unfolds to {total} bytes, at most {MAX_TEXT_BYTES} are read")
        table = _read_leaves(path, file, leaves, columns)
        table.validate(full=True)
        rows = [_to_objects(table[name]) for name in columns]
    for values in zip(*rows, strict=True):
        yield dict(zip(columns, values, strict=True))


def columns_and_rows(root: Path, relative: str) -> tuple[list[str], int]:
    """The columns of one parquet file, and how many rows it has, as its footer says."""
    with _opened(root, relative) as (_, file):
        return list(file.schema_arrow.names), file.metadata.num_rows


def column_names(root: Path, relative: str) -> list[str]:
    """The columns of one parquet file."""
    return columns_and_rows(root, relative)[0]


@contextmanager
def _opened(root: Path, relative: str) -> Iterator[tuple[Path, pq.ParquetFile]]:
    """A parquet file of a stranger, with its path; what pyarrow finds wrong with it is a DatasetError."""
    path = resolve_file(root, relative)
    with _refusing(relative):
        _check_footer(path, relative)
        with pq.ParquetFile(path, memory_map=True) as file:
            yield path, file


@contextmanager
def _refusing(relative: str) -> Iterator[None]:
    """Whatever pyarrow raises about a stranger's bytes is a DatasetError."""
    with reading(relative):
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{relative} cannot be read as parquet: {short(str(error))}") from None


def _check_footer(path: Path, relative: str) -> None:
    """The footer is held as a whole, several times as large as it is in the file."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
    # What is no length at all is told by pyarrow.
    if MAX_FOOTER_BYTES < length < size:
        raise DatasetError(f"{relative} has a footer of {length} bytes, at most {MAX_FOOTER_BYTES} are read")


def _check_rows(file: pq.ParquetFile, relative: str, max_rows: int) -> None:
    rows = file.metadata.num_rows
    if not 0 <= rows <= max_rows:
        raise DatasetError(f"{relative} has {rows} rows, at most {max_rows} were expected")


def _check_images(file: pq.ParquetFile, relative: str, columns: Sequence[str]) -> None:
    """Images are bytes, or bytes and a path."""
    for name in columns:
        place = file.schema_arrow.get_field_index(name)
        if place < 0:
            raise DatasetError(f"{relative} has the column {short(name)} not, or twice")
        kind = file.schema_arrow.field(place).type
        if not (pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DatasetError(f"column {short(name)} of {relative} is {short(str(kind))}, expected images")


@dataclass(frozen=True)
class _Leaf:
    """A column as it is stored: `path` within the schema, such as `observation.state.list.element`."""

    number: int
    path: str
    physical: str
    bytes_each: int


def _leaves(file: pq.ParquetFile, relative: str, wanted: Sequence[str]) -> list[_Leaf]:
    """The stored columns of the wanted ones, each of which has to be there once."""
    names = Counter(file.schema_arrow.names)
    for name in wanted:
        if names[name] != 1:
            problem = (
                f"has the column {short(name)} twice" if names[name] else f"lacks the column {short(name)}"
            )
            raise DatasetError(f"{relative} {problem}")
    stored = (file.schema.column(number) for number in range(len(file.schema.names)))
    return [
        _Leaf(number, leaf.path, leaf.physical_type, max(8, leaf.length or 0))
        for number, leaf in enumerate(stored)
        if belongs_to(leaf.path, wanted)
    ]


def _is_text(leaf: _Leaf) -> bool:
    return leaf.physical == "BYTE_ARRAY"


def _read_leaves(
    path: Path, file: pq.ParquetFile, leaves: Sequence[_Leaf], wanted: Sequence[str]
) -> pa.Table:
    """The wanted columns of an opened file, texts dictionary-encoded."""
    texts = [leaf.path for leaf in leaves if _is_text(leaf)]
    columns = list(dict.fromkeys(wanted))
    # pyarrow may read `a.b` too where `a` is asked for.
    if not texts:
        return file.read(columns=columns, use_threads=False).select(columns)
    with pq.ParquetFile(path, metadata=file.metadata, memory_map=True, read_dictionary=texts) as again:
        # Texts within lists cannot be read from several row groups at once.
        groups = [
            again.read_row_group(number, columns, use_threads=False) for number in range(again.num_row_groups)
        ]
        return pa.concat_tables(groups or [again.read(columns=columns)]).select(columns)


def _unfolded(
    path: Path, file: pq.ParquetFile, leaves: Sequence[_Leaf], wanted: Sequence[str]
) -> tuple[int, int]:
    """The bytes that columns may unfold to, however well they are compressed, and the values of the longest.

    These are what the pages hold, whatever the footer says.
    """
    total, values = 0, dict.fromkeys(leaves, 0)
    chunks = column_chunks(path, arrow_footer(file.metadata, wanted), wanted)
    for leaf, chunk in zip(cycle(leaves), chunks, strict=False):
        total += max(chunk.bytes, leaf.bytes_each * chunk.values)
        values[leaf] += chunk.values
    return total, max(values.values(), default=0)


def _to_objects(array: pa.ChunkedArray | pa.Array) -> list[Any]:
    """The values as Python objects; a text that occurs often is there once."""
    if isinstance(array, pa.ChunkedArray):
        return [value for chunk in array.chunks for value in _to_objects(chunk)]
    if pa.types.is_dictionary(array.type):
        texts = array.dictionary.to_pylist()
        return [None if index is None else texts[index] for index in array.indices.to_pylist()]
    if _is_list(array.type):
        values = _to_objects(array.flatten())
        ends = np.cumsum(pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)).tolist()
        lists = [values[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        return [
            part if valid else None for part, valid in zip(lists, array.is_valid().to_pylist(), strict=True)
        ]
    if pa.types.is_nested(array.type):
        raise DatasetError(f"a column has the type {short(str(array.type))}, which is not read")
    return array.to_pylist()


def read_recording(meta: DatasetMeta) -> Tables:
    """The numbers of all episodes that can be read.

    An episode cannot be read where its file is missing or broken, where it has not as many rows as listed, or
    where a value is of another kind than declared.

    Raises:
        DatasetError: a column is not declared, or no episode can be read.
    """
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
    optional = NUMBERING[:2] if meta.info.version.startswith("v3") else NUMBERING
    frames, unread = _read(meta, columns, optional, _numbers)
    if len(unread) == len(meta.episodes):
        raise DatasetError(unread[0])
    kept = ~np.isin(np.arange(len(meta.episodes)), list(unread))
    numbers = meta.episodes.episode_index
    reasons = {int(numbers[position]): reason for position, reason in sorted(unread.items())}
    return Tables(meta if kept.all() else select_episodes(meta, kept), frames, reasons)


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    """The values of a column of `Tables`, as it has them."""
    vector = name in (ACTION, STATE)
    if values.dtype not in (np.float32, np.int64):
        raise DatasetError(
            f"the column {name} {'holds no numbers' if vector else 'does not hold one number per frame'}"
        )
    if vector:
        return values.astype(np.float32).reshape(len(values), -1)
    if values.size != len(values):
        raise DatasetError(f"the column {name} does not hold one number per frame")
    values = values.reshape(-1)
    if name == "timestamp":
        return values.astype(np.float32)
    if values.dtype != np.int64 and not (np.isfinite(values) & (np.abs(values) < 2**24)).all():
        raise DatasetError(f"the column {name} holds no whole numbers")
    return values.astype(np.int64)


def read_frames(meta: DatasetMeta, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of all frames, in episode order, read from parquet.

    Returns:
        Vectors as float32 [F, D], floats as float32 [F], integers as int64 [F], truth values as bool [F],
        texts as object [F]; F is the sum of the episode lengths. Numbers are as recorded, NaN included.

    Raises:
        DatasetError: a file or column is missing, has gaps, or has not the listed number of frames.
    """
    frames, unread = _read(meta, columns)
    for reason in unread.values():
        raise DatasetError(reason)
    return frames


def _read(
    meta: DatasetMeta, columns: Sequence[str], optional: Sequence[str] = (), check: Check | None = None
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Columns of the episodes that can be read, in their order; and why the others, by position, cannot.

    `check` may change the values of a column, or refuse them with a DatasetError.
    """
    episodes = meta.episodes
    by_file = np.argsort(episodes.data_file, kind="stable")
    starts = np.flatnonzero(np.diff(episodes.data_file[by_file], prepend=-1))
    unread: dict[int, str] = {}
    stored: list[np.ndarray] = []
    parts: list[dict[str, np.ndarray]] = []
    size = 0
    for chosen in np.split(by_file, starts[1:]):
        relative = episodes.data_paths[episodes.data_file[chosen[0]]]
        try:
            chosen, table = _read_episodes(meta, relative, chosen, columns, optional, unread)
        except DatasetError as error:
            unread |= dict.fromkeys(chosen.tolist(), str(error))
            continue
        if not len(chosen):
            continue
        size += table.nbytes
        if size > (most := max(MAX_COLUMN_BYTES, MAX_FRAME_BYTES * meta.num_frames)):
            raise DatasetError(f"the tables unfold to more than {most} bytes")
        for positions, arrays in _convert(meta, relative, chosen, table, check, unread):
            stored.append(positions)
            parts.append(arrays)
    if not parts:
        return {}, unread
    names = [*columns, *(name for name in optional if all(name in part for part in parts))]
    try:
        frames = {name: np.concatenate([part[name] for part in parts]) for name in names}
    except ValueError:
        raise DatasetError("a column has not the same width in all data files") from None
    order = np.concatenate(stored)
    if (np.diff(order) > 0).all():
        return frames, unread
    back = frame_rows(episodes.length, order, np.argsort(order, kind="stable"))
    return {name: values[back] for name, values in frames.items()}, unread


def _convert(
    meta: DatasetMeta,
    relative: str,
    chosen: np.ndarray,
    table: pa.Table,
    check: Check | None,
    unread: dict[int, str],
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The columns of the episodes `chosen` (positions), whose rows are the table's; in several parts where
    some of the episodes cannot be converted: these are added to `unread`.
    """
    waiting, halvings = [(chosen, table)], 0
    while waiting:
        chosen, table = waiting.pop()
        try:
            yield chosen, _to_arrays(meta, relative, table, check)
        except DatasetError as error:
            halvings += 1
            if len(chosen) <= 1 or halvings > MAX_HALVINGS:
                unread |= dict.fromkeys(chosen.tolist(), str(error))
                continue
            half = len(chosen) // 2
            rows = int(meta.episodes.length[chosen[:half]].sum())
            waiting += [(chosen[half:], table.slice(rows)), (chosen[:half], table.slice(0, rows))]


def _to_arrays(
    meta: DatasetMeta, relative: str, table: pa.Table, check: Check | None
) -> dict[str, np.ndarray]:
    arrays = {}
    for name in table.column_names:
        shape = meta.info.features[name].shape if name in meta.info.features else None
        try:
            values = column_to_numpy(table[name], relative, name, shape)
            arrays[name] = values if check is None else check(name, values)
        except DatasetError:
            if check is None or name not in NUMBERING:
                raise
    return arrays


def frame_rows(length: np.ndarray, stored: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of episodes in the order `wanted` (places in `stored`) where they lie in the order `stored`."""
    sizes = length[stored]
    start = np.cumsum(sizes) - sizes
    return np.concatenate([np.arange(start[place], start[place] + sizes[place]) for place in wanted])


def _read_episodes(
    meta: DatasetMeta,
    relative: str,
    chosen: np.ndarray,
    columns: Sequence[str],
    optional: Sequence[str],
    unread: dict[int, str],
) -> tuple[np.ndarray, pa.Table]:
    """Of the episodes `chosen` (positions) in one data file those that have as many rows as listed, and their
    rows in that order; the others are added to `unread`.
    """
    lengths, images = meta.episodes.length[chosen], table_cameras(meta)
    if not meta.info.version.startswith("v3"):
        # One file per episode: its name says which; renumbered datasets have stale indices inside.
        listed = int(lengths.sum())
        table = read_table(meta.root, relative, columns, max_rows=listed, optional=optional, images=images)
        if table.num_rows != listed:
            raise DatasetError(f"{relative} has {table.num_rows} rows, {listed} were listed")
        return chosen, table
    wanted = list(dict.fromkeys([*columns, "episode_index"]))
    table = read_table(meta.root, relative, wanted, max_rows=MAX_FRAMES, optional=optional, images=images)
    recorded = column_to_numpy(table["episode_index"], relative, "episode_index")
    if "episode_index" not in columns:
        table = table.drop_columns("episode_index")
    rows, wrong = _find_rows(recorded, meta, chosen, relative)
    if wrong:
        unread |= wrong
        chosen = chosen[~np.isin(chosen, list(wrong))]
    if len(rows) == table.num_rows and (rows == np.arange(len(rows))).all():
        return chosen, table
    with _refusing(relative):
        return chosen, table.take(pa.array(rows))


def episode_rows(recorded: np.ndarray, meta: DatasetMeta, chosen: np.ndarray, relative: str) -> np.ndarray:
    """Row numbers, in episode order, of the chosen episodes in a file whose column episode_index is given.

    Raises:
        DatasetError: an episode has not as many rows as listed; or its images lie in the table, and its rows
            not side by side.
    """
    rows, wrong = _find_rows(recorded, meta, chosen, relative)
    for reason in wrong.values():
        raise DatasetError(reason)
    return rows


def _find_rows(
    recorded: np.ndarray, meta: DatasetMeta, chosen: np.ndarray, relative: str
) -> tuple[np.ndarray, dict[int, str]]:
    """`episode_rows` of the episodes for which it raises nothing; and the others, with the reason."""
    if recorded.dtype != np.int64 or recorded.ndim != 1:
        raise DatasetError(f"the column episode_index of {relative} holds no whole numbers")
    order = np.argsort(recorded, kind="stable")
    index = meta.episodes.episode_index[chosen]
    low = np.searchsorted(recorded[order], index, side="left")
    high = np.searchsorted(recorded[order], index, side="right")
    lengths = meta.episodes.length[chosen]
    right = high - low == lengths
    wrong = {
        int(chosen[place]): f"episode {index[place]} has {high[place] - low[place]} rows in {relative}, "
        f"{lengths[place]} were listed"
        for place in np.flatnonzero(~right)
    }
    if table_cameras(meta):
        apart = right.copy()
        apart[right] = order[high[right] - 1] - order[low[right]] != lengths[right] - 1
        for place in np.flatnonzero(apart):
            wrong[int(chosen[place])] = f"the rows of an episode in {relative} are not side by side"
        right &= ~apart
    pieces = [order[a:b] for a, b in zip(low[right], high[right], strict=True)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64), wrong


def first_rows(meta: DatasetMeta) -> np.ndarray:
    """For each episode the number of its first row in its data file, int64 [E].

    Raises:
        DatasetError: an episode's rows have others between them.
    """
    rows = np.zeros(len(meta.episodes), np.int64)
    if not meta.info.version.startswith("v3"):
        return rows
    for file in np.unique(meta.episodes.data_file):
        relative = meta.episodes.data_paths[file]
        table = read_table(meta.root, relative, ["episode_index"], max_rows=MAX_FRAMES)
        recorded = column_to_numpy(table["episode_index"], relative, "episode_index")
        chosen = np.flatnonzero(meta.episodes.data_file == file)
        inside = episode_rows(recorded, meta, chosen, relative)
        length = meta.episodes.length[chosen]
        rows[chosen] = inside[np.cumsum(length) - length]
    return rows


def column_to_numpy(
    column: pa.ChunkedArray, relative: str, name: str, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """One parquet column as an array; see `read_frames` for the dtypes. `shape` is the declared one."""
    with _refusing(relative):
        return _column_to_numpy(column, relative, name, shape)


def _column_to_numpy(
    column: pa.ChunkedArray, relative: str, name: str, shape: tuple[int, ...] | None
) -> np.ndarray:
    rows = len(column)
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    width, even = None, True
    while _is_list(array.type):
        if array.null_count:
            raise DatasetError(f"column {short(name)} of {relative} has gaps")
        bounds = pc.min_max(pc.list_value_length(array)).as_py()
        even &= bounds["min"] == bounds["max"]
        array = array.flatten()
        width = len(array) // rows if rows else 0
    if array.null_count:
        raise DatasetError(f"column {short(name)} of {relative} has gaps")
    values = _flat_numpy(array, relative, name)
    if width is None:
        return values
    size = width if shape is None else math.prod(shape)
    if len(values) != rows * size or not even:
        raise DatasetError(f"column {short(name)} of {relative} has not {size} numbers in every row")
    scalar = size == 1 and shape is not None and values.dtype != np.float32
    return values if scalar else values.reshape(rows, size)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _flat_numpy(array: pa.Array, relative: str, name: str) -> np.ndarray:
    kind = array.type
    if pa.types.is_floating(kind):
        return array.to_numpy(zero_copy_only=False).astype(np.float32)
    if pa.types.is_boolean(kind):
        return array.to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind):
        return array.to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type):
        return np.array(array.dictionary.to_pylist(), object)[array.indices.to_numpy(zero_copy_only=False)]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(array.to_pylist(), object)
    raise DatasetError(
        f"column {short(name)} of {relative} has the type {short(str(kind))}, which is not read"
    )
