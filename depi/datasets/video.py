"""Frames of videos by time, through a bounded cache of open decoders per process.

torchcodec decodes; where it cannot load (it needs FFmpeg's shared libraries) PyAV does, said once.

Which frame belongs to a time: the one on display half a frame period later, that is, the nearest one. So a
timestamp may drift by just under half a period, and a video of variable frame rate is followed by its own
clock. A time up to END_TOLERANCE past the end means the last frame; beyond that the frame does not exist.
"""

import functools
import importlib
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from depi.datasets.checks import short
from depi.datasets.formats import MAX_FPS, MAX_IMAGE_SIDE
from depi.errors import DatasetError

logger = logging.getLogger(__name__)

END_TOLERANCE = 0.1
"""Seconds by which a recording's table may outlast its video."""


class OpenVideo(Protocol):
    """An open video: times in seconds from its first frame, `frames` None where the header does not say."""

    fps: float
    seconds: float
    frames: int | None

    def frame_at(self, seconds: float) -> Tensor:
        """The frame on display at a time, uint8 [3, H, W]."""


class VideoReader:
    """Decode single frames; the `max_open` videos used last stay open.

    It may be pickled and forked: each process opens its own decoders.
    """

    def __init__(self, max_open: int = 16, backend: str | None = None) -> None:
        self.max_open = max_open
        self.backend = backend
        self._open: OrderedDict[Path, OpenVideo] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"max_open": self.max_open, "backend": self.backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def frame(
        self, path: Path, seconds: float, fps: float, number_of: tuple[int, int] | None = None
    ) -> Tensor:
        """One frame of a video.

        Args:
            path: the file.
            seconds: the time since the video's first frame.
            fps: frames per second that the dataset declares.
            number_of: where the file is one whole episode, (number of the frame, frames of the episode): if
                the file has as many frames but runs at another rate, the number decides, not the time.

        Returns:
            uint8 [3, H, W].

        Raises:
            DatasetError: the video cannot be opened, is absurd, ends before, or the frame cannot be decoded.
        """
        try:
            video = self._video(path)
            return video.frame_at(_frame_time(video, seconds, fps, number_of))
        except _decoder_errors() as error:
            self._open.pop(path, None)
            raise DatasetError(
                f"{path.name} cannot be decoded at {seconds:.3f} s: {short(str(error))}"
            ) from None

    def _video(self, path: Path) -> OpenVideo:
        if self._process != os.getpid():
            # Forked: the parent's decoders share its file positions.
            self._open, self._process = OrderedDict(), os.getpid()
        if path not in self._open:
            while len(self._open) >= self.max_open:
                self._open.popitem(last=False)
            self._open[path] = _opener(self.backend)(path)
        self._open.move_to_end(path)
        return self._open[path]


def _decoder_errors() -> tuple[type[Exception], ...]:
    """What decoders raise over a broken file; some of PyAV's errors are no other Python error."""
    builtin = (RuntimeError, ValueError, LookupError, OSError, EOFError)
    return (*builtin, sys.modules["av"].FFmpegError) if "av" in sys.modules else builtin


def _frame_time(video: OpenVideo, seconds: float, fps: float, number_of: tuple[int, int] | None) -> float:
    """A time when the wanted frame is on display."""
    if number_of is not None and video.frames is not None and abs(video.fps / fps - 1) > 0.02:
        number, frames = number_of
        if abs(video.frames - frames) <= 1:
            seconds = number / video.fps
            fps = video.fps
    if not -END_TOLERANCE <= seconds <= video.seconds + END_TOLERANCE:
        raise DatasetError(f"the video has {video.seconds:.3f} s, a frame at {seconds:.3f} s was asked for")
    # With a variable rate the average says little about how close two frames may be.
    half = 0.5 / max(video.fps, fps)
    return max(0.0, min(seconds + half, video.seconds - half))


@functools.cache
def _opener(backend: str | None) -> Callable[[Path], OpenVideo]:
    if backend == "pyav":
        return _PyavVideo
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("torchcodec cannot load, video is decoded with PyAV, more slowly: %s", reason)
        return _PyavVideo
    return _TorchcodecVideo


def _check_header(width: int | None, height: int | None, fps: float | None, seconds: float | None) -> None:
    if not (width and height and 0 < width <= MAX_IMAGE_SIDE and 0 < height <= MAX_IMAGE_SIDE):
        raise DatasetError(f"a video is {width} by {height} pixels, at most {MAX_IMAGE_SIDE} are read")
    if not (fps and 0 < fps <= MAX_FPS and seconds and 0 < seconds < 1e7):
        raise DatasetError(f"a video has {short(fps)} frames per second over {short(seconds)} seconds")


class _TorchcodecVideo:
    def __init__(self, path: Path) -> None:
        from torchcodec.decoders import VideoDecoder

        self.decoder = VideoDecoder(path, seek_mode="approximate", num_ffmpeg_threads=1)
        header = self.decoder.metadata
        self.begin = header.begin_stream_seconds or 0.0
        fps, seconds = header.average_fps, (header.end_stream_seconds or 0.0) - self.begin
        _check_header(header.width, header.height, fps, seconds)
        self.fps, self.seconds, self.frames = float(fps or 0), seconds, header.num_frames

    def frame_at(self, seconds: float) -> Tensor:
        return self.decoder.get_frame_played_at(self.begin + seconds).data


class _PyavVideo:
    def __init__(self, path: Path) -> None:
        import av

        self.container = av.open(str(path))
        if not self.container.streams.video:
            raise DatasetError(f"{path.name} holds no video")
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = 1
        fps = float(self.stream.average_rate or 0)
        scale = float(self.stream.time_base or 0)
        self.begin = (self.stream.start_time or 0) * scale
        seconds = (self.stream.duration or 0) * scale
        _check_header(self.stream.codec_context.width, self.stream.codec_context.height, fps, seconds)
        self.fps, self.seconds, self.frames = fps, seconds, self.stream.frames or None

    def frame_at(self, seconds: float) -> Tensor:
        target = self.begin + seconds
        scale = float(self.stream.time_base)
        self.container.seek(int(target / scale), stream=self.stream, backward=True)
        shown = None
        for frame in self.container.decode(self.stream):
            if shown is not None and frame.pts * scale > target:
                break
            shown = frame
        if shown is None:
            raise DatasetError(f"no frame at {seconds:.3f} s")
        return torch.from_numpy(shown.to_ndarray(format="rgb24")).permute(2, 0, 1)
