"""The frames of an mp4 on the Hub: when each is shown and where it lies, and single ones of them decoded.

The index of an mp4 says this of every frame, so that a few hundred bytes a second of video tell where the
picture stands still, and of the pictures only those that are looked at are fetched.
"""

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import av
import numpy as np

from depi.datasets.recording.allowed import CONTAINER_OPTIONS, DECODER_OPTIONS, check_codec, check_size
from depi.datasets.recording.mp4 import Mp4Index
from depi.errors import DatasetError
from depi.hub.client import api as client
from depi.hub.client.ranges import RemoteFile

MAX_PACKETS = 1_000_000
"""Frames of one file; 9 hours at 30 frames per second."""
MAX_FORWARD = 60
"""Frames that are decoded at most to reach one after its keyframe."""
# FFmpeg must not look into packets, of which only the places are asked.
_AS_INDEXED = {"fflags": "noparse+nofillin", "probesize": "4096", "analyzeduration": "1"}
_AS_INDEXED |= CONTAINER_OPTIONS | DECODER_OPTIONS


@dataclass(frozen=True)
class Packets:
    """The P frames of a file in the order in which they are shown.

    seconds: of its first showing since the video's begin, float64 [P]
    order: its place in decoding order, int64 [P]
    offset, size: bytes in the file, int64 [P]
    keyframe: whether it can be decoded alone, bool [P]
    """

    seconds: np.ndarray
    order: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    keyframe: np.ndarray

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.seconds)

    @cached_property
    def _in_decoding_order(self) -> np.ndarray:
        return np.argsort(self.order)

    def needed(self, number: int) -> np.ndarray:
        """The frames to be decoded, in this order, to show one: from a keyframe on to it."""
        order = self._in_decoding_order
        place = int(np.searchsorted(self.order[order], self.order[number]))
        begin = place
        while begin > 0 and not (self.keyframe[order[begin]] and order[begin] <= number):
            begin -= 1
        return order[begin : place + 1]


class Video:
    """An open video of a file of which only parts are fetched.

    Raises:
        DatasetError: it holds no picture, one of a codec that is not read or of an absurd size, or more
            frames than are read.
        Exception: of any kind, over a broken file.
    """

    def __init__(self, file: RemoteFile, declared: tuple[int, int] | None = None) -> None:
        """Read its header and index; `declared` is the (height, width) of the dataset, see `check_size`."""
        self._file, self._view = file, _View(file)
        index = Mp4Index(self._view)
        self._view.seek(0)
        self.container = av.open(self._view, format="mp4", options=_AS_INDEXED)
        try:
            self._read_header(index, declared)
        except BaseException:
            self.container.close()
            raise

    def _read_header(self, index: Mp4Index, declared: tuple[int, int] | None) -> None:
        if not self.container.streams.video:
            raise DatasetError("there is no picture in it")
        self.stream = self.container.streams.video[0]
        self.codec = check_codec(self.stream, index)
        self.width, self.height = self.stream.width, self.stream.height
        check_size(self.width, self.height, declared)
        self._decoder = self.stream.codec_context
        self._decoder.thread_count = 1
        self._decoder.options = dict(DECODER_OPTIONS)
        self.fps = None if self.stream.average_rate is None else float(self.stream.average_rate)
        self.packets = self._read_index()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _read_index(self) -> Packets:
        # Where the header has no index, the packets themselves must be read.
        self._view.blank = bool(self.stream.frames)
        rows = []
        for packet in self.container.demux(self.stream):
            if packet.pts is None or packet.pos is None or packet.pos < 0:
                continue
            rows.append((packet.pts, packet.pos, packet.size, packet.is_keyframe))
            if len(rows) % 1000 == 0:
                client.check_time()
            if len(rows) > MAX_PACKETS:
                raise DatasetError(f"it has more than {MAX_PACKETS} frames")
        if not rows:
            raise DatasetError("it has no frame")
        pts, offset, size, keyframe = np.array(rows, np.int64).T
        shown = np.argsort(pts, kind="stable")
        seconds = (pts[shown] - pts[shown[0]]) * float(self.stream.time_base or 0)
        return Packets(seconds, shown, offset[shown], size[shown], keyframe[shown].astype(bool))

    def frame(self, number: int) -> Any:
        """A frame by its number; where it is far from its keyframe, an earlier one.

        Raises:
            DatasetError: it is broken, or its size is not that of the header.
            Exception: of any kind, where it cannot be decoded.
        """
        needed = self.packets.needed(number)[: MAX_FORWARD + 1]
        first, last = self.packets.offset[needed], self.packets.offset[needed] + self.packets.size[needed]
        begin = int(first.min())
        data = self._file.fetch(begin, int(last.max()) - begin)
        best = None
        for place, (start, end) in enumerate(zip(first - begin, last - begin, strict=True)):
            packet = av.Packet(data[start:end])
            packet.pts = packet.dts = place
            packet.time_base = self.stream.time_base
            for frame in self._decoder.decode(packet):
                best = frame
        for frame in self._decoder.decode(None):
            best = frame
        self._decoder.flush_buffers()
        if best is None or best.is_corrupt:
            raise DatasetError(f"frame {number} is broken")
        if (best.width, best.height) != (self.width, self.height):
            raise DatasetError(f"its size changes to {best.width} x {best.height} pixels")
        return best


class _View(io.RawIOBase):
    """A file for FFmpeg; while it is `blank`, pictures are read as zeros, without fetching them."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self.blank = file, False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self.blank:
            return self._file.readinto(buffer)
        count = max(0, min(len(buffer), self._file.size - self._file.tell()))
        buffer[:count] = bytes(count)
        self._file.seek(count, io.SEEK_CUR)
        return count
