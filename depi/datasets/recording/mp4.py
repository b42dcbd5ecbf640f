"""What the boxes of an mp4 say before FFmpeg reads them.

FFmpeg makes an entry of 55 bytes for every frame that the index claims, once for every edit that shows it.
Frames of equal size are claimed by one number: a file of 3 kB can claim 50 million, which takes 26 s and
2.7 GB to open. The boxes: https://developer.apple.com/documentation/quicktime-file-format.
"""

from collections.abc import Iterator
from io import RawIOBase
from typing import BinaryIO

from depi.errors import DatasetError

MAX_SAMPLES = 2_000_000
"""Frames of all streams of a file, times the edits: 18 hours at 30 frames per second, 110 MB, 0.7 s."""
MAX_INDEX_BYTES = 64_000_000
"""Of all but the pictures."""
_MAX_BOXES = 10_000
# Where in a box, counted from its name, the number of its entries is.
_SAMPLES = {b"stsz": 12, b"stz2": 12, b"trun": 8}
_EDITS = {b"elst": 8}


class Mp4Index:
    """All of an mp4 but its pictures.

    Args:
        file: open, seekable.

    Raises:
        DatasetError: it is too large, or claims more frames than are read.
    """

    def __init__(self, file: BinaryIO | RawIOBase) -> None:
        self._parts = list(_index_parts(file))
        if any(b"cmov" in part for part in self._parts):
            raise DatasetError("its index is compressed, which is not read")
        edits = max(self._counts(_EDITS), default=1)
        samples = sum(self._counts(_SAMPLES))
        if samples * max(1, edits) > MAX_SAMPLES:
            raise DatasetError(f"it claims {samples} frames in {edits} edits, at most {MAX_SAMPLES} are read")

    def sample_entries(self) -> list[str]:
        """The four letters by which it names the codec of each of its streams."""
        # Of the box: its name, version, number of entries; of the first entry: its size and name.
        return [part[rest + 16 : rest + 20].decode("latin-1") for part, rest in self._find(b"stsd")]

    def _counts(self, places: dict[bytes, int]) -> Iterator[int]:
        for name, place in places.items():
            for part, begin in self._find(name):
                yield int.from_bytes(part[begin + place : begin + place + 4])

    def _find(self, name: bytes) -> Iterator[tuple[bytes, int]]:
        """All places of a name; FFmpeg takes it for a box wherever it comes upon one."""
        for part in self._parts:
            begin = -1
            while (begin := part.find(name, begin + 1)) >= 0:
                yield part, begin


def _index_parts(file: BinaryIO | RawIOBase) -> Iterator[bytes]:
    """The boxes at the top that hold no pictures, each whole."""
    file.seek(0)
    left = MAX_INDEX_BYTES
    for _ in range(_MAX_BOXES):
        header = file.read(8) or b""
        if len(header) < 8:
            return
        size, kind, begin = int.from_bytes(header[:4]), header[4:], 8
        if size == 1:
            size, begin = int.from_bytes(file.read(8) or b""), 16
        if 0 < size < begin:
            return
        if kind == b"mdat":
            if size == 0:
                return
            file.seek(size - begin, 1)
            continue
        # Of size 0 is what goes on to the end of the file.
        part = file.read(min(size - begin, left + 1) if size else left + 1) or b""
        left -= len(part)
        if left < 0:
            raise DatasetError(f"all but its pictures is more than {MAX_INDEX_BYTES} bytes")
        yield part
    raise DatasetError(f"it is made of more than {_MAX_BOXES} parts")
