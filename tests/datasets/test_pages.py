"""Page headers of real Parquet files say what Arrow finds; forged ones are refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import REAL

from depi.datasets.recording.pages import check_pages, column_chunks, read_footer
from depi.errors import DatasetError

VALUES = 240
PLENTY = {"max_bytes": 10**9, "max_values": 10**9}
WRITERS = {
    "dictionary": {},
    "plain": {"use_dictionary": False},
    "many pages": {"data_page_size": 100, "use_dictionary": False, "write_batch_size": 8},
    "version 2 pages": {"data_page_version": "2.0", "compression": "zstd"},
    "groups": {"row_group_size": 7},
    "statistics and sums": {"write_page_checksum": True, "write_page_index": True},
}


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    lists = pa.array(list(rng.normal(size=(VALUES // 6, 6)).astype(np.float32)), pa.list_(pa.float32()))
    return pa.table(
        {
            "action": lists,
            "task": [f"task {number % 3}" for number in range(VALUES // 6)],
            "camera": [{"bytes": rng.bytes(50), "path": "a.png"} for _ in range(VALUES // 6)],
            "done": [number % 2 == 0 for number in range(VALUES // 6)],
        }
    )


@pytest.mark.parametrize("options", WRITERS.values(), ids=WRITERS)
def test_the_pages_of_arrows_files_have_what_the_footer_says(tmp_path, options):
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, **options)
    footer, told = read_footer(path), pq.read_metadata(path)
    for group in range(told.num_row_groups):
        chunks = list(column_chunks(path, footer, None, [group]))
        assert len(chunks) == told.num_columns
        for number, chunk in enumerate(chunks):
            column = told.row_group(group).column(number)
            assert chunk.values == column.num_values
            # The footer counts the headers too.
            assert chunk.largest <= chunk.bytes < column.total_uncompressed_size
            assert chunk.stored < column.total_compressed_size
            assert (chunk.dictionary > 0) == column.has_dictionary_page
    (action,) = zip(*[column_chunks(path, footer, ["action"], [0])], strict=True)
    assert action[0].values == told.row_group(0).column(0).num_values


@pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not beside this checkout")
def test_published_files_pass():
    paths = sorted(REAL.rglob("*.parquet"))
    for path in paths:
        check_pages(path, None, **PLENTY)
    assert len(paths) > 20


def test_limits(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path)
    check_pages(path, ["action"], max_bytes=10**9, max_values=VALUES)
    with pytest.raises(DatasetError, match=r"a\.parquet has 240 values, at most 239 are read"):
        check_pages(path, ["action"], max_bytes=10**9, max_values=VALUES - 1)
    with pytest.raises(DatasetError, match=r"a\.parquet unfolds to [0-9]+ bytes, at most 1000 are read"):
        check_pages(path, None, max_bytes=1000, max_values=10**9)


def forge(path, column, change):
    """Change the header of the column's data page, which must keep its length."""
    data = bytearray(path.read_bytes())
    at = pq.read_metadata(path).row_group(0).column(column).data_page_offset
    end = at + 40
    header = bytes(data[at:end])
    forged = change(header)
    assert len(forged) == len(header)
    assert forged != header
    data[at:end] = forged
    path.write_bytes(data)


# A number is written as twice itself, seven bits a byte: 240 as e0 03. Fields: 15 a number, 2c a struct.
FORGED = {
    "more values than the footer says": (
        lambda header: header.replace(b"\x2c\x15\xe0\x03", b"\x2c\x15\xfe\x7f"),
        "column 'action.list.element' has 8191 values in its pages, 240 by the footer",
    ),
    "less than no values": (
        lambda header: header.replace(b"\x2c\x15\xe0\x03", b"\x2c\x15\xe1\x03"),
        "the header of a page cannot be read",
    ),
    "a field twice": (lambda header: header.replace(b"\x2c\x15", b"\x2c\x05"), "its fields are not in order"),
    "a list": (lambda header: header.replace(b"\x2c\x15", b"\x2c\x19"), "a kind that none should have"),
    "no number ends": (lambda header: header[:1] + b"\xff" * 39, "cannot be read"),
    "longer than the file": (
        lambda header: header[: (end := header.index(b"\x2c")) - 2] + b"\xfe\x7f" + header[end:],
        "the file ends within a page of column 'action.list.element'",
    ),
}


@pytest.mark.parametrize(("change", "message"), FORGED.values(), ids=FORGED)
def test_forged_headers_are_refused(tmp_path, change, message):
    path = tmp_path / "a.parquet"
    pq.write_table(table().select(["action"]), path, use_dictionary=False, compression="none")
    forge(path, 0, change)
    with pytest.raises(DatasetError, match=message):
        check_pages(path, None, **PLENTY)


def test_what_is_no_parquet_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and so on PAR1")
    with pytest.raises(DatasetError, match=r"the footer of a\.parquet has [0-9]+ bytes"):
        check_pages(path, None, **PLENTY)


def test_wrong_statistics_in_the_footer_do_not_end_the_process(tmp_path):
    """pyarrow ends it when asked for a column chunk whose histogram has one level too many."""
    path = tmp_path / "a.parquet"
    pq.write_table(table().select(["task"]), path)
    data = bytearray(path.read_bytes())
    # The histogram of definition levels, a list of 0 and 40, gets a third number.
    size = int.from_bytes(data[-8:-4], "little")
    at = data.index(b"\x19\x26\x00\x50", len(data) - 8 - size)
    data[at + 1 : at + 2] = b"\x36\x00"
    data[-8:-4] = (size + 1).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(OSError, match="histogram size mismatch"):
        pq.read_table(path)
    check_pages(path, None, **PLENTY)
