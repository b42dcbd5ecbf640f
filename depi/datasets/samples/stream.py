"""The endless stream of training samples: each a pure function of (seed, position)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data

from depi.datasets.recording.cameras import camera_order, view_in_name
from depi.datasets.recording.tables import ACTION, STATE
from depi.datasets.samples.annotations import MAX_TEXT, AnnotatedEpisodes
from depi.datasets.samples.augment import Augmentation, augment
from depi.datasets.samples.mixture import Mixture
from depi.datasets.samples.order import position_generator
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.datasets.union.statistics import compute_stats
from depi.errors import UserError

# What random numbers are for; 0 is left to the user of the stream.
_SHUFFLE, _AUGMENT, _TASK = 1, 2, 3
_NO_AUGMENTATION = Augmentation()
_ATTEMPTS = 16
# A report names so many task texts; thousands of datasets have thousands.
REPORTED_INSTRUCTIONS = 20


class TrainingStream(torch.utils.data.Dataset):
    """Training samples by position 0, 1, 2, ... in the stream.

    The mixture gives the frame, the dataset its sample. What is random about a sample (the slots of its
    cameras, changes of its images, which task text) is drawn by a generator of its own, keyed by seed and
    position. So neither the number of processes and workers nor where a run was resumed changes any sample.

    Args:
        dataset: clean samples by frame index.
        mixture: frame indices by position.
        seed: any integer.
        cameras: which camera goes to which slot: `name`, the dataset's order (wrist, front, top, side, then
            by name, without gaps); `view`, slot i holds the view VIEWS[i], annotated or by name, see
            `slots_by_view`; `shuffle`, another random order for every sample; or a list, with which the
            dataset was opened too. See `camera_order`.
        augmentation: how strongly images are changed.
        annotations: of the dataset's episodes.
        task_mix: share of the samples with annotated text, where there is one; needs annotations.
    """

    def __init__(
        self,
        dataset: MultiLeRobotDataset,
        mixture: Mixture,
        *,
        seed: int,
        cameras: str = "name",
        augmentation: Augmentation = _NO_AUGMENTATION,
        annotations: AnnotatedEpisodes | None = None,
        task_mix: float = 0.0,
    ) -> None:
        if not 0 <= task_mix <= 1 or (task_mix and annotations is None):
            raise ValueError(f"task_mix {task_mix} must be 0 to 1, and needs annotations")
        self.dataset, self.mixture, self.seed = dataset, mixture, seed
        self.cameras, self.order, self.augmentation = cameras, camera_order(cameras), augmentation
        self.annotations, self.task_mix = annotations, task_mix
        self.slots = dataset.camera_slots
        self.episode_start = np.asarray(dataset.episode_start)
        self.camera_keys = [tuple(entry["cameras"]) for entry in dataset.entries]
        self.images = [min(len(keys), len(self.slots)) for keys in self.camera_keys]

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The sample at a position; see the class and `MultiLeRobotDataset`."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The samples at many positions, each as by itself; a DataLoader reads its batches so."""
        samples = self._drawn([self.mixture[position] for position in positions])
        return [self._changed(position, sample) for position, sample in zip(positions, samples, strict=True)]

    def sample(self, position: int, frame: int) -> dict[str, Any]:
        """The sample of a frame, with what is random about the sample at a position."""
        return self._changed(position, self._drawn([frame])[0])

    def _changed(self, position: int, sample: dict[str, Any]) -> dict[str, Any]:
        episode = self._episode(int(sample["index"]))
        keys = self.camera_keys[int(sample["dataset_index"])]
        views = self.annotations.views(episode) if self.annotations else {}
        if self.augmentation:
            self._augment(sample, position, keys, views)
        self._arrange(sample, self.arrangement(position, int(sample["index"])))
        if self.annotations and self.task_mix:
            share = position_generator(self.seed, position, _TASK).random()
            annotated = self.annotations.task(episode)
            if annotated is not None and share < self.task_mix:
                sample["task"] = annotated
        return sample

    def arrangement(self, position: int, frame: int) -> tuple[int | None, ...]:
        """For each slot of the sample of a frame at a position, which of its dataset's cameras is in it.

        None where there is none.
        """
        episode = self._episode(frame)
        keys = self.camera_keys[int(self.dataset.episode_dataset[episode])]
        views = self.annotations.views(episode) if self.annotations else {}
        places = self.order.place(keys, views, len(self.slots))
        if self.order.shuffled:
            shuffle = position_generator(self.seed, position, _SHUFFLE).permutation(len(self.slots))
            places = tuple(places[slot] for slot in shuffle.tolist())
        return places

    def images_at(self, position: int) -> int:
        """How many cameras the sample at a position has, without reading it."""
        number = int(self.dataset.episode_dataset[self._episode(self.mixture[position])])
        return self.images[number]

    @property
    def ragged(self) -> bool:
        """Whether samples differ in their number of cameras."""
        return len(set(self.images)) > 1

    def _episode(self, frame: int) -> int:
        return int(np.searchsorted(self.episode_start, frame, side="right")) - 1

    def _drawn(self, frames: Sequence[int]) -> list[dict[str, Any]]:
        """The dataset's samples of frames, or of others that the mixture draws too.

        In place of a frame that cannot be decoded the dataset gives one of the next episodes, be it held out
        or excluded. Then the next ranges of frames to be drawn are tried, of the same dataset.
        """
        return [
            sample if int(sample["index"]) in self.mixture else self._another(frame)
            for frame, sample in zip(frames, self.dataset.__getitems__(frames), strict=True)
        ]

    def _another(self, frame: int) -> dict[str, Any]:
        number = int(self.dataset.episode_dataset[self._episode(frame)])
        bounds = self.episode_start[self.dataset.dataset_start[number : number + 2]].tolist()
        for _ in range(_ATTEMPTS):
            frame = self.mixture.range_after(frame, *bounds)
            sample = self.dataset[frame]
            if int(sample["index"]) in self.mixture:
                return sample
        raise UserError(
            f"hardly a frame of {self.dataset.repo_ids[number]} can be decoded, leave this dataset out"
        )

    def _augment(
        self, sample: dict[str, Any], position: int, keys: tuple[str, ...], views: Mapping[str, str]
    ) -> None:
        """Change the images in place, each camera by draws of its own, before they move to other slots."""
        draws = position_generator(self.seed, position, _AUGMENT).uniform(-1, 1, (len(self.slots), 8))
        for slot, key, draw in zip(self.slots, keys, draws, strict=False):
            if not sample[f"{slot}_is_pad"]:
                wrist = (views.get(key) or view_in_name(key)) == "wrist"
                sample[slot] = augment(sample[slot], self.augmentation, draw, wrist=wrist)

    def _arrange(self, sample: dict[str, Any], order: tuple[int | None, ...]) -> None:
        """Give every slot the image and mask of another; None makes it absent."""
        before = {key: sample[key] for slot in self.slots for key in (slot, f"{slot}_is_pad")}
        for slot, source in zip(self.slots, order, strict=True):
            if source is None:
                sample[slot] = torch.zeros_like(before[slot])
                sample[f"{slot}_is_pad"] = torch.tensor(True)
            else:
                sample[slot] = before[self.slots[source]]
                sample[f"{slot}_is_pad"] = before[f"{self.slots[source]}_is_pad"]

    def stats(self, relative: Sequence[bool] | None = None) -> dict[str, dict[str, np.ndarray]]:
        """Statistics of the episodes that are drawn from, as `MultiLeRobotDataset.stats` has them of all.

        Args:
            relative: for each number of an action whether it is relative to the state at its chunk's first
                frame; None where actions are absolute.
        """
        dataset, drawn = self.dataset, self.mixture.draws_from(self.episode_start)
        stats = dict(dataset.stats)
        if not drawn.all():
            rows = np.repeat(drawn, np.diff(self.episode_start))
            columns = ((STATE, dataset.state), (ACTION, dataset.action))
            stats = {key: compute_stats(values, rows) for key, values in columns}
        if relative is not None:
            stats[ACTION] = dataset.relative_stats(relative, drawn)
        return stats

    def _instructions(self) -> dict[str, Any]:
        """How many texts samples may have; and those of the most frames, to the character if not too long."""
        drawn, frames = self.mixture.draws_from(self.episode_start), np.diff(self.episode_start)
        annotated: list[str | None] = [None] * len(frames)
        if self.annotations and self.task_mix:
            annotated = [self.annotations.task(episode) for episode in range(len(frames))]
        recorded = drawn & np.array([text is None or self.task_mix < 1 for text in annotated], bool)
        tasks = np.bincount(self.dataset.task[np.repeat(recorded, frames)], minlength=len(self.dataset.tasks))
        counts: Counter[str] = Counter()
        for number in np.flatnonzero(tasks).tolist():
            counts[self.dataset.tasks[number]] += int(tasks[number])
        for episode in np.flatnonzero(drawn).tolist():
            if (text := annotated[episode]) is not None:
                counts[text] += int(frames[episode])
        most = [text for text, _ in counts.most_common(REPORTED_INSTRUCTIONS) if len(text) <= MAX_TEXT]
        return {"count": len(counts), "of_most_frames": most}

    def report(self) -> dict[str, Any]:
        """What the stream is drawn from, for `data_report.json`."""
        return {
            "frames_drawn_from": self.mixture.num_frames,
            "shares": self.mixture.shares(),
            "cameras": self.cameras,
            "task_mix": self.task_mix,
            "instructions": self._instructions(),
            "annotations": self.annotations.report() if self.annotations else None,
        }
