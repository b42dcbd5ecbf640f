"""Where the image of a camera at a frame lies, and how it is read: the one answer for all readers.

A camera's images lie in one of three ways: in a column of the episode's table, in an mp4 of the episode's own
(v2.0, v2.1), or in a part of an mp4 that episodes share (v3.0). A video may run at another rate than the
dataset declares, and the episode's part of a shared file may end before its last frame.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from depi.datasets.recording.formats import DatasetMeta, VideoTable
from depi.datasets.recording.images import ImageReader
from depi.datasets.recording.tables import first_rows
from depi.datasets.recording.video import FrameRequest, VideoReader


@dataclass(frozen=True)
class ImagePlace:
    """Where the images of one camera in one episode lie.

    file: path within the dataset's folder
    camera: its key; the column of the table, if `in_table`
    in_table: the images are in a table, not in a video
    begin: the episode's first row in the table, or the second of the video at which it begins
    end: second of the video at which the episode ends; infinite where that is the video's end or not known
    own_file: the video holds this episode alone
    fps: frames per second that the dataset declares
    length: frames of the episode
    """

    file: str
    camera: str
    in_table: bool
    begin: float
    end: float
    own_file: bool
    fps: float
    length: int

    def request(self, path: Path, frame: int, seconds: float) -> FrameRequest:
        """What to ask of the video at `path` for a frame of the episode, `seconds` after its start."""
        # Where the episode's end is known, it can be read by frame number if the declared rate is wrong.
        end_known = self.own_file or math.isfinite(self.end)
        number_of = (frame, self.length) if end_known else None
        return FrameRequest(path, self.begin + seconds, self.fps, number_of, (self.begin, self.end))


def image_places(meta: DatasetMeta, cameras: Sequence[str]) -> dict[str, list[ImagePlace]]:
    """Camera -> where its images lie, for each episode of `meta`.

    The tables must be there where the images lie in tables.

    Raises:
        DatasetError: an episode's rows are not side by side in its table.
    """
    episodes = meta.episodes
    stored = [camera for camera in cameras if camera not in episodes.videos]
    in_table = VideoTable(
        episodes.data_paths,
        episodes.data_file,
        start=first_rows(meta) if stored else np.zeros(len(episodes)),
        end=np.full(len(episodes), math.inf),
    )
    own_file = file_per_episode(meta.info.version)
    places: dict[str, list[ImagePlace]] = {}
    for camera in cameras:
        table = episodes.videos.get(camera, in_table)
        columns = (table.file, table.start.astype(float), table.end, episodes.length)
        places[camera] = [
            ImagePlace(
                table.paths[file], camera, table is in_table, begin, end, own_file, meta.info.fps, length
            )
            for file, begin, end, length in zip(*(column.tolist() for column in columns), strict=True)
        ]
    return places


def file_per_episode(version: str) -> bool:
    """Whether each file of a dataset of this version holds one episode alone."""
    return not version.startswith("v3")


class PlaceReader:
    """Decode images by their place; it may be pickled and forked: each process opens its own files.

    Args:
        max_videos: open decoders at most.
        max_tables: row groups of tables in memory at most.
        backend: of the videos, see `VideoReader`.
    """

    def __init__(self, max_videos: int = 32, max_tables: int = 4, backend: str | None = None) -> None:
        self.videos = VideoReader(max_videos, backend)
        self.tables = ImageReader(max_tables)

    def image(self, path: Path, place: ImagePlace, frame: int, seconds: float) -> Tensor:
        """One image, uint8 [3, H, W], as recorded.

        Args:
            path: of `place.file`, whose name the caller has checked.
            place: of the camera in the episode.
            frame: its number in the episode.
            seconds: its time since the episode's start.

        Raises:
            DatasetError: it does not exist or cannot be decoded.
        """
        if place.in_table:
            return self.tables.image(path, place.camera, int(place.begin) + frame)
        return self.videos.frame(place.request(path, frame, seconds))

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
            yield from self.videos.episode([place.request(path, frame, time) for frame, time in moments])
