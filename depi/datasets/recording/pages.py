"""What the pages of a Parquet file hold, by their own headers, before anything is unfolded.

The footer of a file says how many values a column chunk has, but Arrow allocates by what the header of each
page says: a file of 5 kB whose footer claims 240 values can hold a page of 400 million. Headers are small and
lie uncompressed before their pages, so the claims of both are compared here without unfolding a page.

The format: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift, `PageHeader`
and `FileMetaData`. The footer is read here too, 40 microseconds for each column chunk, because pyarrow's
`RowGroupMetaData.column` ends the whole process where statistics in the footer are not as they should be.
"""

import io
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from depi.datasets.recording.border import reading
from depi.datasets.recording.checks import short
from depi.datasets.recording.thrift import I32, I64, LIST, STRUCT, Struct, read_struct
from depi.errors import DatasetError

MAX_PAGES = 100_000
"""Of all columns together that are looked at. Writers make pages of 1 MB, or of 1,000 rows and more."""
_PADDING = 100
"""So much further than the footer says Arrow reads in files of old writers, that forgot a header's size."""
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DETAILS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""Field of a page header with the details of a page of each kind; their first is `num_values`."""

MAX_FOOTER_BYTES = 20_000_000
"""130,000 column chunks; it takes 10 s."""


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself at its end.

    metadata: as Arrow reads it. Its row groups must not be asked for their columns.
    places: of each row group the pages of each column, in the order of the schema: number of values, where
        they begin in the file, and bytes there.
    bytes: that it has.
    """

    metadata: pq.FileMetaData
    places: list[list[tuple[int, int, int]]]
    bytes: int


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
    footer: Footer | None = None,
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
        footer: of the file, if it was read already.

    Raises:
        DatasetError: one of these, or the headers cannot be read.
    """
    with reading(path.name):
        footer = read_footer(path) if footer is None else footer
        found = list(column_chunks(path, footer, columns))
        values, size = sum(chunk.values for chunk in found), sum(chunk.bytes for chunk in found)
        if values > max_values:
            raise DatasetError(f"{path.name} has {values} values, at most {max_values} are read")
        if size > max_bytes:
            raise DatasetError(f"{path.name} unfolds to {size} bytes, at most {max_bytes} are read")


def read_footer(path: Path, max_bytes: int = MAX_FOOTER_BYTES) -> Footer:
    """The footer of a Parquet file.

    Raises:
        DatasetError: it has more than `max_bytes`, or is no footer.
    """
    with reading(path.name), path.open("rb") as file:
        end = file.seek(-8, io.SEEK_END)
        size = int.from_bytes(file.read(4), "little")
        if size > min(end, max_bytes):
            raise DatasetError(f"the footer of {path.name} has {size} bytes, at most {max_bytes} are read")
        file.seek(end - size)
        fields, _ = read_struct(file.read(size), 0, lists=True)
        metadata = pq.read_metadata(path)
        columns = [[_place(column) for column in group[1, LIST]] for group in fields[4, LIST]]
        if any(len(places) != metadata.num_columns for places in columns):
            raise DatasetError(f"a row group of {path.name} has not all columns")
        return Footer(metadata, columns, size)


def arrow_footer(metadata: pq.FileMetaData, columns: Sequence[str]) -> Footer:
    """The places of some columns alone, as Arrow says them: far faster for tables of many columns.

    Arrow ends the process over some footers, so this is for a process of `depi.engine.confined`.
    """
    names = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    wanted = [leaf for leaf, name in enumerate(names) if belongs_to(name, columns)]
    places = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        of_group = [(0, 0, 0)] * len(names)
        for leaf in wanted:
            of_group[leaf] = _arrow_place(group.column(leaf))
        places.append(of_group)
    return Footer(metadata, places, metadata.serialized_size)


def _arrow_place(column: pq.ColumnChunkMetaData) -> tuple[int, int, int]:
    begin = column.data_page_offset
    if column.has_dictionary_page and 0 < (column.dictionary_page_offset or 0) < begin:
        begin = column.dictionary_page_offset
    return column.num_values, begin, column.total_compressed_size


def _place(column: Struct) -> tuple[int, int, int]:
    """Number of values, begin and bytes of a column chunk, found as Arrow finds them."""
    about = column[3, STRUCT]
    begin, dictionary = about[9, I64], about.get((11, I64), 0)
    return about[5, I64], dictionary if 0 < dictionary < begin else begin, about[7, I64]


def column_chunks(
    path: Path, footer: Footer, columns: Sequence[str] | None, groups: Sequence[int] | None = None
) -> Iterator[Chunk]:
    """What the pages of each column chunk hold, group by group.

    Args:
        path: a Parquet file.
        footer: of the file.
        columns: as for `check_pages`.
        groups: numbers of the row groups to look at, by default all.

    Raises:
        DatasetError: a page holds more than the footer says, or a header is not as it should be.
    """
    names = [footer.metadata.schema.column(leaf).path for leaf in range(footer.metadata.num_columns)]
    leaves = [leaf for leaf, name in enumerate(names) if columns is None or belongs_to(name, columns)]
    left = MAX_PAGES
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for group in range(len(footer.places)) if groups is None else groups:
            for leaf in leaves:
                chunk, pages = _read_chunk(data, names[leaf], footer.places[group][leaf], left)
                left -= pages
                yield chunk


def belongs_to(path: str, columns: Sequence[str]) -> bool:
    """Whether a leaf, such as `observation.state.list.element`, is of one of the columns."""
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _read_chunk(data: mmap.mmap, name: str, place: tuple[int, int, int], max_pages: int) -> tuple[Chunk, int]:
    """The pages of a column chunk, and how many headers were read."""
    total, position, length = place
    end = min(position + length + _PADDING, len(data))
    values = size = stored = largest = dictionary = pages = 0
    # Arrow stops at the value that the footer calls the last.
    while values < total and 0 <= position < end:
        pages += 1
        if pages > max_pages:
            raise DatasetError(f"column {short(name)} has too many pages, at most {MAX_PAGES} are read")
        kind, unfolded, size_in_file, count, position = _read_header(data, position, end)
        position += size_in_file
        if position > len(data):
            raise DatasetError(f"the file ends within a page of column {short(name)}")
        size += unfolded
        stored += size_in_file
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
        fields, begin = read_struct(data, position)
        kind, unfolded, stored = fields[1, I32], fields[2, I32], fields[3, I32]
        count = fields[_DETAILS[kind], STRUCT][1, I32] if kind in _DETAILS else 0
        # Thrift cuts off what does not fit into 32 bits.
        if begin > end or not all(0 <= number < 2**31 for number in (kind, unfolded, stored, count)):
            raise ValueError("a number is out of range")
    except (KeyError, ValueError, IndexError) as error:
        raise DatasetError(f"the header of a page cannot be read: {short(str(error))}") from None
    return kind, unfolded, stored, count, begin
