"""What the pages of a Parquet file hold, by their own headers, before anything is unfolded.

The footer of a file says how many values a column chunk has, but Arrow allocates by what the header of each
page says: a file of 5 kB whose footer claims 240 values can hold a page of 400 million. Headers are small and
lie uncompressed before their pages, so the claims of both are compared here without unfolding a page.

The formats: https://parquet.apache.org/docs/file-format/ (parquet.thrift, `PageHeader`) and Thrift's compact
protocol, https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md. Where Arrow could
understand a header in another way than this reader, such as a field that comes twice, it is refused.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from depi.datasets.recording.border import reading
from depi.datasets.recording.checks import short
from depi.errors import DatasetError

MAX_PAGES = 100_000
"""Of all columns together that are looked at. Writers make pages of 1 MB, or of 1,000 rows and more."""
_PADDING = 100
"""So much further than the footer says Arrow reads in files of old writers, that forgot a header's size."""
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DETAILS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""Field of a page header with the details of a page of each kind; their first is `num_values`."""

_TRUE, _FALSE, _I32, _I64, _BINARY, _STRUCT = 1, 2, 5, 6, 8, 12
"""Kinds of fields in Thrift's compact protocol; page headers have no others."""
_MAX_DEPTH = 3


@dataclass(frozen=True)
class Chunk:
    """The pages of one column in one row group.

    values: in its data pages, missing ones included; of a list column, all numbers of all rows.
    bytes: that all its pages have when unfolded. A value that is stored once, in the dictionary, and used
        many times counts once.
    stored: bytes of all its pages in the file.
    largest: bytes of its largest page when unfolded.
    dictionary: bytes of the dictionary page when unfolded, and 16 for each value in it; 0 if there is none.
    """

    values: int
    bytes: int
    stored: int
    largest: int
    dictionary: int


def check_pages(
    path: Path,
    columns: Sequence[str] | None,
    *,
    max_bytes: int,
    max_values: int,
    metadata: pq.FileMetaData | None = None,
) -> None:
    """Refuse a file whose pages hold more than may be read, or other than its footer says.

    After this, the numbers of the footer can be believed: values and bytes of each column chunk are no less
    than what Arrow will find.

    Args:
        path: a Parquet file.
        columns: top-level names, whose nested leaves count too; None for all.
        max_bytes: of the pages of these columns, unfolded, in all row groups together. Repeated values of a
            dictionary unfold to more when the column is read as anything but a dictionary.
        max_values: of these columns in all row groups together.
        metadata: of the file, if it was read already.

    Raises:
        DatasetError: one of these, or the headers cannot be read.
    """
    with reading(path.name):
        footer = pq.read_metadata(path) if metadata is None else metadata
        found = list(column_chunks(path, footer, columns))
        values, size = sum(chunk.values for chunk in found), sum(chunk.bytes for chunk in found)
        if values > max_values:
            raise DatasetError(f"{path.name} has {values} values, at most {max_values} are read")
        if size > max_bytes:
            raise DatasetError(f"{path.name} unfolds to {size} bytes, at most {max_bytes} are read")


def column_chunks(
    path: Path, metadata: pq.FileMetaData, columns: Sequence[str] | None, groups: Sequence[int] | None = None
) -> Iterator[Chunk]:
    """What the pages of each column chunk hold, group by group.

    Args:
        path: a Parquet file.
        metadata: of the file.
        columns: as for `check_pages`.
        groups: numbers of the row groups to look at, by default all.

    Raises:
        DatasetError: a page holds more than the footer says, or a header is not as it should be.
    """
    leaves = [
        leaf
        for leaf in range(metadata.num_columns)
        if columns is None or belongs_to(metadata.schema.column(leaf).path, columns)
    ]
    left = MAX_PAGES
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number in range(metadata.num_row_groups) if groups is None else groups:
            group = metadata.row_group(number)
            for leaf in leaves:
                chunk, pages = _read_chunk(data, group.column(leaf), left)
                left -= pages
                yield chunk


def belongs_to(path: str, columns: Sequence[str]) -> bool:
    """Whether a leaf, such as `observation.state.list.element`, is of one of the columns."""
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _read_chunk(data: mmap.mmap, column: pq.ColumnChunkMetaData, max_pages: int) -> tuple[Chunk, int]:
    """The pages of a column chunk, and how many headers were read."""
    name, total = column.path_in_schema, column.num_values
    position = column.data_page_offset
    if column.has_dictionary_page and 0 < (column.dictionary_page_offset or 0) < position:
        position = column.dictionary_page_offset
    end = min(position + column.total_compressed_size + _PADDING, len(data))
    values = size = stored = largest = dictionary = pages = 0
    # Arrow stops at the value that the footer calls the last.
    while values < total and 0 <= position < end:
        pages += 1
        if pages > max_pages:
            raise DatasetError(f"column {short(name)} has too many pages, at most {MAX_PAGES} are read")
        kind, unfolded, length, count, position = _read_header(data, position, end)
        position += length
        if position > len(data):
            raise DatasetError(f"the file ends within a page of column {short(name)}")
        size += unfolded
        stored += length
        largest = max(largest, unfolded)
        if kind == _DICTIONARY:
            # Arrow makes room for the values before it looks whether they are there. Booleans have none.
            if count > unfolded:
                raise DatasetError(f"a dictionary of column {short(name)} has {count} values of no bytes")
            dictionary = max(dictionary, unfolded + 16 * count)
        elif kind in (_DATA, _DATA_V2):
            values += count
    if values > total:
        raise DatasetError(f"column {short(name)} has {values} values in its pages, {total} by the footer")
    return Chunk(values, size, stored, largest, dictionary), pages


def _read_header(data: mmap.mmap, position: int, end: int) -> tuple[int, int, int, int, int]:
    """One page's kind, bytes unfolded and stored, number of values, and where the page begins."""
    try:
        fields, begin = _read_struct(data, position)
        kind, unfolded, stored = fields[1], fields[2], fields[3]
        count = fields[_DETAILS[kind]][1] if kind in _DETAILS else 0
        if begin > end or min(unfolded, stored, count) < 0:
            raise ValueError("it holds less than nothing")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DatasetError(f"the header of a page cannot be read: {short(str(error))}") from None
    return kind, unfolded, stored, count, begin


def _read_struct(data: mmap.mmap, position: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of a struct that are numbers, truth values or structs, and where it ends."""
    fields: dict[int, Any] = {}
    field = 0
    while byte := data[position]:
        position += 1
        delta, kind = byte >> 4, byte & 15
        field += delta
        if delta == 0:
            raise ValueError("its fields are not in order")
        if kind in (_TRUE, _FALSE):
            fields[field] = kind == _TRUE
        elif kind in (_I32, _I64):
            number, position = _read_varint(data, position)
            fields[field] = (number >> 1) ^ -(number & 1)
            # Thrift cuts off what does not fit.
            if not -(2**31) <= fields[field] < 2**31:
                raise ValueError("a number is too large")
        elif kind == _BINARY:
            length, position = _read_varint(data, position)
            position += length
        elif kind == _STRUCT and depth < _MAX_DEPTH:
            fields[field], position = _read_struct(data, position, depth + 1)
        else:
            raise ValueError("it has a field of a kind that none should have")
    return fields, position + 1


def _read_varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the least first, and where it ends."""
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7
        if shift > 63:
            raise ValueError("a number has no end")
