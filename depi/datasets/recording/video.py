"""Frames of videos by time, through a bounded cache of open decoders per process.

Which frame belongs to a time: the one on display half a frame period later, that is, the nearest one. So a
timestamp may drift by just under half a period, and a video of variable frame rate is followed by its own
clock. A time up to END_TOLERANCE past the episode's end means its last frame; beyond that the frame does not
exist: what follows in a file that episodes share is another episode.

Frames are decoded at the recorded size and scaled by `letterbox`: to scale inside FFmpeg costs more than
that (its filter takes every pixel into account) and differs from LeRobot's bilinear scaling by up to 40 grey
levels.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from depi.datasets.recording.allowed import check_size
from depi.datasets.recording.border import reading
from depi.datasets.recording.decoders import OpenVideo, open_video
from depi.errors import DatasetError

END_TOLERANCE = 0.1
"""Seconds by which a recording's table may outlast its video."""
WHOLE_FILE = (0.0, float("inf"))


class FrameRequest(NamedTuple):
    """One frame of a video.

    path: the file.
    seconds: the time since the video's first frame.
    fps: frames per second that the dataset declares.
    number_of: where `place` is known, (number of the frame, frames of the episode): if the video has as many
        frames there but runs at another rate, the number decides, not the time.
    place: seconds in the file where the episode begins and ends, by default the whole file.
    declared: (height, width) that the dataset declares; see `check_size`.
    """

    path: Path
    seconds: float
    fps: float
    number_of: tuple[int, int] | None = None
    place: tuple[float, float] = WHOLE_FILE
    declared: tuple[int, int] | None = None


class VideoReader:
    """Decode frames; the videos used last stay open, `max_open` of them, fewer where they are large.

    It may be pickled and forked: each process opens its own decoders.

    Args:
        max_open: open decoders at most.
        backend: `torchcodec`, `pyav`, or None for the faster one.
        max_bytes: memory of the open decoders at most, by estimate.
    """

    def __init__(self, max_open: int = 32, backend: str | None = None, max_bytes: int = 150_000_000) -> None:
        self.max_open, self.backend, self.max_bytes = max_open, backend, max_bytes
        self._open: OrderedDict[Path, OpenVideo] = OrderedDict()
        self._bytes = 0
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"max_open": self.max_open, "backend": self.backend, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def frame(self, request: FrameRequest) -> Tensor:
        """One frame, uint8 [3, H, W].

        Raises:
            DatasetError: the video cannot be opened, is absurd, far larger than declared, ends before, or the
                frame cannot be decoded; nothing else is raised over a file.
        """
        with self._closed_on_error(request):
            video = self._video(request)
            return video.frame_at(_frame_time(video, request))

    def frames(self, requests: Sequence[FrameRequest]) -> Iterator[Tensor | DatasetError]:
        """Frames of one video at ascending times, however far apart: each, or why there is none."""
        given = 0
        try:
            for image in self._together(requests):
                given += 1
                yield image
        except DatasetError:
            # The file may be broken at one of them, and whole at the next.
            for request in requests[given:]:
                try:
                    yield self.frame(request)
                except DatasetError as error:
                    yield error

    def _together(self, requests: Sequence[FrameRequest]) -> Iterator[Tensor]:
        with self._closed_on_error(requests[0]):
            video = self._opened(requests[0].path)
            for declared in {request.declared for request in requests}:
                check_size(*video.size, declared)
            yield from video.frames_among([_frame_time(video, request) for request in requests])

    def episode(self, requests: Sequence[FrameRequest]) -> Iterator[Tensor]:
        """The frames of one video at ascending times, in one run through the file; as `frame` gives them.

        Raises:
            DatasetError: as `frame` does, when the iterator comes to that frame.
        """
        if not requests:
            return
        if len(requests) == 1:
            yield self.frame(requests[0])
            return
        with self._closed_on_error(requests[0]):
            video = self._video(requests[0])
            times = [_frame_time(video, request) for request in requests]
            yield from video.frames_at(times)

    @contextmanager
    def _closed_on_error(self, request: FrameRequest) -> Iterator[None]:
        """Whatever a file does to its decoder is a DatasetError, and nothing of the decoder stays."""
        try:
            with reading(f"{request.path.name} at {request.seconds:.3f} s"):
                yield
        except DatasetError:
            self._close(request.path)
            raise

    def _video(self, request: FrameRequest) -> OpenVideo:
        video = self._opened(request.path)
        check_size(*video.size, request.declared)
        return video

    def _opened(self, path: Path) -> OpenVideo:
        if self._process != os.getpid():
            # Forked: the parent's decoders share its file positions.
            self._open, self._bytes, self._process = OrderedDict(), 0, os.getpid()
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        while len(self._open) >= self.max_open:
            self._close(next(iter(self._open)))
        video = open_video(path, self.backend)
        while self._open and self._bytes + video.bytes > self.max_bytes:
            self._close(next(iter(self._open)))
        self._open[path] = video
        self._bytes += video.bytes
        return video

    def _close(self, path: Path) -> None:
        video = self._open.pop(path, None)
        if video is not None:
            self._bytes -= video.bytes
            video.close()


def _frame_time(video: OpenVideo, request: FrameRequest) -> float:
    """A time when the wanted frame is on display."""
    _, seconds, fps, number_of, place, _ = request
    begin, end = place[0], min(place[1], video.seconds)
    if number_of is not None and abs(video.fps / fps - 1) > 0.02:
        number, frames = number_of
        if abs((end - begin) * video.fps - frames) < 1.5:
            seconds = begin + number / video.fps
            fps = video.fps
    if not begin - END_TOLERANCE <= seconds <= end + END_TOLERANCE:
        has = "the video has" if place == WHOLE_FILE else "the episode's video ends at"
        raise DatasetError(f"{has} {end:.3f} s, a frame at {seconds:.3f} s was asked for")
    # With a variable rate the average says little about how close two frames may be.
    half = 0.5 / max(video.fps, fps)
    return max(begin, min(seconds + half, end - half))
