"""The frames that a model saw, decoded again at the numbers that the journal names."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from depi import engine
from depi.annotate.frames import Clip, load_images
from depi.annotate.work import local_state, make_clip
from depi.datasets.recording.formats import data_files, select_episodes
from depi.datasets.recording.metadata import read_meta
from depi.datasets.recording.places import image_places
from depi.datasets.recording.sources import DatasetSource
from depi.datasets.recording.storages import open_source
from depi.datasets.recording.tables import read_frames
from depi.errors import DatasetError, UserError

logger = logging.getLogger(__name__)

LOADERS = 2

Key = tuple[str, int]
Frames = Mapping[Key, Mapping[str, Sequence[int]]]


def load_frames(
    keys: Sequence[Key],
    frames: Frames,
    revisions: Mapping[str, str | None],
    root: Path | None,
    max_pixels: int,
) -> Iterator[tuple[Key, list[tuple[str, int, bytes]]]]:
    """The frames of episodes as JPEGs; what cannot be decoded is logged and left out.

    Args:
        keys: (repo_id, episode).
        frames: of each, camera -> numbers of the frames.
        revisions: of the datasets, as annotated.
        root: the local folder of the only dataset, None for datasets of the Hub.
        max_pixels: of each picture.

    Yields:
        Episode and its (camera, number of the frame, JPEG), in the order of `keys`.
    """
    clips: dict[Key, Clip] = {}
    for repo_id, group in groupby(sorted(keys), key=lambda key: key[0]):
        try:
            clips |= _clips(repo_id, [episode for _, episode in group], frames, revisions[repo_id], root)
        except (DatasetError, UserError) as error:
            logger.warning("no pictures of %s: %s", repo_id, error)
    load = partial(_load, clips=clips, max_pixels=max_pixels)
    waiting = [key for key in keys if key in clips]
    loaded: dict[Key, list[tuple[str, int, bytes]] | Exception] = {}
    for done, outcome in engine.run(load, tuple(waiting), workers=LOADERS):
        loaded[done] = outcome
        while waiting and waiting[0] in loaded:
            key = waiting.pop(0)
            images = loaded.pop(key)
            if not isinstance(images, Exception):
                yield key, images
            elif isinstance(images, DatasetError | UserError):
                logger.warning("no pictures of episode %s of %s: %s", key[1], key[0], images)
            else:
                raise images


def _load(key: Key, clips: Mapping[Key, Clip], max_pixels: int) -> list[tuple[str, int, bytes]]:
    clip = clips[key]
    images = load_images(clip, max_pixels)
    return [
        (camera, frame, jpeg)
        for camera, jpegs in images.items()
        for frame, jpeg in zip(clip.frames, jpegs, strict=True)
    ]


def _clips(
    repo_id: str, episodes: Sequence[int], frames: Frames, state: str | None, root: Path | None
) -> dict[Key, Clip]:
    """What to decode of a dataset: it must be as it was when it was annotated."""
    source = DatasetSource(repo_id, None, root)
    if source.root is None:
        if state is None or state.startswith("local-"):
            raise UserError("it was annotated from a folder: name it with --repo_id and --root")
        source = replace(source, revision=state)
    files = open_source(source)
    meta = read_meta(files)
    if (now := files.revision or local_state(files.root)) != state:
        raise UserError(f"it was annotated at {str(state)[:14]} and is at {now[:14]} now")
    known = np.isin(meta.episodes.episode_index, episodes)
    meta = select_episodes(meta, np.flatnonzero(known))
    files.fetch(data_files(meta))
    time = read_frames(meta, ["timestamp"])["timestamp"].astype(np.float64).reshape(-1)
    ends = np.cumsum(meta.episodes.length).tolist()
    places = image_places(meta, meta.info.camera_keys)
    clips: dict[Key, Clip] = {}
    for position, (episode, end) in enumerate(zip(meta.episodes.episode_index.tolist(), ends, strict=True)):
        own = time[end - int(meta.episodes.length[position]) : end]
        # Whoever annotated without a model saw nothing; a person still wants to see start, middle and end.
        middle = (0, len(own) // 2, len(own) - 1)
        seen = frames[repo_id, episode] or dict.fromkeys(meta.info.camera_keys, middle)
        numbers = sorted({number for shown in seen.values() for number in shown if 0 <= number < len(own)})
        cameras = {key: places[key][position] for key in seen if key in places}
        if cameras and numbers:
            clips[repo_id, episode] = make_clip(source, state, episode, own, numbers, cameras)
    return clips
