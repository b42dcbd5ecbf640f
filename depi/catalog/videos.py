"""What a few of a dataset's videos are like: their headers, and some frames of each.

Only the parts that are needed are fetched, unless the video is in the cache. Facts are kept per commit, so
that whoever asks again, with other thresholds or after an interruption, asks no Hub.
"""

import base64
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from huggingface_hub.file_download import repo_folder_name

from depi.catalog.text import clean
from depi.catalog.thumbnails import to_jpeg
from depi.datasets.recording.formats import MAX_IMAGE_SIDE, DatasetMeta
from depi.datasets.recording.hub_files import HubFiles
from depi.datasets.recording.metadata import read_meta
from depi.datasets.recording.sources import DatasetSource, cache_folder
from depi.errors import DatasetError, UserError
from depi.files import read_json, write_json
from depi.hub.client import api as client
from depi.hub.client import session
from depi.hub.client.ranges import RemoteFile
from depi.hub.names import parse_dataset_id

# Raise it when other facts are gathered: those of an older version are not used. Gathering them costs
# network, too much for every change of any line, and so no `depi.fingerprint`.
FACTS_VERSION = 1
FILES_PER_CAMERA = 2
SAMPLES = (0.1, 0.5, 0.9)
MAX_VIDEO_BYTES = 128_000_000
MAX_DECODED = 2_000
MAX_CAMERAS = 8


@dataclass(frozen=True)
class VideoFacts:
    """One video file of one camera; numbers are None where it could not be read, and `error` says why.

    frames, fps, width, height: from the header
    declared_*: what the dataset says of the same
    brightness: mean luma of the brightest sampled frame, 0..255
    contrast: largest standard deviation of luma within a sampled frame
    change: largest difference of luma between two sampled frames, of the one pixel in 500 that changes most
    thumbnail: JPEG in base64
    """

    camera: str
    path: str
    declared_frames: int
    declared_fps: float
    declared_width: int
    declared_height: int
    error: str | None = None
    codec: str | None = None
    frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    brightness: float | None = None
    contrast: float | None = None
    change: float | None = None
    thumbnail: str | None = None

    @property
    def jpeg(self) -> bytes | None:
        """The thumbnail's bytes."""
        return None if self.thumbnail is None else base64.b64decode(self.thumbnail)


@dataclass(frozen=True)
class Item:
    """A dataset at a commit whose videos are to be looked at."""

    repo_id: str
    revision: str


def look_at_videos(
    item: Item, max_seconds: float = 900.0, settings: session.Settings = session.DEFAULT
) -> list[VideoFacts]:
    """The facts of a dataset's videos, from the memory of this machine, or else from the Hub.

    Args:
        item: the dataset.
        max_seconds: for all requests about it together.
        settings: how this process may ask the Hub from now on.

    Raises:
        HubError: unreachable, missing, or it takes longer than `max_seconds`.
        DatasetError: the metadata cannot be read.
    """
    if (known := remembered(item)) is not None:
        return known
    session.use(settings)
    with client.time_limit(max_seconds):
        facts = _look(item)
    write_json(
        _memory(item), {"version": FACTS_VERSION, "videos": [dataclasses.asdict(video) for video in facts]}
    )
    return facts


def _memory(item: Item) -> Path:
    dataset = parse_dataset_id(item.repo_id)
    folder = repo_folder_name(repo_id=dataset.repo_id, repo_type="dataset")
    return cache_folder() / "videos" / folder / item.revision / dataset.inside("videos.json")


def remembered(item: Item) -> list[VideoFacts] | None:
    """What `look_at_videos` found out before about the same commit, or None."""
    try:
        known = read_json(_memory(item))
        if known["version"] != FACTS_VERSION:
            return None
        return [VideoFacts(**video) for video in known["videos"]]
    except (UserError, KeyError, TypeError):
        return None


def _look(item: Item) -> list[VideoFacts]:
    files = HubFiles(DatasetSource(item.repo_id, item.revision))
    return [_video(files, video) for video in _chosen(read_meta(files))]


def _chosen(meta: DatasetMeta) -> list[VideoFacts]:
    """The first and the last file of each camera, with what the dataset declares of them.

    Files are looked at, not frames: where in a shared file an episode lies does not matter here, unlike in
    `depi.datasets.recording.places`.
    """
    chosen = []
    for camera in sorted(meta.episodes.videos)[:MAX_CAMERAS]:
        table = meta.episodes.videos[camera]
        height, width = meta.info.features[camera].image_size
        used = sorted(set(table.file.tolist()), key=lambda number: table.paths[number])
        for number in dict.fromkeys([used[0], used[-1]][:FILES_PER_CAMERA]):
            frames = int(meta.episodes.length[table.file == number].sum())
            chosen.append(VideoFacts(camera, table.paths[number], frames, meta.info.fps, width, height))
    return chosen


def _video(files: HubFiles, declared: VideoFacts) -> VideoFacts:
    repo_id, filename = files.dataset.repo_id, files.dataset.inside(declared.path)
    try:
        file = RemoteFile(repo_id, filename, revision=files.revision, max_bytes=MAX_VIDEO_BYTES)
        with file, av.open(file, format="mp4") as container:
            return _read(container, declared)
    except (client.FileMissing, client.TooLarge) as error:
        return dataclasses.replace(declared, error=clean(error, 200))
    except (DatasetError, av.FFmpegError, ValueError, OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return dataclasses.replace(declared, error=clean(f"cannot be decoded: {reason}", 200))


def _read(container: Any, declared: VideoFacts) -> VideoFacts:
    if not container.streams.video:
        raise DatasetError("there is no picture in it")
    stream = container.streams.video[0]
    if not (0 < stream.width <= MAX_IMAGE_SIDE and 0 < stream.height <= MAX_IMAGE_SIDE):
        raise DatasetError(f"its pictures are {stream.width} x {stream.height}")
    stream.codec_context.thread_count = 1
    duration = float((stream.duration or 0) * stream.time_base)
    images = [_frame_at(container, stream, duration * share) for share in SAMPLES]
    lumas = [image.astype(np.float32).mean(axis=2) for image in images]
    pairs = [(lumas[0], lumas[1]), (lumas[1], lumas[2]), (lumas[0], lumas[2])]
    rate = stream.average_rate
    return dataclasses.replace(
        declared,
        codec=clean(stream.codec_context.name, 20),
        frames=stream.frames or None,
        fps=None if rate is None else round(float(rate), 4),
        width=stream.width,
        height=stream.height,
        brightness=round(max(float(luma.mean()) for luma in lumas), 2),
        contrast=round(max(float(luma.std()) for luma in lumas), 2),
        change=round(max(float(np.quantile(np.abs(a - b), 0.998)) for a, b in pairs), 2),
        thumbnail=base64.b64encode(to_jpeg(images[1])).decode(),
    )


def _frame_at(container: Any, stream: Any, seconds: float) -> np.ndarray:
    """The last frame that begins at or before a time, uint8 [H, W, 3]; the first where all are later."""
    start = stream.start_time or 0
    target = start + int(seconds / stream.time_base)
    container.seek(target, stream=stream)
    best = None
    for number, frame in enumerate(container.decode(stream)):
        client.check_time()
        if best is None or (frame.pts is not None and frame.pts <= target):
            best = frame
        if number >= MAX_DECODED or frame.pts is None or frame.pts >= target:
            break
    if best is None:
        raise DatasetError("it has no frame")
    return best.to_ndarray(format="rgb24")
