"""Many LeRobot datasets as one training set, read in place."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from depi.datasets.recording.border import reading
from depi.datasets.recording.cameras import check_slots, letterbox
from depi.datasets.recording.joints import JOINTS, SPACES
from depi.datasets.recording.place_reader import PlacedImage, PlaceReader
from depi.datasets.recording.places import ImagePlace, file_per_episode
from depi.datasets.recording.sources import DatasetSource
from depi.datasets.recording.tables import ACTION, STATE
from depi.datasets.union.chunks import ChunkData, relative_stats
from depi.datasets.union.collection import open_collection
from depi.datasets.union.dataset_index import BadEpisodes, Options
from depi.datasets.union.index import IMAGE, NO_CAMERA, map_index
from depi.datasets.union.quarantine import Quarantine
from depi.datasets.union.rows import FramePlaces, action_chunks, past_rows
from depi.datasets.union.shards import PreparedImages, Wanted
from depi.datasets.union.statistics import stats_from_json, stats_to_json
from depi.errors import DatasetError, UserError
from depi.files import read_json, write_json
from depi.fingerprint import code, fingerprint

__all__ = ["DatasetSource", "MultiLeRobotDataset"]

_SUBSTITUTES = 16


class ImageOf(NamedTuple):
    """One image of a training set: a frame of an episode, counted from its first, in a camera slot."""

    episode: int
    frame: int
    slot: int


class MultiLeRobotDataset(torch.utils.data.Dataset):
    """All frames of many datasets, one sample per frame.

    The numbers of all datasets lie in flat columns that are mapped into memory from a cache, so that all
    workers and processes of a machine share them. A sample holds:

    - `observation.images.{i}` uint8 [3, S, S] and `observation.images.{i}_is_pad` bool [], for every i below
      max_cameras: the camera of slot i letterboxed, or zeros and True where the dataset has none
    - with `history` N, these images are [N, 3, S, S] and the state [N, state_dim]: N observations, the last
      of them that of the sample's frame; before the episode's start its first one repeats. With N = 1 images
      have no such dimension, as LeRobot's dataset gives them
    - `observation.state` float32 [state_dim], `action` float32 [chunk_size, action_dim]: canonical joints
      (see `depi.datasets.recording.joints`), or the recorded numbers of a robot that is no SO-100
    - `action_is_pad` bool [chunk_size]: True outside the episode, where its first or last action repeats
    - `task` str
    - `dataset_index` (among the datasets in use), `episode_index` (as recorded), `frame_index` (in its
      episode), `index` (in this training set) int64 [], `timestamp` float32 [] in seconds

    Quarantine: a dataset that cannot be used is left out, so is an episode that holds what no robot recorded
    (numbers that are not finite or beyond all bounds, timestamps that go back or jump), and one that the
    rules of `depi.datasets.judging` find bad. A frame whose image
    cannot be decoded is replaced by one of the next episodes, of the same dataset where that is possible. The
    choice depends on the frame alone, so it is the same in every run; the first one in an episode is logged,
    all are counted in `decode_failures`.

    Columns, for N datasets, E episodes and F frames, not to be written: `state` [F, Ds], `action` [F, Da],
    `timestamp` [F], `task` [F] (positions in `tasks`), `episode_start` [E + 1] (frames), `episode_dataset`
    [E], `episode_recorded` [E], `dataset_start` [N + 1] (episodes), `fps` [N]; `repo_ids` and `entries` [N].
    `stats` are over all frames: observation.state and action -> `compute_stats`.

    Args:
        sources: the datasets.
        chunk_size: actions per sample.
        chunk_start: the step of the first of them, counted from the sample's frame: 0, or below.
        history: N, observations per sample; None for one, whose tensors have no dimension N.
        image_size: S; None for images as recorded, with `recorded_keys` only.
        antialias: scale images down with antialiasing; see `letterbox`.
        recorded_keys: of a single dataset with `cameras="name"`: images keep the keys of their cameras, and
            there is no slot without a camera.
        max_cameras: camera slots; a dataset's further cameras are not read. None, with `recorded_keys` only:
            all cameras of the dataset.
        cameras: which cameras are read, and which first; see `camera_order`. A dataset fills slots without
            gaps; `TrainingStream` puts each image where the order wants it.
        action_freq: actions per second in a chunk, interpolated linearly; None for the frames as recorded.
            Where timestamps contradict the declared rate, theirs is taken. Observations of the past lie as
            far apart as actions, each at the frame that is nearest.
        joint_convention: the units of SO-100 joints, `degrees`, `normalized` or as recorded (`native`).
        max_bad_fraction: more than this share of bad episodes is an error, when opening or whenever a further
            one turns out to be bad. Bad are the episodes left out, and those with a frame that was replaced.
        max_bad_datasets: more than this share of unusable sources is an error. A single source must be good.
        episodes: recorded episode indices, for a single source only.
        offline: ask no Hub; everything must be in the cache.
        prepared: a folder that `depi prepare` wrote, read instead of the videos.
        conventions: repo id -> joint convention of the recording, one of `joints.GIVEN`, for datasets that
            do not show it.
        use_bad_episodes: use also the episodes that the rules of `depi.datasets.judging` find bad. Left out,
            they do not count as bad for `max_bad_fraction`.
        bad_episodes: (repo id, revision) -> recorded index -> reason: the bad episodes of a dataset, where
            they are known already, as from `depi.datasets.union.lists.read_bad_episodes`.
        correct_offsets: take the constant offsets out of the commands that `depi.datasets.judging.offsets`
            finds; entries name them.
        video_backend: `torchcodec` or `pyav`; by default the faster one for each video.

    Raises:
        UserError: no source is usable, or too much is bad; names each with the reason. Or `prepared` lacks
            something.
    """

    def __init__(
        self,
        sources: Sequence[DatasetSource],
        *,
        chunk_size: int = 50,
        chunk_start: int = 0,
        history: int | None = None,
        image_size: int | None = 224,
        antialias: bool = False,
        recorded_keys: bool = False,
        max_cameras: int | None = 3,
        cameras: str = "name",
        action_freq: float | None = None,
        joint_convention: str = "degrees",
        max_bad_fraction: float = 0.02,
        max_bad_datasets: float = 0.25,
        episodes: Sequence[int] | None = None,
        offline: bool = False,
        prepared: Path | None = None,
        conventions: Mapping[str, str] | None = None,
        use_bad_episodes: bool = False,
        bad_episodes: BadEpisodes | None = None,
        correct_offsets: bool = False,
        video_backend: str | None = None,
    ) -> None:
        _check(sources, max_cameras, cameras, joint_convention, episodes)
        if (recorded_keys and (len(sources) > 1 or cameras != "name")) or (
            None in (image_size, max_cameras) and not recorded_keys
        ):
            raise ValueError("images keep their keys and sizes in a single dataset only, in its own order")
        self.chunk_size, self.image_size = chunk_size, image_size
        self.chunk_start, self.history, self.recorded_keys = chunk_start, history, recorded_keys
        self.action_freq, self.antialias = action_freq, antialias
        chosen = None if episodes is None else tuple(sorted(set(episodes)))
        options = Options(
            max_cameras,
            chosen,
            joint_convention,
            offline,
            cameras,
            conventions or {},
            use_bad_episodes,
            bad_episodes or {},
            correct_offsets,
        )
        collection = open_collection(sources, options, max_bad_datasets=max_bad_datasets)
        self.quarantined = collection.quarantined
        self.roots = collection.roots
        self.reader = PlaceReader(backend=video_backend)
        self._index_folder = collection.index.folder
        self._map()
        if prepared is not None and image_size is None:
            raise UserError("prepared images have one size: name it with --dataset.image_size")
        self.prepared = None if prepared is None else PreparedImages(prepared, image_size or 0, antialias)
        self._locate_prepared()
        left_out = [
            f"episode {episode} of {entry['repo_id']}: {reason}"
            for entry in self.entries
            for episode, reason in entry["episodes_left_out"].items()
        ]
        self._quarantine = Quarantine(self.num_episodes, left_out, max_bad_fraction)

    def _map(self) -> None:
        """Map the columns into memory, and take what is small out of the manifest."""
        index = map_index(self._index_folder)
        self.state, self.action = index.state, index.action
        self.timestamp, self.task = index.timestamp, index.task
        self.tasks: tuple[str, ...] = tuple(index.tasks.to_pylist())
        self.camera_kind, self.camera_file = index.camera_kind, index.camera_file
        self.camera_begin, self.camera_end = index.camera_begin, index.camera_end
        self.max_cameras = self.camera_kind.shape[1]
        self.files, self.file_dataset = index.files, index.file_dataset
        self.episode_recorded = index.recorded
        self.entries: list[dict[str, Any]] = index.manifest["datasets"]
        self.repo_ids = tuple(entry["repo_id"] for entry in self.entries)
        self.fps = np.array([entry["fps"] for entry in self.entries])
        self._recorded_fps = np.array([entry["recorded_fps"] for entry in self.entries])
        counts = [entry["episodes"] for entry in self.entries]
        self.episode_start = np.concatenate([[0], np.cumsum(index.length)])
        self.episode_dataset = np.repeat(np.arange(len(counts)), counts)
        self.dataset_start = np.concatenate([[0], np.cumsum(counts)])
        self.file_per_episode = [file_per_episode(entry["version"]) for entry in self.entries]
        self.stats = stats_from_json(index.manifest["stats"])
        first = self.entries[0]
        self.state_dim, self.action_dim = first["state_dim"], first["action_dim"]
        self.state_names, self.action_names = (_joint_names(first, name) for name in ("state", "action"))
        self.camera_slots = (
            tuple(first["cameras"])
            if self.recorded_keys
            else tuple(f"observation.images.{slot}" for slot in range(self.max_cameras))
        )

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the images of each slot."""
        if self.image_size is not None:
            return ((self.image_size, self.image_size),) * len(self.camera_slots)
        recorded = self.entries[0]["camera_sizes"]
        return tuple(tuple(recorded[camera]) for camera in self.entries[0]["cameras"])

    def _locate_prepared(self) -> None:
        """Per episode the row of its first prepared image; per dataset the rows of a frame."""
        self._prepared_row = np.zeros(self.num_episodes, np.int64)
        self._prepared_step = np.zeros(self.num_datasets, np.int64)
        for number in range(self.num_datasets if self.prepared is not None else 0):
            episodes = slice(*self.dataset_start[number : number + 2].tolist())
            assert self.prepared is not None
            rows, step = self.prepared.locate(self.wanted_images(number))
            self._prepared_row[episodes], self._prepared_step[number] = rows, step

    def wanted_images(self, number: int) -> Wanted:
        """What names the prepared images of one dataset."""
        entry = self.entries[number]
        first, last = self.dataset_start[number : number + 2].tolist()
        files = np.flatnonzero(self.file_dataset == number).tolist() if entry["local"] else []
        names = [self.files[file].as_py() for file in files]
        return Wanted(
            repo_id=entry["repo_id"],
            revision=entry["revision"],
            cameras=tuple(entry["cameras"]),
            episodes=self.episode_recorded[first:last],
            lengths=np.diff(self.episode_start[first : last + 1]),
            files={name: (self.roots[number] / name).stat().st_size for name in names},
        )

    def __getstate__(self) -> dict[str, Any]:
        """What a spawned worker needs: it maps the columns itself."""
        sample = ("chunk_size", "chunk_start", "history", "image_size", "antialias", "recorded_keys")
        places = ("quarantined", "roots", "reader", "_index_folder", "_quarantine")
        prepared = ("prepared", "_prepared_row", "_prepared_step")
        rest = ("action_freq", *places, *prepared)
        return {name: vars(self)[name] for name in (*sample, *rest)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    @property
    def num_frames(self) -> int:
        """Frames over all datasets."""
        return int(self.episode_start[-1])

    @property
    def num_episodes(self) -> int:
        """Episodes over all datasets."""
        return len(self.episode_dataset)

    @property
    def num_datasets(self) -> int:
        """Datasets in use."""
        return len(self.repo_ids)

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of one frame; see the class."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The samples of many frames, each as by itself; a DataLoader reads its batches so.

        Each file is opened once and read from front to back, each column is read once.
        """
        rows = [self._row(int(index)) for index in indices]
        return [
            self._replacement(row, sample) if isinstance(sample, DatasetError) else sample
            for row, sample in zip(rows, self._samples(rows), strict=True)
        ]

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        return index % len(self)

    def _replacement(self, index: int, error: DatasetError) -> dict[str, Any]:
        """The sample to take in place of one whose images cannot be had."""
        self._count_failure(index, error)
        for substitute in self._substitutes(index):
            (sample,) = self._samples([substitute])
            if not isinstance(sample, DatasetError):
                return sample
            self._count_failure(substitute, sample)
        dataset = self.repo_ids[self.episode_dataset[self._episode(index)]]
        raise UserError(f"no images of dataset {dataset} can be decoded, leave this dataset out")

    def origin(self, index: int) -> dict[str, Any]:
        """Where a frame of this training set was recorded: dataset, revision, episode, and frame in it."""
        episode = self._episode(index)
        entry = self.entries[self.episode_dataset[episode]]
        return {
            "dataset": entry["repo_id"],
            "revision": entry["revision"],
            "episode": int(self.episode_recorded[episode]),
            "frame": index - int(self.episode_start[episode]),
        }

    def _episode(self, index: int) -> int:
        return int(np.searchsorted(self.episode_start, index, side="right")) - 1

    def _samples(self, indices: Sequence[int]) -> list[dict[str, Any] | DatasetError]:
        """The samples of frames, or why they cannot be had."""
        rows = np.array(indices, np.int64)
        episodes = np.searchsorted(self.episode_start, rows, side="right") - 1
        fps = self._recorded_fps[self.episode_dataset[episodes]]
        places = FramePlaces(rows, self.episode_start[episodes], self.episode_start[episodes + 1], fps)
        seen = rows[:, None] if self.history is None else past_rows(places, self.history, self.action_freq)
        images = self._images(episodes, seen - places.start[:, None])
        action, outside = action_chunks(
            self.action, places, self.chunk_size, self.action_freq, self.chunk_start
        )
        columns = {
            STATE: torch.from_numpy(self.state[rows if self.history is None else seen]),
            ACTION: action,
            "action_is_pad": outside,
            "timestamp": torch.from_numpy(self.timestamp[rows]),
            "dataset_index": torch.from_numpy(self.episode_dataset[episodes]),
            "episode_index": torch.from_numpy(self.episode_recorded[episodes]),
            "frame_index": torch.from_numpy(rows - places.start),
            "index": torch.from_numpy(rows),
        }
        numbers = zip(*(column.unbind() for column in columns.values()), strict=True)
        tasks = [self.tasks[task] for task in self.task[rows].tolist()]
        return [
            shown
            if isinstance(shown, DatasetError)
            else {**shown, **dict(zip(columns, of_sample, strict=True)), "task": task}
            for shown, of_sample, task in zip(images, numbers, tasks, strict=True)
        ]

    def _images(self, episodes: np.ndarray, frames: np.ndarray) -> list[dict[str, Tensor] | DatasetError]:
        """The images of B samples, or why one has none: of episodes [B] at frames [B, N] of these."""
        wanted = [
            [ImageOf(episode, frame, slot) for frame in dict.fromkeys(of_sample) for slot in slots]
            for episode, of_sample, slots in zip(
                episodes.tolist(), frames.tolist(), map(self._slots, episodes.tolist()), strict=True
            )
        ]
        distinct = list(dict.fromkeys(itertools.chain.from_iterable(wanted)))
        found = dict(zip(distinct, self.read_images(distinct, self.image_size), strict=True))
        return [
            self._shown(episode, of_sample, found)
            for episode, of_sample in zip(episodes.tolist(), frames.tolist(), strict=True)
        ]

    def _slots(self, episode: int) -> list[int]:
        """The slots for which the dataset of an episode has a camera."""
        return np.flatnonzero(self.camera_kind[episode] != NO_CAMERA).tolist()

    def _shown(
        self, episode: int, frames: Sequence[int], found: Mapping[ImageOf, Tensor | DatasetError]
    ) -> dict[str, Tensor] | DatasetError:
        """What a sample shows, a single frame without a dimension for it; or the error of an image."""
        images: dict[str, Tensor] = {}
        slots = self._slots(episode)
        try:
            for slot, (key, size) in enumerate(zip(self.camera_slots, self.image_sizes, strict=True)):
                shown = [_image(found[ImageOf(episode, frame, slot)]) for frame in frames if slot in slots]
                shown = shown or [torch.zeros((3, *size), dtype=torch.uint8)] * len(frames)
                images[f"{key}_is_pad"] = torch.tensor(slot not in slots)
                with reading():  # the images of an episode may differ in size
                    images[key] = shown[0] if len(frames) == 1 else torch.stack(shown)
        except DatasetError as error:
            return error
        return images

    def camera_images(self, episode: int, frame: int, size: int | None = None) -> list[Tensor | None]:
        """The images of all slots at one frame of an episode; None where the dataset has no such camera.

        Returns:
            uint8 [3, size, size], letterboxed, or [3, H, W] as recorded where `size` is None.

        Raises:
            DatasetError: one cannot be decoded.
        """
        images: list[Tensor | None] = [None] * self.max_cameras
        slots = self._slots(episode)
        found = self.read_images([ImageOf(episode, frame, slot) for slot in slots], size)
        for slot, image in zip(slots, found, strict=True):
            images[slot] = _image(image)
        return images

    def read_images(self, wanted: Sequence[ImageOf], size: int | None) -> list[Tensor | DatasetError]:
        """Images as `camera_images` gives them, or why there is none; files are read from front to back."""
        if self.prepared is not None and size == self.image_size:
            return self.prepared.frames([self._row_of_image(one) for one in wanted])
        placed = [
            PlacedImage(
                *self.place(episode, slot),
                frame,
                float(self.timestamp[self.episode_start[episode] + frame]),
            )
            for episode, frame, slot in wanted
        ]
        images: dict[int, Tensor | DatasetError] = {}
        for number, image in self.reader.images(placed):
            if size is None or isinstance(image, DatasetError):
                images[number] = image
            else:
                images[number] = letterbox(image, size, self.antialias)
        return [images[number] for number in range(len(wanted))]

    def _row_of_image(self, one: ImageOf) -> int:
        step = self._prepared_step[self.episode_dataset[one.episode]]
        return int(self._prepared_row[one.episode] + one.frame * step) + one.slot

    def camera_run(self, episode: int, slot: int, frames: range) -> Iterator[Tensor]:
        """The recorded images of one camera at frames in a row, as `camera_images` gives them, at less cost.

        Raises:
            DatasetError: one cannot be decoded, or the dataset has no such camera; when its turn comes.
        """
        if self.camera_kind[episode, slot] == NO_CAMERA:
            raise DatasetError(f"there is no camera in slot {slot}")
        path, place = self.place(episode, slot)
        start = int(self.episode_start[episode])
        yield from self.reader.run(
            path, place, frames, self.timestamp[start + frames.start : start + frames.stop].tolist()
        )

    def place(self, episode: int, slot: int) -> tuple[Path, ImagePlace]:
        """The file of an episode's images in one slot, which has a camera, and where they lie in it."""
        dataset, file = int(self.episode_dataset[episode]), int(self.camera_file[episode, slot])
        start, end = self.episode_start[episode : episode + 2].tolist()
        entry = self.entries[dataset]
        camera = entry["cameras"][slot]
        place = ImagePlace(
            file=self.files[file].as_py(),
            camera=camera,
            in_table=bool(self.camera_kind[episode, slot] == IMAGE),
            begin=float(self.camera_begin[episode, slot]),
            end=float(self.camera_end[episode, slot]),
            own_file=self.file_per_episode[dataset],
            fps=float(self.fps[dataset]),
            length=end - start,
            size=tuple(entry["camera_sizes"][camera]),
        )
        return self.roots[dataset] / place.file, place

    def _count_failure(self, index: int, error: DatasetError) -> None:
        episode = self._episode(index)
        frame = index - int(self.episode_start[episode])
        self._quarantine.add(episode, frame, error, self._episode_name)

    def _episode_name(self, episode: int) -> str:
        return f"episode {self.episode_recorded[episode]} of {self.repo_ids[self.episode_dataset[episode]]}"

    def _substitutes(self, index: int) -> list[int]:
        """Frames to try instead, the same in every run: of the next episodes, then of the next datasets."""
        episode = self._episode(index)
        dataset = int(self.episode_dataset[episode])
        first, last = self.dataset_start[dataset : dataset + 2].tolist()
        others = [first + (episode - first + step) % (last - first) for step in range(1, last - first)]
        ahead = [(dataset + step) % self.num_datasets for step in range(1, self.num_datasets)]
        episodes = others[:_SUBSTITUTES] + [int(self.dataset_start[other]) for other in ahead[:_SUBSTITUTES]]
        offset = index - int(self.episode_start[episode])
        bounds = [self.episode_start[other : other + 2].tolist() for other in episodes]
        return [start + offset % (end - start) for start, end in bounds]

    def relative_stats(
        self, relative: Sequence[bool], drawn: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Statistics of action chunks relative to the state at their first frame; computed once, then cached.

        Args:
            relative: for each number of an action whether the state is subtracted.
            drawn: bool [E], the episodes that count; None for all.

        Returns:
            As `depi.datasets.union.chunks.relative_stats`.

        Raises:
            UserError: state and action are not of the same joints.
        """
        if self.state_dim != self.action_dim or self.state_names != self.action_names:
            raise UserError(
                f"actions cannot be relative to the state: a state has {self.state_dim} numbers "
                f"({self.state_names}), an action {self.action_dim} ({self.action_names})"
            )
        drawn = np.ones(self.num_episodes, bool) if drawn is None else drawn
        how = (tuple(map(bool, relative)), self.chunk_size, self.action_freq)
        key = fingerprint(code("depi.datasets.union.chunks"), *how, np.packbits(drawn).tobytes())
        stored = self._index_folder / f"relative-{key}.json"
        if stored.is_file():
            return stats_from_json({ACTION: read_json(stored)})[ACTION]
        fps = self._recorded_fps[self.episode_dataset]
        data = ChunkData(self.state, self.action, self.episode_start, fps, drawn)
        stats = relative_stats(data, *how)
        with contextlib.suppress(OSError):  # a cache that may only be read
            write_json(stored, stats_to_json({ACTION: stats})[ACTION])
        return stats

    def decode_failures(self) -> dict[str, dict[int, int]]:
        """Per dataset and recorded episode, how many samples were replaced since opening, all workers."""
        counts: dict[str, dict[int, int]] = {}
        for episode, count in self._quarantine.failures().items():
            repo_id = self.repo_ids[self.episode_dataset[episode]]
            counts.setdefault(repo_id, {})[int(self.episode_recorded[episode])] = count
        return counts

    def report(self) -> dict[str, Any]:
        """What this training set is made of, for `data_report.json`."""
        failures = {
            repo_id: {str(episode): count for episode, count in episodes.items()}
            for repo_id, episodes in self.decode_failures().items()
        }
        return {
            "num_datasets": self.num_datasets,
            "num_episodes": self.num_episodes,
            "num_frames": self.num_frames,
            "num_episodes_left_out": len(self._quarantine.left_out),
            "num_bad_episodes": sum(len(entry["bad_episodes"]) for entry in self.entries),
            "datasets": self.entries,
            "quarantined": self.quarantined,
            "decode_failures": failures,
        }


def _image(found: Tensor | DatasetError) -> Tensor:
    if isinstance(found, DatasetError):
        raise found
    return found


def _check(
    sources: Sequence[DatasetSource],
    max_cameras: int | None,
    cameras: str,
    joint_convention: str,
    episodes: Sequence[int] | None,
) -> None:
    if not sources:
        raise UserError("no dataset is named, name at least one")
    if max_cameras is not None and max_cameras < 1:
        raise UserError(f"max_cameras is {max_cameras}, it must be at least 1")
    try:
        check_slots(cameras, max_cameras or 1)
    except ValueError as error:
        raise UserError(str(error)) from None
    if joint_convention not in SPACES:
        raise UserError(f"joint_convention is {joint_convention!r}, expected one of {', '.join(SPACES)}")
    if episodes is not None and len(sources) > 1:
        raise UserError("episodes can be chosen of a single dataset only, name one dataset or no episodes")


def _joint_names(entry: dict[str, Any], feature: str) -> tuple[str, ...] | None:
    if entry["convention"] != "native":
        return tuple(f"{joint}.pos" for joint in JOINTS)
    names = entry[f"{feature}_names"]
    return None if names is None else tuple(names)
