"""Which frames of an episode a model sees, and those frames as small JPEGs, from the cache or the videos.

The first and the last frame, and in between the moments when the gripper opens or closes most: there
something is grasped or let go. All cameras show the same moments. They are decoded once, for all stages, and
kept, so that another model or prompt decodes nothing.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch.nn.functional as F
from torch import Tensor

from depi.datasets.recording.checks import resolve_file
from depi.datasets.recording.images import encode_jpeg
from depi.datasets.recording.place_reader import PlaceReader
from depi.datasets.recording.places import ImagePlace
from depi.datasets.recording.sources import DatasetFiles, DatasetSource
from depi.datasets.recording.storages import open_source
from depi.errors import DatasetError
from depi.files import atomic_write, cache_folder
from depi.fingerprint import code, fingerprint

logger = logging.getLogger(__name__)

QUALITY = 85
MAX_BYTES = 4_000_000
"""Of one JPEG: at any allowed size far less."""
_SCHEMA = pa.schema([("camera", pa.string()), ("frame", pa.int64()), ("jpeg", pa.binary())])
_SAME_MOMENT = 0.05
_own = threading.local()


@dataclass(frozen=True)
class Clip:
    """The frames of one episode that a model sees.

    source: the dataset, at a commit where it is on the Hub
    state: the revision, or what stands for it; see `depi.annotate.episode_journal.Result`
    frames, seconds: their numbers in the episode, ascending, and their times since its start
    cameras: camera key -> where its images lie
    """

    source: DatasetSource
    state: str | None
    episode: int
    frames: tuple[int, ...]
    seconds: tuple[float, ...]
    cameras: Mapping[str, ImagePlace]


Images = dict[str, list[bytes]]
"""camera key -> a JPEG for each of the clip's frames"""


def choose_frames(gripper: np.ndarray | None, length: int, count: int) -> tuple[int, ...]:
    """Numbers of at most `count` frames of an episode, ascending, the first and the last among them.

    Args:
        gripper: its position at every frame, float [length] in any unit; None where there is none.
        length: frames of the episode.
        count: at most so many; at least 2.
    """
    if length <= count:
        return tuple(range(length))
    chosen = [0, length - 1]
    apart = max(1, round(length * _SAME_MOMENT))
    if gripper is not None and np.isfinite(gripper).all() and np.ptp(gripper) > 1e-6:
        # The change over a window: noise is small in it, an opening or closing is large.
        before, after = np.roll(gripper, apart), np.roll(gripper, -apart)
        change = np.abs(after - before) / np.ptp(gripper)
        change[:apart] = change[length - apart :] = 0
        while len(chosen) < count and change.max() > 0.25:
            moment = int(change.argmax())
            chosen.append(moment)
            change[max(0, moment - 2 * apart) : moment + 2 * apart + 1] = 0
    while len(chosen) < count:  # the middle of the longest stretch that nothing shows
        ordered = sorted(chosen)
        gaps = np.diff(ordered)
        widest = int(gaps.argmax())
        chosen.append(ordered[widest] + int(gaps[widest]) // 2)
    return tuple(sorted(set(chosen)))


def load_images(clip: Clip, max_pixels: int, keep: bool = True) -> Images:
    """The clip's frames as JPEGs of at most `max_pixels` each.

    Args:
        clip: which.
        max_pixels: of each image.
        keep: look into the cache first, and put there what was decoded.

    Raises:
        DatasetError: a file is missing or cannot be decoded.
        UserError: the Hub does not give a file.
    """
    path = cached_path(clip, max_pixels)
    if keep and (images := _from_cache(path, clip)) is not None:
        return images
    images = _decode(clip, max_pixels)
    if keep:
        try:
            _to_cache(path, clip, images)
        except OSError as error:
            logger.warning("frames are not kept in %s: %s", path.parent, error.strerror)
    return images


def cached_path(clip: Clip, max_pixels: int) -> Path:
    """Where the frames are kept: in DePi's cache, by dataset and state, a file for each choice of frames."""
    dataset = fingerprint(clip.source.repo_id, str(clip.source.root), clip.state)
    made_by = code("depi.datasets.recording.place_reader", shrink)
    chosen = fingerprint(made_by, clip.frames, tuple(clip.cameras), max_pixels, QUALITY)
    return cache_folder() / "annotate" / dataset / f"{clip.episode}-{chosen}.arrow"


def _from_cache(path: Path, clip: Clip) -> Images | None:
    try:
        with pa.OSFile(str(path)) as file:
            rows = pa.ipc.open_file(file).read_all().to_pylist()
        images: Images = {}
        for row in rows:
            images.setdefault(row["camera"], []).append(row["jpeg"])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    whole = all(len(each) == len(clip.frames) for each in images.values())
    return images if whole and set(images) == set(clip.cameras) else None


def _to_cache(path: Path, clip: Clip, images: Images) -> None:
    rows = [
        {"camera": camera, "frame": frame, "jpeg": jpeg}
        for camera, jpegs in images.items()
        for frame, jpeg in zip(clip.frames, jpegs, strict=True)
    ]
    with atomic_write(path) as temporary, pa.ipc.new_file(str(temporary), _SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))


@lru_cache(maxsize=64)
def _files(source: DatasetSource) -> DatasetFiles:
    return open_source(source)


def _decode(clip: Clip, max_pixels: int) -> Images:
    files = _files(clip.source)
    files.fetch([place.file for place in clip.cameras.values()])
    return {
        camera: [encode_jpeg(shrink(image, max_pixels), QUALITY) for image in _read(files.root, clip, camera)]
        for camera in clip.cameras
    }


def _read(root: Path, clip: Clip, camera: str) -> Sequence[Tensor]:
    """The images of one camera at the clip's frames, uint8 [3, H, W] each."""
    if not hasattr(_own, "reader"):
        _own.reader = PlaceReader(max_videos=4, max_image_bytes=150_000_000)
    place = clip.cameras[camera]
    path = resolve_file(root, place.file)
    moments = zip(clip.frames, clip.seconds, strict=True)
    return [_own.reader.image(path, place, frame, seconds) for frame, seconds in moments]


def shrink(image: Tensor, max_pixels: int) -> Tensor:
    """An image uint8 [3, H, W] with at most `max_pixels`, of the same shape; smaller ones as they are."""
    height, width = image.shape[-2:]
    if height * width <= max_pixels:
        return image
    scale = (max_pixels / (height * width)) ** 0.5
    size = max(1, int(height * scale)), max(1, int(width * scale))
    if min(size) < 2 and max(height, width) > max_pixels:
        raise DatasetError(f"an image is {width} by {height} pixels")
    return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
