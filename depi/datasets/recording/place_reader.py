"""Decode the images of a camera by their places."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from depi.datasets.recording.border import reading
from depi.datasets.recording.images import ImageReader
from depi.datasets.recording.places import ImagePlace
from depi.datasets.recording.video import FrameRequest, VideoReader
from depi.errors import DatasetError


class PlacedImage(NamedTuple):
    """One image of a camera.

    path: of `place.file`, whose name the caller has checked
    place: of the camera in the episode
    frame: its number in the episode
    seconds: its time since the episode's start
    """

    path: Path
    place: ImagePlace
    frame: int
    seconds: float


class PlaceReader:
    """Decode images by their place; it may be pickled and forked: each process opens its own files.

    Args:
        max_videos: open decoders at most.
        max_image_bytes: of tables in memory at most, see `ImageReader`.
        backend: of the videos, see `VideoReader`.
    """

    def __init__(
        self, max_videos: int = 32, max_image_bytes: int = 300_000_000, backend: str | None = None
    ) -> None:
        self.videos = VideoReader(max_videos, backend)
        self.tables = ImageReader(max_image_bytes)

    def image(self, path: Path, place: ImagePlace, frame: int, seconds: float) -> Tensor:
        """One image, uint8 [3, H, W], as recorded; for the arguments see `PlacedImage`.

        Raises:
            DatasetError: it does not exist, cannot be decoded, or is far larger than declared; nothing else
                is raised over a file.
        """
        if place.in_table:
            return self.tables.image(path, place.camera, int(place.begin) + frame, place.size)
        return self.videos.frame(_request(path, place, frame, seconds))

    def images(self, wanted: Sequence[PlacedImage]) -> Iterator[tuple[int, Tensor | DatasetError]]:
        """Images of any files, each file opened once and read from front to back.

        Yields:
            for each, as it comes, its position in `wanted` and what `image` gives, or why there is none.
        """
        by_file: dict[Path, list[int]] = {}
        for number, one in enumerate(wanted):
            by_file.setdefault(one.path, []).append(number)
        for numbers in by_file.values():
            numbers.sort(key=lambda number: _depth(wanted[number]))
            yield from zip(numbers, self._of_file([wanted[number] for number in numbers]), strict=True)

    def _of_file(self, wanted: Sequence[PlacedImage]) -> Iterator[Tensor | DatasetError]:
        if not wanted[0].place.in_table:
            yield from self.videos.frames([_request(*one) for one in wanted])
            return
        for one in wanted:
            try:
                with reading():
                    image = self.image(*one)
            except DatasetError as error:
                yield error
            else:
                yield image

    def run(
        self, path: Path, place: ImagePlace, frames: Sequence[int], seconds: Sequence[float]
    ) -> Iterator[Tensor]:
        """The images at ascending frames, as `image` gives them, in one run through the file.

        Raises:
            DatasetError: as `image` does, when the iterator comes to that frame.
        """
        moments = zip(frames, seconds, strict=True)
        if place.in_table:
            yield from (self.image(path, place, frame, time) for frame, time in moments)
        else:
            yield from self.videos.episode([_request(path, place, frame, time) for frame, time in moments])


def _depth(one: PlacedImage) -> float:
    """How far into its file an image lies, in rows or seconds."""
    return one.place.begin + (one.frame if one.place.in_table else one.seconds)


def _request(path: Path, place: ImagePlace, frame: int, seconds: float) -> FrameRequest:
    """What to ask of the video at `path` for a frame of the episode, `seconds` after its start."""
    # Where the episode's end is known, it can be read by frame number if the declared rate is wrong.
    end_known = place.own_file or math.isfinite(place.end)
    number_of = (frame, place.length) if end_known else None
    return FrameRequest(
        path, place.begin + seconds, place.fps, number_of, (place.begin, place.end), place.size
    )
