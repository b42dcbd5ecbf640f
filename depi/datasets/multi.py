"""Many LeRobot datasets as one training set, read in place."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.utils.data
from torch import Tensor

from depi.datasets.cameras import letterbox
from depi.datasets.collection import keep_majority_kind, open_all, stop_if_too_bad
from depi.datasets.images import ImageReader
from depi.datasets.joints import JOINTS
from depi.datasets.opening import ACTION, STATE, DatasetSource, OpenDataset
from depi.datasets.stats import compute_stats
from depi.datasets.video import VideoReader
from depi.errors import DatasetError, UserError

__all__ = ["DatasetSource", "MultiLeRobotDataset"]

logger = logging.getLogger(__name__)

_SUBSTITUTES = 16
_NO_CAMERA, _VIDEO, _IMAGE = 0, 1, 2


class MultiLeRobotDataset(torch.utils.data.Dataset):
    """All frames of many datasets, one sample per frame.

    The numbers of all datasets lie in flat tensors, which worker processes share, forked or spawned.
    A sample holds:

    - `observation.images.{i}` uint8 [3, S, S] and `observation.images.{i}_is_pad` bool [], for every i below
      max_cameras: the camera of slot i letterboxed, or zeros and True where the dataset has none
    - `observation.state` float32 [state_dim], `action` float32 [chunk_size, action_dim]: canonical joints
      (see `depi.datasets.joints`), or the recorded numbers of a robot that is no SO-100
    - `action_is_pad` bool [chunk_size]: True past the episode's end, where the last action repeats
    - `task` str
    - `dataset_index` (among the datasets in use), `episode_index` (as recorded), `frame_index` (in its
      episode), `index` (in this training set) int64 [], `timestamp` float32 [] in seconds

    A frame whose image cannot be decoded is replaced by one of another episode, of the same dataset where
    that is possible. The choice depends on the frame alone; the first one in an episode is logged, all are
    counted in `decode_failures`.

    Args:
        sources: the datasets.
        chunk_size: actions per sample.
        image_size: S.
        max_cameras: camera slots; a dataset's further cameras are not read.
        action_freq: actions per second in a chunk, interpolated linearly; None for the dataset's own fps.
        max_bad_fraction: more than this share of unusable sources is an error. A single source must be good.
        episodes: recorded episode indices, for a single source only.
        video_backend: `torchcodec` or `pyav`; by default torchcodec where it loads.

    Raises:
        UserError: no source is usable, or too many are not; names each with the reason.
    """

    def __init__(
        self,
        sources: Sequence[DatasetSource],
        *,
        chunk_size: int = 50,
        image_size: int = 224,
        max_cameras: int = 3,
        action_freq: float | None = None,
        max_bad_fraction: float = 0.25,
        episodes: Sequence[int] | None = None,
        video_backend: str | None = None,
    ) -> None:
        if not sources:
            raise UserError("no dataset is named, name at least one")
        if episodes is not None and len(sources) > 1:
            raise UserError(
                "episodes can be chosen of a single dataset only, name one dataset or no episodes"
            )
        self.chunk_size, self.image_size, self.max_cameras = chunk_size, image_size, max_cameras
        self.action_freq = action_freq
        opened, self.quarantined = open_all(sources, max_cameras, episodes)
        opened = keep_majority_kind(opened, self.quarantined)
        stop_if_too_bad(len(sources), self.quarantined, max_bad_fraction)
        self.videos = VideoReader(backend=video_backend)
        self.images = ImageReader()
        self._describe(opened)
        self._fill_frames(opened)
        self._fill_episodes(opened)

    def _describe(self, opened: list[OpenDataset]) -> None:
        """The few facts per dataset; the OpenDataset objects themselves are let go."""
        first = opened[0]
        self.state_dim, self.action_dim, canonical = first.kind
        features = first.meta.info.features
        names = tuple(f"{joint}.pos" for joint in JOINTS)
        self.state_names = names if canonical else features[STATE].names
        self.action_names = names if canonical else features[ACTION].names
        self.camera_slots = tuple(f"observation.images.{slot}" for slot in range(self.max_cameras))
        self.repo_ids = tuple(dataset.meta.repo_id for dataset in opened)
        self._entries = [_entry(dataset) for dataset in opened]

    def _fill_frames(self, opened: list[OpenDataset]) -> None:
        """Flat columns over all frames: state, action, timestamp, task; and their statistics."""
        state = np.concatenate([dataset.state for dataset in opened])
        action = np.concatenate([dataset.action for dataset in opened])
        self.stats = {STATE: compute_stats(state), ACTION: compute_stats(action)}
        self.state, self.action = torch.from_numpy(state), torch.from_numpy(action)
        self.timestamp = torch.from_numpy(np.concatenate([dataset.timestamp for dataset in opened]))
        texts: dict[str, int] = {}
        columns = []
        for dataset in opened:
            number = np.array([texts.setdefault(text, len(texts)) for text in dataset.tasks], np.int32)
            columns.append(number[dataset.task])
        self.task = torch.from_numpy(np.concatenate(columns))
        self.tasks = tuple(texts)

    def _fill_episodes(self, opened: list[OpenDataset]) -> None:
        """Flat columns over all episodes: bounds, dataset, recorded index; per slot kind, file, start."""
        length = np.concatenate([dataset.meta.episodes.length for dataset in opened])
        self.episode_start = torch.from_numpy(np.concatenate([[0], np.cumsum(length)]))
        counts = [len(dataset.meta.episodes) for dataset in opened]
        self.episode_dataset = torch.from_numpy(np.repeat(np.arange(len(opened)), counts))
        self.dataset_start = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
        recorded = np.concatenate([dataset.meta.episodes.episode_index for dataset in opened])
        self.episode_recorded = torch.from_numpy(recorded)
        self.fps = torch.tensor([dataset.meta.info.fps for dataset in opened], dtype=torch.float64)
        # Written by all workers: a shared count per episode, for the report.
        self.failures = torch.zeros(len(length), dtype=torch.int64).share_memory_()
        files = _FileList()
        tables = [_camera_columns(dataset, self.max_cameras, files) for dataset in opened]
        self.camera_kind, self.camera_file, self.camera_begin = (
            torch.from_numpy(np.concatenate([table[part] for table in tables])) for part in range(3)
        )
        self.files = pa.array(files.paths, pa.large_string())
        # A file that holds one whole episode can be read by frame number where its rate is wrong.
        whole = [dataset.meta.info.version != "v3.0" for dataset in opened]
        self.file_per_episode = torch.tensor(whole)

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
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        index %= len(self)
        try:
            return self._sample(index)
        except DatasetError as error:
            self._count_failure(index, error)
        for substitute in self._substitutes(index):
            try:
                return self._sample(substitute)
            except DatasetError as error:
                self._count_failure(substitute, error)
        dataset = self.repo_ids[self.episode_dataset[self._episode(index)]]
        raise UserError(f"no images of dataset {dataset} can be decoded, leave this dataset out")

    def _episode(self, index: int) -> int:
        return int(torch.searchsorted(self.episode_start, index, right=True)) - 1

    def _sample(self, index: int) -> dict[str, Any]:
        episode = self._episode(index)
        dataset = int(self.episode_dataset[episode])
        start, end = self.episode_start[episode : episode + 2].tolist()
        action, action_is_pad = self._action_chunk(index, end, float(self.fps[dataset]))
        sample: dict[str, Any] = {
            **self._images(episode, index - start, end - start),
            STATE: self.state[index].clone(),
            ACTION: action,
            "action_is_pad": action_is_pad,
            "task": self.tasks[self.task[index]],
            "timestamp": self.timestamp[index].clone(),
        }
        numbers = {
            "dataset_index": dataset,
            "episode_index": int(self.episode_recorded[episode]),
            "frame_index": index - start,
            "index": index,
        }
        sample.update({key: torch.tensor(value) for key, value in numbers.items()})
        return sample

    def _action_chunk(self, index: int, end: int, fps: float) -> tuple[Tensor, Tensor]:
        """Actions float32 [chunk_size, D] from frame `index` on, and which of them lie past the episode."""
        steps = torch.arange(self.chunk_size)
        if self.action_freq is None or self.action_freq == fps:
            rows = index + steps
            return self.action[rows.clamp(max=end - 1)], rows >= end
        # In float64, and multiplied first: whole positions come out whole, and no rounding pattern arises.
        position = steps.double() * fps / self.action_freq
        lower = position.floor()
        weight = (position - lower).float()[:, None]
        rows = index + lower.long()
        here, after = self.action[rows.clamp(max=end - 1)], self.action[(rows + 1).clamp(max=end - 1)]
        return torch.lerp(here, after, weight), index + position > end - 1

    def _images(self, episode: int, frame: int, frames: int) -> dict[str, Tensor]:
        images: dict[str, Tensor] = {}
        for slot, key in enumerate(self.camera_slots):
            image = self.camera_image(episode, frame, frames, slot)
            images[f"{key}_is_pad"] = torch.tensor(image is None)
            if image is None:
                images[key] = torch.zeros((3, self.image_size, self.image_size), dtype=torch.uint8)
            else:
                images[key] = letterbox(image, self.image_size)
        return images

    def camera_image(self, episode: int, frame: int, frames: int, slot: int) -> Tensor | None:
        """The recorded image of one slot, uint8 [3, H, W]; None where the dataset has no such camera."""
        kind = int(self.camera_kind[episode, slot])
        if kind == _NO_CAMERA:
            return None
        path = Path(self.files[int(self.camera_file[episode, slot])].as_py())
        begin = float(self.camera_begin[episode, slot])
        dataset = int(self.episode_dataset[episode])
        if kind == _IMAGE:
            return self.images.image(path, self._entries[dataset]["cameras"][slot], int(begin) + frame)
        seconds = float(self.timestamp[int(self.episode_start[episode]) + frame])
        number_of = (frame, frames) if self.file_per_episode[dataset] else None
        return self.videos.frame(path, begin + seconds, float(self.fps[dataset]), number_of)

    def _count_failure(self, index: int, error: DatasetError) -> None:
        episode = self._episode(index)
        if not self.failures[episode]:
            logger.warning(
                "frame %d of episode %d of %s is replaced by another: %s",
                index - int(self.episode_start[episode]),
                int(self.episode_recorded[episode]),
                self.repo_ids[self.episode_dataset[episode]],
                error,
            )
        self.failures[episode] += 1

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

    def decode_failures(self) -> dict[str, dict[int, int]]:
        """Per dataset and recorded episode, how many samples were replaced since opening, all workers."""
        counts: dict[str, dict[int, int]] = {}
        for episode in self.failures.nonzero().flatten().tolist():
            repo_id = self.repo_ids[self.episode_dataset[episode]]
            counts.setdefault(repo_id, {})[int(self.episode_recorded[episode])] = int(self.failures[episode])
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
            "datasets": self._entries,
            "quarantined": self.quarantined,
            "decode_failures": failures,
        }


class _FileList:
    """Distinct absolute paths and their numbers."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def add(self, root: Path, names: Sequence[str]) -> int:
        """Append the files of one camera; returns the number of the first."""
        first = len(self.paths)
        self.paths += [str(root / name) for name in names]
        return first


