"""A parquet file whose footer says less than its pages hold."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PLAIN = {"use_dictionary": False, "compression": "none", "write_statistics": False}


def forge(path: Path, column: str, values: int) -> None:
    """Give a list column of a small file a page of so many missing values; the footer stays as it was."""
    table = pq.read_table(path)
    pq.write_table(table, path, **PLAIN)
    kind = table.schema.field(column).type
    ends = np.linspace(0, values, len(table) + 1).astype(np.int32)
    many = pa.ListArray.from_arrays(pa.array(ends), pa.nulls(values, kind.value_type))
    buffer = io.BytesIO()
    pq.write_table(pa.table({column: many}), buffer, data_page_size=2**30, **PLAIN)
    page = chunk_of(pq.read_metadata(buffer), column)
    content = buffer.getvalue()[page[0] : sum(page)]
    data = bytearray(path.read_bytes())
    begin, size = chunk_of(pq.read_metadata(path), column)
    assert len(content) <= size, (len(content), size)
    data[begin : begin + len(content)] = content
    path.write_bytes(data)


def chunk_of(footer: pq.FileMetaData, column: str) -> tuple[int, int]:
    """Where the first column chunk of a list column begins, and its bytes."""
    group = footer.row_group(0)
    (chunk,) = (
        each
        for each in map(group.column, range(group.num_columns))
        if each.path_in_schema.startswith(f"{column}.list")
    )
    return chunk.data_page_offset, chunk.total_compressed_size
