"""What a dataset's videos are like, episode by episode and camera by camera.

Of each video the index is read, which says when every frame is shown and how many bytes it takes, and a few
frames are decoded. Only the parts that are needed are fetched, unless the video is in the cache. Facts are
kept per commit, so that whoever asks again, with other thresholds or after an interruption, asks no Hub.
"""

import base64
import dataclasses
import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.file_download import repo_folder_name

from depi.catalog.pace import Follows, Still, follow, motion_scale, noise, still_runs, travel
from depi.catalog.packets import Video
from depi.catalog.pictures import Sample, changed, describe, is_same
from depi.catalog.text import clean
from depi.catalog.thumbnails import to_jpeg
from depi.datasets.recording.border import reading
from depi.datasets.recording.formats import DatasetMeta, data_files, select_episodes
from depi.datasets.recording.hub_files import HubFiles
from depi.datasets.recording.metadata import read_meta
from depi.datasets.recording.places import ImagePlace, image_places
from depi.datasets.recording.sources import DatasetSource, cache_faults
from depi.datasets.recording.tables import STATE, read_frames
from depi.errors import DatasetError, UserError
from depi.files import cache_folder, read_json, write_text
from depi.hub.client import api as client
from depi.hub.client import session
from depi.hub.client.ranges import RemoteFile
from depi.hub.names import parse_dataset_id

# Raise it when other facts are gathered: those of an older version are not used. Gathering them costs
# network, too much for every change of any line, and so no `depi.fingerprint`.
FACTS_VERSION = 2
MAX_EPISODES = 64
SAMPLES = (0.1, 0.5, 0.9)
MAX_VIDEO_BYTES = 128_000_000
MAX_CAMERAS = 8
# Real cameras repeat a picture for up to 0.3 s. For a still picture to mean anything, one joint must move
# meanwhile by this share of its range.
_STILL_SECONDS = 0.5
_STILL_MOVED = 0.15
_CHECKED_STILLS, _LOOKS, _DOUBLING = 2, 3, (0, 1, 3, 7, 15, 31, 63)
# A keyframe is sampled in place of another frame that is not farther away than this.
_NEAR_FRAMES, _NEAR_SHARE = 4, 0.05
# A keyframe this much smaller than the episode's others is looked at.
_SMALL = 0.3


@dataclass(frozen=True)
class VideoFacts:
    """The video of one camera in one episode; `error` says why it could not be read, and numbers are None.

    path: the file, which in v3.0 holds other episodes too
    length: frames of the episode
    declared_*: what the dataset says of the camera
    frames: of the file's part that is the episode's
    fps, width, height: from the file's header
    samples: at the shares SAMPLES of the episode
    least: the sample of the smallest keyframe, where it is much smaller than the others
    least_frames: the first frame with so small a keyframe, the end of the last, and the share that has such
    still: where the picture stands still while a joint moves, longest first
    noise: see `depi.catalog.pace.noise`
    moved: the farthest that a joint goes in the episode, as a share of its range in the dataset
    follows: how late the picture follows the joints
    thumbnail: JPEG in base64, of the camera's first episode that has a picture
    """

    camera: str
    path: str
    episode: int
    length: int
    declared_fps: float
    declared_width: int
    declared_height: int
    error: str | None = None
    codec: str | None = None
    frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    samples: tuple[Sample, ...] = ()
    least: Sample | None = None
    least_frames: tuple[int, int, float] | None = None
    still: tuple[Still, ...] = ()
    noise: float | None = None
    moved: float | None = None
    follows: Follows | None = None
    thumbnail: str | None = None

    @property
    def jpeg(self) -> bytes | None:
        """The thumbnail's bytes."""
        return None if self.thumbnail is None else base64.b64decode(self.thumbnail)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "VideoFacts":
        """Undo `dataclasses.asdict` after a way through JSON."""
        least, least_frames, follows = value["least"], value["least_frames"], value["follows"]
        nested = {
            "samples": tuple(Sample(**sample) for sample in value["samples"]),
            "least": None if least is None else Sample(**least),
            "least_frames": None if least_frames is None else tuple(least_frames),
            "still": tuple(Still(**still) for still in value["still"]),
            "follows": None if follows is None else Follows(tuple(follows["far"]), tuple(follows["close"])),
        }
        return cls(**{**value, **nested})


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
    kept = {"version": FACTS_VERSION, "videos": [dataclasses.asdict(video) for video in facts]}
    memory = _memory(item)
    with cache_faults(memory):
        write_text(memory, json.dumps(kept))
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
        return [VideoFacts.from_json(video) for video in known["videos"]]
    except (UserError, KeyError, TypeError):
        return None


