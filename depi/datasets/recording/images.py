"""Camera images as PNG or JPEG bytes, such as those that are stored inside the parquet tables."""

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from depi.datasets.recording.checks import short
from depi.datasets.recording.formats import MAX_IMAGE_SIDE
from depi.errors import DatasetError

MAX_GROUP_BYTES = 2_000_000_000


class ImageReader:
    """Decode single images; the `max_open` row groups used last stay in memory, still compressed.

    It may be pickled and forked: each process reads its own.
    """

    def __init__(self, max_open: int = 4) -> None:
        self.max_open = max_open
        self._groups: OrderedDict[tuple[Path, str, int], pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"max_open": self.max_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def image(self, path: Path, column: str, row: int) -> Tensor:
        """The image in one row of a parquet file, uint8 [3, H, W]; DatasetError if there is none."""
        try:
            group, offset = self._locate(path, row)
            value = self._group(path, column, group)[offset].as_py()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DatasetError(f"row {row} of {path.name} cannot be read: {short(str(error))}") from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DatasetError(f"row {row} of {path.name} holds no image bytes in {short(column)}")
        return decode_image(data)

    def _locate(self, path: Path, row: int) -> tuple[int, int]:
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if row < rows:
                return group, row
            row -= rows
        raise DatasetError(f"{path.name} ends before row {row}")

    def _group(self, path: Path, column: str, group: int) -> pa.ChunkedArray:
        key = (path, column, group)
        if key not in self._groups:
            while len(self._groups) >= self.max_open:
                self._groups.popitem(last=False)
            with pq.ParquetFile(path, memory_map=True) as file:
                size = file.metadata.row_group(group).total_byte_size
                if size > MAX_GROUP_BYTES:
                    raise DatasetError(f"{path.name} has a row group of {size} bytes, too many to read")
                self._groups[key] = file.read_row_group(group, columns=[column])[column]
        self._groups.move_to_end(key)
        return self._groups[key]


def decode_image(data: bytes) -> Tensor:
    """PNG, JPEG or another image that Pillow knows as uint8 [3, H, W]; DatasetError if it is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if max(image.size) > MAX_IMAGE_SIDE:
                raise DatasetError(f"an image is {image.size[0]} by {image.size[1]} pixels")
            pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"an image cannot be decoded: {short(str(error))}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def encode_jpeg(image: Tensor, quality: int) -> bytes:
    """uint8 [3, H, W] as JPEG, colour at full resolution."""
    from PIL import Image

    file = io.BytesIO()
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()
