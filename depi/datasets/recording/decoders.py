"""Open videos: torchcodec, and PyAV for H.264 and HEVC, where it can do more.

Both give the same pixels. To show a frame, a decoder starts at a keyframe before it and decodes what lies
between. torchcodec decodes all of that, and then some more until the wanted frame has come out. With PyAV
the decoder is drained at the wanted frame, and an H.264 frame to which no other one refers is left out,
which halves the work where keyframes are far apart. Where the frames before a keyframe refer to those after
it ("open GOP", x265's default), torchcodec gives neighbours of the wanted frame; here it is found.
"""

import functools
import heapq
import importlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from depi.datasets.recording.allowed import CONTAINER_OPTIONS, DECODER_OPTIONS, check_codec, check_size
from depi.datasets.recording.checks import short
from depi.datasets.recording.formats import MAX_FPS
from depi.datasets.recording.mp4 import Mp4Index
from depi.errors import DatasetError, first_line

logger = logging.getLogger(__name__)

PYAV_CODECS = ("h264", "hevc")
"""Here PyAV is faster, or right where torchcodec is not."""
MAX_KEYFRAME_BYTES, MAX_KEYFRAME_PACKETS = 256_000_000, 100_000
"""How much may lie between a frame and its keyframe."""


class OpenVideo(Protocol):
    """An open video: times in seconds from its first frame, `frames` None where the header does not say.

    bytes: an estimate of what it holds in memory.
    size: (width, height) in pixels, of every frame that it gives.
    """

    fps: float
    seconds: float
    frames: int | None
    bytes: int
    size: tuple[int, int]

    def frame_at(self, seconds: float) -> Tensor:
        """The frame on display at a time, uint8 [3, H, W]."""

    def frames_at(self, seconds: Sequence[float]) -> Iterator[Tensor]:
        """The frames on display at ascending times, each as `frame_at` gives it, in one run."""

    def frames_among(self, seconds: Sequence[float]) -> Iterator[Tensor]:
        """As `frames_at`, for times that may lie far apart: what lies between keyframes is left out."""

    def close(self) -> None:
        """Give its memory back now: left alone, a decoder waits for the collection of cycles."""


def open_video(path: Path, backend: str | None = None) -> OpenVideo:
    """Open an mp4 file.

    Args:
        path: the file.
        backend: `torchcodec`, `pyav`, or None for the one that is faster for the file's codec.

    Raises:
        DatasetError: it holds no video, one of a codec that is not read, or an absurd one.
        Exception: of any kind, over a broken file.
    """
    # Opened as mp4 and nothing else first: FFmpeg would take a playlist under that name for its word.
    video = PyavVideo(path)
    if backend == "pyav" or (backend is None and video.codec in PYAV_CODECS) or not _torchcodec_loads():
        return video
    stream = video.stream.index
    video.close()
    return TorchcodecVideo(path, stream)


@functools.cache
def _torchcodec_loads() -> bool:
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError) as error:
        logger.warning(
            "torchcodec cannot load, video is decoded with PyAV, more slowly: %s", first_line(error)
        )
        return False
    return True


def _check_header(width: int, height: int, fps: float | None, seconds: float | None) -> None:
    check_size(width, height)
    if not (fps and 0 < fps <= MAX_FPS and seconds and 0 < seconds < 1e7):
        raise DatasetError(f"a video has {short(fps)} frames per second over {short(seconds)} seconds")


def _memory(width: int, height: int, frames: int) -> int:
    """What an open decoder holds: a few reference pictures of 1.5 bytes a pixel, and the file's index."""
    return 2_000_000 + 8 * width * height * 3 // 2 + 100 * frames


class TorchcodecVideo:
    """A video that torchcodec decodes; see `OpenVideo`."""

    def __init__(self, path: Path, stream: int) -> None:
        from torchcodec.decoders import VideoDecoder

        # "exact" would read the whole file at opening; times are exact without it, frame numbers are not.
        self.decoder = VideoDecoder(path, stream_index=stream, seek_mode="approximate", num_ffmpeg_threads=1)
        header = self.decoder.metadata
        self.begin = header.begin_stream_seconds or 0.0
        fps, seconds = header.average_fps, (header.end_stream_seconds or 0.0) - self.begin
        self.size = header.width or 0, header.height or 0
        _check_header(*self.size, fps, seconds)
        self.fps, self.seconds, self.frames = float(fps or 0), seconds, header.num_frames
        self.bytes = _memory(*self.size, self.frames or 0)

    def frame_at(self, seconds: float) -> Tensor:
        """See `OpenVideo`."""
        frame = self.decoder.get_frame_played_at(self.begin + seconds).data
        # torchcodec turns a frame as the header says.
        if sorted(frame.shape[-2:]) != sorted(self.size):
            raise DatasetError(f"its size changes to {frame.shape[-1]} by {frame.shape[-2]} pixels")
        return frame

    def frames_at(self, seconds: Sequence[float]) -> Iterator[Tensor]:
        """See `OpenVideo`; torchcodec goes on where it stands if no keyframe lies between."""
        return map(self.frame_at, seconds)

    frames_among = frames_at

    def close(self) -> None:
        """See `OpenVideo`; torchcodec's decoder is in no cycle."""


