"""`thumbnails.parquet` beside the catalogue: one small picture per camera."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from depi.datasets.union.lists import read_columns
from depi.errors import UserError, machine_error
from depi.files import atomic_write

THUMBNAILS_FILE = "thumbnails.parquet"
HEIGHT = 96
_MAX_WIDTH = 256
_QUALITY = 60
_SCHEMA = pa.schema(
    {"repo_id": pa.string(), "revision": pa.string(), "camera": pa.string(), "jpeg": pa.binary()}
)


class Thumbnail(NamedTuple):
    """A JPEG, HEIGHT pixels high, of about 2 kB."""

    repo_id: str
    revision: str
    camera: str
    jpeg: bytes


def to_jpeg(image: np.ndarray) -> bytes:
    """A small JPEG of an image, uint8 [H, W, 3]."""
    height, width = image.shape[:2]
    size = (min(_MAX_WIDTH, max(1, round(width * HEIGHT / height))), HEIGHT)
    small = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


def write_thumbnails(folder: Path, thumbnails: Iterable[Thumbnail]) -> None:
    """Write them in order of dataset and camera; a reader sees the old file or the new."""
    ordered = sorted(thumbnails)
    table = pa.Table.from_pylist([item._asdict() for item in ordered], schema=_SCHEMA)
    try:
        with atomic_write(folder / THUMBNAILS_FILE) as temporary:
            pq.write_table(table, temporary)
    except OSError as error:
        fault = machine_error(error, folder, "choose another --data_ids")
        raise fault or UserError(f"cannot write {folder / THUMBNAILS_FILE}: {error}") from None


def read_thumbnails(folder: Path) -> list[Thumbnail]:
    """Read them; none if there is no file.

    Raises:
        UserError: the file exists and holds something else.
    """
    path = folder / THUMBNAILS_FILE
    if not path.exists():
        return []
    remedy = "remove it, or write it again with `depi collect-ids --deep`"
    rows = read_columns(path, _SCHEMA, remedy).to_pylist()
    if any(None in row.values() for row in rows):
        raise UserError(f"{path} has a picture without a name: {remedy}")
    return [Thumbnail(**row) for row in rows]