def _camera_columns(
    dataset: OpenDataset, slots: int, files: _FileList
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per episode and slot [E, slots]: kind, number of the file, start (in seconds, or a row) as float64."""
    episodes = dataset.meta.episodes
    kind = np.full((len(episodes), slots), _NO_CAMERA)
    file, begin = np.zeros(kind.shape, np.int64), np.zeros(kind.shape)
    for slot, camera in enumerate(dataset.cameras):
        if camera in episodes.videos:
            table = episodes.videos[camera]
            kind[:, slot], begin[:, slot] = _VIDEO, table.start
            file[:, slot] = files.add(dataset.meta.root, table.paths) + table.file
        else:
            kind[:, slot], begin[:, slot] = _IMAGE, dataset.first_row
            file[:, slot] = files.add(dataset.meta.root, episodes.data_paths) + episodes.data_file
    return kind, file, begin


def _entry(dataset: OpenDataset) -> dict[str, Any]:
    info = dataset.meta.info
    return {
        "repo_id": dataset.meta.repo_id,
        "revision": dataset.meta.revision,
        "version": info.version,
        "robot_type": info.robot_type,
        "convention": dataset.detection.convention,
        "evidence": dataset.detection.evidence,
        "fps": info.fps,
        "episodes": len(dataset.meta.episodes),
        "frames": dataset.meta.num_frames,
        "cameras": list(dataset.cameras),
        "cameras_not_used": [key for key in info.camera_keys if key not in dataset.cameras],
        "depth_cameras_not_read": list(info.depth_keys),
        "episodes_left_out": {str(index): reason for index, reason in dataset.left_out.items()},
        "licence": dataset.licence,
    }