def _look(item: Item) -> list[VideoFacts]:
    files = HubFiles(DatasetSource(item.repo_id, item.revision))
    meta = read_meta(files)
    count = len(meta.episodes)
    if count > MAX_EPISODES:
        meta = select_episodes(meta, np.linspace(0, count - 1, MAX_EPISODES).round().astype(int))
    joints = _joints(files, meta)
    found = []
    cameras = sorted(meta.episodes.videos)[:MAX_CAMERAS]
    for camera, places in image_places(meta, cameras).items():
        height, width = meta.info.features[camera].image_size
        by_file = defaultdict(list)
        for number, place, each in zip(meta.episodes.episode_index.tolist(), places, joints, strict=True):
            declared = VideoFacts(camera, place.file, number, place.length, meta.info.fps, width, height)
            by_file[place.file].append((declared, place, each))
        of_camera: list[VideoFacts] = []
        for episodes in by_file.values():
            of_camera += _file(files, episodes, pictured=any(video.thumbnail for video in of_camera))
        found += of_camera
    return found


Episode = tuple[VideoFacts, ImagePlace, np.ndarray]


def _joints(files: HubFiles, meta: DatasetMeta) -> list[np.ndarray]:
    """The state of each episode as shares of each joint's range, float [L, D]; D is 0 if unread."""
    length = meta.episodes.length
    try:
        files.fetch(data_files(meta))
        recorded = read_frames(meta, (STATE,))[STATE].astype(np.float64)
    except DatasetError:
        recorded = np.zeros((meta.num_frames, 0))
    state = np.nan_to_num(recorded, posinf=0, neginf=0).reshape(meta.num_frames, -1)
    if state.size:
        state = state / motion_scale(state)
    return np.split(state, np.cumsum(length)[:-1])


def _file(files: HubFiles, episodes: Sequence[Episode], pictured: bool) -> list[VideoFacts]:
    """The facts of the episodes that lie in one file; with a thumbnail of one, if not yet `pictured`."""
    repo_id, filename = files.dataset.repo_id, files.dataset.inside(episodes[0][0].path)
    try:
        file = RemoteFile(repo_id, filename, revision=files.revision, max_bytes=MAX_VIDEO_BYTES)
        with reading(), file, Video(file, episodes[0][1].size) as video:
            found: list[VideoFacts] = []
            for episode in episodes:
                client.check_time()
                known = pictured or any(facts.thumbnail for facts in found)
                found.append(_episode(video, *episode, pictured=known))
            return found
    except client.FileMissing as error:
        return _failed(episodes, error)
    except (client.TooLarge, DatasetError) as error:
        return _failed(episodes, error, "cannot be decoded: ")


def _failed(episodes: Sequence[Episode], error: Exception, what: str = "") -> list[VideoFacts]:
    reason = clean(what + str(error), 200)
    return [dataclasses.replace(declared, error=reason) for declared, _, _ in episodes]


def _episode(
    video: Video, declared: VideoFacts, place: ImagePlace, joints: np.ndarray, pictured: bool
) -> VideoFacts:
    part = _part(video, place)
    facts = dataclasses.replace(
        declared,
        codec=clean(video.codec, 20),
        frames=part.stop - part.start,
        fps=None if video.fps is None else round(video.fps, 4),
        width=video.width,
        height=video.height,
        moved=round(travel(joints), 4),
    )
    if part.start == part.stop:
        return dataclasses.replace(facts, error="the episode's part of the file has no frame")
    try:
        with reading():
            return _Episode(video, part, joints).look(facts, pictured)
    except DatasetError as error:
        return _failed([(facts, place, joints)], error, "cannot be decoded: ")[0]


def _part(video: Video, place: ImagePlace) -> slice:
    """The episode's frames in the file."""
    if place.own_file:
        return slice(0, len(video.packets))
    half = 0.5 / (video.fps or place.fps)
    end = min(place.end, place.begin + 2 * place.length / place.fps)
    edges = np.searchsorted(video.packets.seconds, (place.begin - half, end - half))
    return slice(int(edges[0]), max(int(edges[0]), int(edges[1])))


