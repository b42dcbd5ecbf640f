"""Camera images as PNG or JPEG bytes, such as those that are stored inside the parquet tables."""

import io
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from depi.datasets.recording.allowed import IMAGE_FORMATS, check_size
from depi.datasets.recording.border import reading
from depi.datasets.recording.checks import short
from depi.datasets.recording.pages import Chunk, Footer, column_chunks, read_footer
from depi.errors import DatasetError

FREE_BYTES = 400_000_000
"""What the images of one camera in a row group may unfold to, whatever they take in the file. Arrow needs up
to twice of it while it reads."""
MAX_RATIO = 2
"""Beyond that, how much larger than in the file: PNG and JPEG are compressed as far as they can be."""
MAX_PAGE_BYTES = 1_000_000_000
"""Of a page in any case; LeRobot's writer lays up to 1,024 images into the first."""
MAX_GROUP_BYTES = 2_000_000_000
"""Of all in any case; to come to the last of them takes a second."""
MAX_FOOTER_BYTES = 3_000_000
"""Of a table with images, about itself: 20,000 column chunks. It takes 1.5 s to read, once."""
MAX_FOOTERS_BYTES = 20_000_000
"""Of all that are kept."""
MAX_SCANS = 100
"""Of a JPEG. Each costs as much as a picture; encoders make ten at most."""
_SHARES, _BATCH_ROWS, _MAX_TABLES = 4, 64, 64