class PyavVideo:
    """A video that PyAV decodes; see `OpenVideo`."""

    def __init__(self, path: Path) -> None:
        import av

        with path.open("rb") as file:
            index = Mp4Index(file)
        self.container = av.open(str(path), format="mp4", options=CONTAINER_OPTIONS | DECODER_OPTIONS)
        try:
            self._read_header(path, index)
        except BaseException:
            self.close()
            raise

    def _read_header(self, path: Path, index: Mp4Index) -> None:
        if not self.container.streams.video:
            raise DatasetError(f"{path.name} holds no video")
        self.stream = self.container.streams.video[0]
        self.codec = check_codec(self.stream, index)
        self.decoder = self.stream.codec_context
        self.decoder.thread_count = 1
        # Strict: no H.264 frame is thrown away because an earlier one came out too soon.
        self.decoder.options = {"strict": "1", **DECODER_OPTIONS}
        fps, self.scale = float(self.stream.average_rate or 0), float(self.stream.time_base or 0)
        self.begin = (self.stream.start_time or 0) * self.scale
        seconds = (self.stream.duration or 0) * self.scale
        self.size = self.decoder.width, self.decoder.height
        _check_header(*self.size, fps, seconds)
        self.fps, self.seconds, self.frames = fps, seconds, self.stream.frames or None
        self.bytes = _memory(*self.size, self.frames or 0)

    def close(self) -> None:
        """See `OpenVideo`."""
        self.container.close()

    def frame_at(self, seconds: float) -> Tensor:
        """See `OpenVideo`."""
        return next(self.frames_among([seconds]))

    def frames_among(self, seconds: Sequence[float]) -> Iterator[Tensor]:
        """See `OpenVideo`; one run from each keyframe to the last of the frames that follow it."""
        runs = ((time, self._packets_until(self._ticks(time))) for time in seconds)
        for _, run in itertools.groupby(runs, key=lambda timed: timed[1][0].dts):
            times, packets = zip(*run, strict=True)
            shown = [
                max(packet.pts for packet in until if packet.pts <= self._ticks(time))
                for time, until in zip(times, packets, strict=True)
            ]
            decoded = self._decode_some(packets[-1], set(shown))
            at, image = None, None
            for time, wanted in zip(times, shown, strict=True):
                while at != wanted:
                    at, image = next(decoded, (wanted, None))
                if image is None:
                    raise DatasetError(f"the frame at {time:.3f} s is broken")
                yield image

    def _decode_some(self, packets: Sequence[Any], wanted: set[int]) -> Iterator[tuple[int, Tensor]]:
        """(time, frame) of the frames with `wanted` times, ascending, out of packets from a keyframe on.

        What they do not refer to is left out, and the decoder is drained behind the last of them.
        """
        self.decoder.flush_buffers()
        missing = set(wanted)
        for packet in packets:
            if packet.pts not in wanted and self.codec == "h264" and not _is_referred_to(memoryview(packet)):
                continue
            yield from self._among(self.decoder.decode(packet), wanted)
            missing.discard(packet.pts)
            if not missing:
                break
        yield from self._among(self.decoder.decode(None), wanted)

    def _among(self, frames: Sequence[Any], wanted: set[int]) -> Iterator[tuple[int, Tensor]]:
        return ((frame.pts, self._rgb(frame)) for frame in frames if frame.pts in wanted)

    def frames_at(self, seconds: Sequence[float]) -> Iterator[Tensor]:
        """See `OpenVideo`; one run through the file."""
        due: list[int] = []
        decoded: Iterator[Any] = iter(())
        shown = coming = None
        expected: int | None = None
        for number, time in enumerate(map(self._ticks, seconds)):
            if number == 0:
                decoded = self._decode_from(time, due)
                coming = next(decoded, None)
            while coming is not None and coming.pts <= time:
                shown, coming = coming, next(decoded, None)
            while due and due[0] <= time:
                expected = heapq.heappop(due)
            if shown is None or shown.pts != expected:
                raise DatasetError(f"the frame at {seconds[number]:.3f} s is broken")
            yield self._rgb(shown)

    def _ticks(self, seconds: float) -> int:
        return int((self.begin + seconds) / self.scale)

    def _packets_until(self, time: int) -> list[Any]:
        """The packets, in decoding order, that showing the frame at a time may take; a keyframe is first."""
        start = time
        while True:
            packets: list[Any] = []
            size = 0
            for packet in self._demux_from(start):
                if packet.dts is None or packet.dts > time:
                    break
                size += packet.size
                if packet.pts is None or size > MAX_KEYFRAME_BYTES or len(packets) > MAX_KEYFRAME_PACKETS:
                    raise DatasetError(
                        "its packets have no time" if packet.pts is None else "no keyframe is near"
                    )
                packets.append(packet)
            if packets and packets[0].pts <= time:
                return packets
            # The index is by decoding time: this keyframe is shown only after the wanted frame.
            if not packets or packets[0].dts >= start:
                raise DatasetError(f"no frame at {time * self.scale - self.begin:.3f} s")
            start = packets[0].dts - 1

    def _demux_from(self, time: int) -> Iterator[Any]:
        self.container.seek(time, stream=self.stream, backward=True)
        return self.container.demux(self.stream)

    def _decode_from(self, time: int, due: list[int]) -> Iterator[Any]:
        """Frames in the order of display, from a keyframe on; onto the heap `due`, when each should come."""
        for packet in self._demux_from(self._packets_until(time)[0].dts):
            if packet.pts is not None:
                heapq.heappush(due, packet.pts)
            yield from self.decoder.decode(packet)

    def _rgb(self, frame: Any) -> Tensor:
        if (frame.width, frame.height) != self.size:
            raise DatasetError(f"its size changes to {frame.width} by {frame.height} pixels")
        if frame.is_corrupt:
            raise DatasetError("what a frame refers to is missing")
        return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


def _is_referred_to(packet: memoryview) -> bool:
    """Whether other frames may refer to an H.264 frame in an mp4 packet; True where that cannot be read."""
    position = 0
    while position + 5 <= len(packet):
        header = packet[position + 4]
        if 1 <= header & 31 <= 5:  # a slice of a picture; before it may come parameters and remarks
            return header & 0b0110_0000 != 0
        position += 4 + int.from_bytes(packet[position : position + 4])
    return True