class _Episode:
    """One episode's part of an open video, with its joints (float [L, D], as shares of their ranges)."""

    def __init__(self, video: Video, part: slice, joints: np.ndarray) -> None:
        self._video, self._part, self._joints = video, part, joints
        self._keys = np.flatnonzero(video.packets.keyframe[part])
        self._size = video.packets.size[part]
        self._luma: dict[int, np.ndarray] = {}

    def look(self, facts: VideoFacts, pictured: bool) -> VideoFacts:
        """The facts with all that the pictures tell; with a thumbnail, if not yet `pictured`."""
        samples = [self._sample(self._near(share)) for share in SAMPLES]
        thumbnail = None
        if not pictured:
            middle = self._frame(self._near(0.5)).to_ndarray(format="rgb24")
            thumbnail = base64.b64encode(to_jpeg(middle)).decode()
        least, least_frames = self._least()
        fewest = max(6, round(_STILL_SECONDS * facts.declared_fps))
        runs = still_runs(self._video.packets, self._part, self._video.codec, fewest)
        return dataclasses.replace(
            facts,
            samples=tuple(samples),
            least=least,
            least_frames=least_frames,
            still=self._stills(runs),
            noise=noise(self._video.packets, self._part, self._video.codec, runs),
            follows=follow(self._video.packets, self._part, self._joints),
            thumbnail=thumbnail,
        )

    def _near(self, share: float) -> int:
        """The frame to sample at a share of the episode: a keyframe, if one is near."""
        length = self._part.stop - self._part.start
        wanted = round(share * (length - 1))
        if len(self._keys):
            nearest = int(self._keys[np.abs(self._keys - wanted).argmin()])
            if abs(nearest - wanted) <= max(_NEAR_FRAMES, _NEAR_SHARE * length):
                return nearest
        return wanted

    def _frame(self, number: int) -> Any:
        return self._video.frame(self._part.start + number)

    def _look_at(self, number: int) -> np.ndarray:
        """A frame's luma, uint8 [H, W]; decoded once."""
        if number not in self._luma:
            self._luma[number] = self._frame(number).to_ndarray(format="gray")
        return self._luma[number]

    def _sample(self, number: int) -> Sample:
        return describe(number, self._look_at(number))

    def _least(self) -> tuple[Sample | None, tuple[int, int, float] | None]:
        """The smallest keyframe, if much smaller than the others, and where keyframes are as small."""
        if len(self._keys) < 2:
            return None, None
        size = self._size[self._keys]
        smallest = int(size.min())
        if smallest > _SMALL * np.quantile(size, 0.9):
            return None, None
        small = self._keys[size <= 1.3 * smallest + 20]
        share = round(len(small) / len(size), 4)
        return self._sample(int(self._keys[size.argmin()])), (int(small[0]), int(small[-1]) + 1, share)

    def _stills(self, runs: Sequence[tuple[int, int]]) -> tuple[Still, ...]:
        """The longest of the runs in which a joint moves, as far as their pictures are seen to be one."""
        moved = sorted((run for run in map(self._still, runs) if run.moved >= _STILL_MOVED), key=_backwards)
        seen = [self._seen(run) for run in moved[:_CHECKED_STILLS]]
        return tuple(self._with_end(run) for run in seen if run.moved >= _STILL_MOVED)

    def _still(self, run: tuple[int, int]) -> Still:
        return Still(*run, round(travel(self._joints[slice(*run)]), 4))

    def _seen(self, run: Still) -> Still:
        """The longest part of the run whose first and last frame, and those between, are seen to be one."""
        keys = self._keys[(self._keys >= run.begin) & (self._keys < run.end)]
        frames = keys if len(keys) > 1 else np.array([run.begin, run.end - 1])
        few = np.unique(frames[np.linspace(0, len(frames) - 1, _LOOKS).astype(int)])
        pictures = [self._look_at(int(number)) for number in few]
        best = begin = 0, 0
        for number in range(1, len(few)):
            same = is_same(pictures[number - 1], pictures[number], self._video.codec)
            begin = (begin[0], number) if same else (number, number)
            best = max(best, begin, key=lambda each: each[1] - each[0])
        if best == (0, len(few) - 1):
            return run
        return self._still((int(few[best[0]]), int(few[best[1]]) + 1))

    def _with_end(self, run: Still) -> Still:
        """The run up to where the picture is seen to change, with how much it does."""
        first = self._look_at(run.begin)
        # An encoder may tell the first frames several times, each time better.
        if is_same(first, self._look_at(0), self._video.codec):
            run = self._still((0, run.end))
        after = self._keys[self._keys >= run.end].tolist()

        def goes_on(place: int) -> bool:
            return not is_same(first, self._look_at(after[place]), self._video.codec)

        # In steps that double up to a changed picture, then back by halves.
        high = next((place for place in _DOUBLING if place < len(after) and goes_on(place)), len(after))
        place = bisect_left(range(high), True, lo=high // 2, key=goes_on)
        if place + 1 >= len(after):
            return run
        picture, following = self._look_at(after[place]), self._look_at(after[place + 1])
        longer = self._still((run.begin, after[place]))
        return dataclasses.replace(longer, jump=changed(first, picture), step=changed(picture, following))


def _backwards(run: Still) -> int:
    return run.begin - run.end
