"""Where the image of a camera at a frame lies: the one answer for all readers.

A camera's images lie in one of three ways: in a column of the episode's table, in an mp4 of the episode's own
(v2.0, v2.1), or in a part of an mp4 that episodes share (v3.0). A video may run at another rate than the
dataset declares, and the episode's part of a shared file may end before its last frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from depi.datasets.recording.formats import DatasetMeta, VideoTable
from depi.datasets.recording.tables import first_rows


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
    size: (height, width) that the dataset declares, in pixels
    """

    file: str
    camera: str
    in_table: bool
    begin: float
    end: float
    own_file: bool
    fps: float
    length: int
    size: tuple[int, int]


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
        size = meta.info.features[camera].image_size
        places[camera] = [
            ImagePlace(
                table.paths[file],
                camera,
                table is in_table,
                begin,
                end,
                own_file,
                meta.info.fps,
                length,
                size,
            )
            for file, begin, end, length in zip(*(column.tolist() for column in columns), strict=True)
        ]
    return places


def file_per_episode(version: str) -> bool:
    """Whether each file of a dataset of this version holds one episode alone."""
    return not version.startswith("v3")