class ImageReader:
    """Decode single images of tables; those around the ones used last stay in memory, still compressed.

    It may be pickled and forked: each process reads its own.

    Args:
        max_bytes: of these images at most; a quarter of it for one camera in one row group.
    """

    def __init__(self, max_bytes: int = 300_000_000) -> None:
        self.max_bytes = max_bytes
        self._tables: OrderedDict[Path, _Table] = OrderedDict()
        self._windows: OrderedDict[tuple[Path, str, int], _Window] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def image(self, path: Path, column: str, row: int, declared: tuple[int, int] | None = None) -> Tensor:
        """The image in one row of a parquet file, uint8 [3, H, W].

        Args:
            path: the file.
            column: its top-level name.
            row: counted through all row groups.
            declared: (height, width) that the dataset declares; see `check_size`.

        Raises:
            DatasetError: there is none, it is far larger than declared, or reading it takes too much memory.
        """
        with reading(f"row {row} of {path.name}"):
            value = self._value(path, column, row)
            data = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(data, bytes):
                raise DatasetError(f"row {row} of {path.name} holds no image bytes in {short(column)}")
            return decode_image(data, declared)

    def _value(self, path: Path, column: str, row: int) -> Any:
        table = self._table(path)
        if not 0 <= row < table.first_rows[-1]:
            raise DatasetError(f"{path.name} ends before row {row}")
        group = int(np.searchsorted(table.first_rows, row, side="right")) - 1
        place = row - int(table.first_rows[group])
        key = (path, column, group)
        window = self._windows.pop(key, None)
        if window is None or not window.first <= place < window.first + len(window.values):
            window = _read_window(path, table.footer, key, place, self.max_bytes // _SHARES)
            kept = sum(each.bytes for each in self._windows.values())
            while self._windows and kept + window.bytes > self.max_bytes:
                kept -= self._windows.popitem(last=False)[1].bytes
        self._windows[key] = window
        return window.values[place - window.first].as_py()

    def _table(self, path: Path) -> "_Table":
        if path not in self._tables:
            table = _open_table(path)
            kept = sum(each.footer.bytes for each in self._tables.values())
            while self._tables and (
                kept + table.footer.bytes > MAX_FOOTERS_BYTES or len(self._tables) >= _MAX_TABLES
            ):
                kept -= self._tables.popitem(last=False)[1].footer.bytes
            self._tables[path] = table
        self._tables.move_to_end(path)
        return self._tables[path]


@dataclass(frozen=True)
class _Table:
    """The footer of a parquet file; where each row group begins, and the number of rows, int64 [G + 1]."""

    footer: Footer
    first_rows: np.ndarray


@dataclass(frozen=True)
class _Window:
    """The values of a column in rows side by side; `first` is the place of the first in its row group."""

    first: int
    values: pa.ChunkedArray
    bytes: int


def _open_table(path: Path) -> _Table:
    footer = read_footer(path, MAX_FOOTER_BYTES)
    rows = [footer.metadata.row_group(group).num_rows for group in range(footer.metadata.num_row_groups)]
    return _Table(footer, np.cumsum([0, *rows]))


def _read_window(path: Path, footer: Footer, key: tuple[Path, str, int], place: int, share: int) -> _Window:
    """The values around the one at `place` in a row group: from the group's begin on as far as they fit into
    `share` bytes, or else from there on.
    """
    _, column, group = key
    leaf = _image_leaf(footer.metadata, column)
    (chunk,) = column_chunks(path, footer, [leaf], [group])
    limit = _check_chunk(path, chunk)
    first = end = held = unfolded = 0
    batches: list[pa.Array] = []
    # No value is larger than the page that it is stored in.
    rows = max(1, min(_BATCH_ROWS, share // max(1, chunk.largest)))
    with pq.ParquetFile(path, metadata=footer.metadata, memory_map=True) as file:
        for batch in file.iter_batches(rows, row_groups=[group], columns=[leaf], use_threads=False):
            size = batch.nbytes
            unfolded += size
            if unfolded > limit:
                raise DatasetError(f"the images of {path.name} unfold to more than {limit} bytes")
            if held + size > share:
                if place < end:
                    break
                first, held, batches = end, 0, []
            batches.append(batch.column(0))
            end, held = end + batch.num_rows, held + size
    if place >= end:
        raise DatasetError(f"a row group of {path.name} ends before its row {place}")
    return _Window(first, pa.chunked_array(batches), held)


def _image_leaf(footer: pq.FileMetaData, column: str) -> str:
    """Where in the file the bytes of a column of images are: in a struct of bytes and path, or plainly."""
    leaves = {footer.schema.column(leaf).path: leaf for leaf in range(footer.num_columns)}
    for path in (f"{column}.bytes", column):
        if path in leaves:
            leaf = footer.schema.column(leaves[path])
            if leaf.physical_type == "BYTE_ARRAY" and leaf.max_repetition_level == 0:
                return path
    raise DatasetError(f"there is no column {short(column)} of images")


def _check_chunk(path: Path, chunk: Chunk) -> int:
    """Refuse what takes too much memory; how many bytes the values may have together."""
    most = max(FREE_BYTES, MAX_RATIO * chunk.stored)
    for size, limit in (
        (max(chunk.largest, chunk.dictionary), min(most, MAX_PAGE_BYTES)),
        (chunk.bytes, min(most, MAX_GROUP_BYTES)),
    ):
        if size > limit:
            raise DatasetError(f"images of {path.name} unfold to {size} bytes, at most {limit} are read")
    return min(most, MAX_GROUP_BYTES)


def decode_image(data: bytes, declared: tuple[int, int] | None = None) -> Tensor:
    """PNG or JPEG as uint8 [3, H, W].

    Args:
        data: of the file.
        declared: (height, width) that the dataset declares; see `check_size`.

    Raises:
        DatasetError: it is neither, broken, or far larger than declared.
    """
    from PIL import Image, UnidentifiedImageError

    with reading("an image"):
        try:
            opened = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        except UnidentifiedImageError:
            raise DatasetError(f"an image is no {' or '.join(IMAGE_FORMATS)} file, or broken") from None
        with opened as image:
            check_size(*image.size, declared)
            if image.format != "PNG" and data.count(b"\xff\xda") > MAX_SCANS:
                raise DatasetError(f"a JPEG image has more than {MAX_SCANS} scans")
            pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def encode_jpeg(image: Tensor, quality: int) -> bytes:
    """uint8 [3, H, W] as JPEG, colour at full resolution."""
    from PIL import Image

    file = io.BytesIO()
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()
