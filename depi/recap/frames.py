"""The frames of a training set in order, as samples of a value network: each decoded once, none replaced."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depi.datasets.recording.cameras import camera_order, letterbox
from depi.datasets.recording.tables import STATE
from depi.datasets.samples.annotations import AnnotatedEpisodes
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.datasets.union.prepare import decode_frames
from depi.errors import DatasetError


@dataclass(frozen=True)
class LeftOut:
    """A frame that cannot be read: recorded episode, frame in it, camera key if known, and why."""

    episode: int
    frame: int
    camera: str | None
    reason: str


@dataclass(frozen=True)
class FrameReader:
    """Samples of a dataset's frames as a value network was trained on them, without what is random.

    cameras: which camera goes to which slot, in an order that is not shuffled; see `camera_order`.
    annotations: of the dataset's episodes: views of cameras, and with `annotated_tasks` task texts.
    """

    dataset: MultiLeRobotDataset
    cameras: str = "name"
    annotations: AnnotatedEpisodes | None = None
    annotated_tasks: bool = False

    def read(self, first: int, last: int) -> Iterator[dict[str, Any] | LeftOut]:
        """Each of the frames first..last - 1 of the training set, in order.

        Yields:
            for every frame its sample, with the keys that `MultiLeRobotDataset` gives except those of actions
            and positions, or why it has none.
        """
        for episode, frame, images in self._frames(first, last):
            if isinstance(images, LeftOut):
                yield images
            else:
                yield self._sample(episode, frame, images)

    def task_texts(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """The text of each frame, as the network reads it: int [F], positions in the texts that follow."""
        data = self.dataset
        numbers, texts = np.array(data.task, np.int64), list(data.tasks)
        if self.annotations is None or not self.annotated_tasks:
            return numbers, tuple(texts)
        places = {text: place for place, text in enumerate(texts)}
        for episode in range(data.num_episodes):
            text = self.annotations.task(episode)
            if text is None:
                continue
            if text not in places:
                places[text] = len(texts)
                texts.append(text)
            numbers[data.episode_start[episode] : data.episode_start[episode + 1]] = places[text]
        return numbers, tuple(texts)

    def _frames(self, first: int, last: int) -> Iterator[tuple[int, int, dict[int, Tensor] | LeftOut]]:
        """(episode, frame in it, image by the dataset's slot) of each frame."""
        data, size = self.dataset, self.dataset.image_size
        assert size is not None  # images as recorded are for LeRobot's policies
        images: dict[int, Tensor] = {}
        left_out: LeftOut | None = None
        if data.prepared is not None:
            yield from self._prepared(first, last)
            return
        for episode, frame, slot, image in decode_frames(data, first, last):
            entry = data.entries[int(data.episode_dataset[episode])]
            if isinstance(image, DatasetError):
                recorded = int(data.episode_recorded[episode])
                left_out = left_out or LeftOut(recorded, frame, entry["cameras"][slot], str(image))
            else:
                images[slot] = letterbox(image, size, data.antialias)
            if slot == min(len(entry["cameras"]), data.max_cameras) - 1:
                yield episode, frame, left_out or images
                images, left_out = {}, None

    def _prepared(self, first: int, last: int) -> Iterator[tuple[int, int, dict[int, Tensor] | LeftOut]]:
        data = self.dataset
        for index in range(first, last):
            episode = int(np.searchsorted(data.episode_start, index, side="right")) - 1
            frame = index - int(data.episode_start[episode])
            try:
                found = data.camera_images(episode, frame, data.image_size)
            except DatasetError as error:
                yield episode, frame, LeftOut(int(data.episode_recorded[episode]), frame, None, str(error))
                continue
            yield episode, frame, {slot: image for slot, image in enumerate(found) if image is not None}

    def _sample(self, episode: int, frame: int, images: dict[int, Tensor]) -> dict[str, Any]:
        data = self.dataset
        keys = data.entries[int(data.episode_dataset[episode])]["cameras"]
        views = self.annotations.views(episode) if self.annotations else {}
        places = camera_order(self.cameras).place(keys, views, data.max_cameras)
        sample: dict[str, Any] = {}
        for key, source in zip(data.camera_slots, places, strict=True):
            image = None if source is None else images.get(source)
            empty = torch.zeros((3, data.image_size, data.image_size), dtype=torch.uint8)
            sample[key] = empty if image is None else image
            sample[f"{key}_is_pad"] = torch.tensor(image is None)
        index = int(data.episode_start[episode]) + frame
        sample[STATE] = torch.from_numpy(data.state[index].copy())
        text = self.annotations.task(episode) if self.annotations and self.annotated_tasks else None
        sample["task"] = data.tasks[data.task[index]] if text is None else text
        return sample
