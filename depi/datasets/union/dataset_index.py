"""The index of one dataset: read once per revision, then taken from the cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from depi.datasets.judging.examine import FetchedTables, fetch_tables
from depi.datasets.recording.cameras import camera_order
from depi.datasets.recording.checks import resolve_file
from depi.datasets.recording.joints import Detection
from depi.datasets.recording.metadata import read_meta
from depi.datasets.recording.places import image_places
from depi.datasets.recording.sources import DatasetFiles
from depi.datasets.recording.tables import ACTION, STATE
from depi.datasets.union.index import IMAGE, VIDEO, read_index, write_index
from depi.datasets.union.opening import OpenDataset, open_dataset, recorded_fps
from depi.engine.confined import confined
from depi.errors import DatasetError
from depi.files import cache_folder
from depi.fingerprint import code, fingerprint

type BadEpisodes = Mapping[tuple[str, str | None], Mapping[int, str]]
"""(repo id, revision) -> recorded episode index -> why it is bad."""


def index_key(*facts: object) -> str:
    """The name of an index that depends on these facts, and on the code that makes it."""
    return fingerprint(code(__name__, "depi.datasets.union.joining"), *facts)


@dataclass(frozen=True)
class Part:
    """A dataset whose index is in the cache; `entry` is what a report says of it.

    cameras: the positions, among those of the entry, of the cameras that are used; the one to read first
    first.
    """

    folder: Path
    root: Path
    entry: dict[str, Any]
    cameras: tuple[int, ...]

    @property
    def kind(self) -> tuple[int, int, bool]:
        """What must agree between datasets that train together: state and action sizes, canonical or not."""
        return self.entry["state_dim"], self.entry["action_dim"], self.entry["convention"] != "native"

    @property
    def detection(self) -> Detection:
        """Its joint convention."""
        return Detection(self.entry["convention"], self.entry["evidence"])


@dataclass(frozen=True)
class Options:
    """What is wanted of each dataset.

    max_cameras: camera slots; the videos of further cameras are not fetched. None for all cameras.
    episodes: recorded episode indices, ascending, where the source itself chooses none; None for all.
    joint_convention: the units of state and action, one of `depi.datasets.recording.joints.SPACES`.
    offline: ask no Hub.
    cameras: which of the cameras, and which first; see `camera_order`.
    conventions: repo id -> joint convention of the recording, where the user gives it.
    correct_offsets: take constant offsets out of the commands.
    use_bad_episodes: use also the episodes that the rules of `depi.datasets.judging` find bad.
    bad_episodes: those, of datasets that were judged before.
    """

    max_cameras: int | None
    episodes: tuple[int, ...] | None = None
    joint_convention: str = "degrees"
    offline: bool = False
    cameras: str = "name"
    conventions: Mapping[str, str] = field(default_factory=dict)
    use_bad_episodes: bool = False
    bad_episodes: BadEpisodes = field(default_factory=dict)
    correct_offsets: bool = False

    def bad(self, source: DatasetFiles) -> dict[int, str] | None:
        """The episodes of a dataset to leave out, with the reasons; None where it has to be judged."""
        if self.use_bad_episodes:
            return {}
        known = self.bad_episodes.get((source.repo_id, source.revision))
        return None if known is None else dict(known)


def open_part(source: DatasetFiles, options: Options) -> Part:
    """Have a dataset's index in the cache, and the videos of its first cameras on disk.

    Raises:
        DatasetError: the dataset cannot be used; the message is the reason.
        UserError: the Hub does not give it, or an episode is chosen that does not exist.
    """
    episodes = options.episodes if source.episodes is None else source.episodes
    recorded_in = options.conventions.get(source.repo_id)
    how = (options.joint_convention, recorded_in, options.bad(source), options.correct_offsets)
    key = index_key(source.key, episodes, *how)
    folder = cache_folder() / "index" / "datasets" / key
    index = read_index(folder)
    if index is None:
        fetched = fetch_tables(source, read_meta(source))
        about = {"local": source.is_local, "licence": source.licence}
        limits = {"seconds": fetched.seconds, "megabytes": fetched.megabytes}
        confined(_make_index, folder, fetched, about, episodes, *how, **limits)
        index = read_index(folder)
    if index is None:
        raise DatasetError(f"its index {folder} cannot be read back")
    entry = index.manifest["datasets"][0]
    cameras = _choose(entry["cameras"], options)
    files = [index.files[file].as_py() for file in np.unique(index.camera_file[:, cameras])]
    source.fetch(files)
    for file in files:
        resolve_file(source.root, file)
    return Part(folder, source.root, entry, cameras)


def _choose(keys: list[str], options: Options) -> tuple[int, ...]:
    """The positions of the cameras that are used; DatasetError if there is none."""
    chosen = camera_order(options.cameras).choose(keys)[: options.max_cameras]
    if not chosen:
        raise DatasetError(
            f"none of its cameras ({', '.join(keys)}) is listed in --dataset.cameras={options.cameras}"
        )
    return tuple(keys.index(key) for key in chosen)


def _make_index(folder: Path, fetched: FetchedTables, about: dict[str, Any], *how: Any) -> None:
    """Read a dataset as `open_dataset` does, and write its index; `about` is more of its entry."""
    dataset = open_dataset(fetched, *how)
    cameras, files = _camera_columns(dataset)
    episodes = dataset.meta.episodes
    columns = {
        "state": dataset.state,
        "action": dataset.action,
        "timestamp": dataset.timestamp,
        "task": dataset.task,
        "recorded": episodes.episode_index,
        "length": episodes.length,
        **cameras,
    }
    write_index(
        folder,
        columns,
        files=files,
        file_dataset=np.zeros(len(files), np.int32),
        tasks=dataset.tasks,
        manifest={"datasets": [{**_entry(dataset), **about}]},
    )


def _camera_columns(dataset: OpenDataset) -> tuple[dict[str, np.ndarray], list[str]]:
    """The columns [E, C] over episodes and cameras, see `Index`; and the files that are used."""
    kind = np.zeros((len(dataset.meta.episodes), len(dataset.cameras)), np.int8)
    file, begin, end = np.zeros(kind.shape, np.int32), np.zeros(kind.shape), np.zeros(kind.shape)
    places = image_places(dataset.meta, dataset.cameras)
    numbers: dict[str, int] = {}
    for slot, of_camera in enumerate(places.values()):
        for episode, place in enumerate(of_camera):
            kind[episode, slot] = IMAGE if place.in_table else VIDEO
            file[episode, slot] = numbers.setdefault(place.file, len(numbers))
            begin[episode, slot], end[episode, slot] = place.begin, place.end
    columns: dict[str, np.ndarray] = {
        "camera_kind": kind,
        "camera_file": file,
        "camera_begin": begin,
        "camera_end": end,
    }
    return columns, list(numbers)


def _entry(dataset: OpenDataset) -> dict[str, Any]:
    meta, info = dataset.meta, dataset.meta.info
    return {
        "repo_id": meta.repo_id,
        "revision": meta.revision,
        "version": info.version,
        "robot_type": info.robot_type,
        "convention": dataset.detection.convention,
        "evidence": dataset.detection.evidence,
        "fps": info.fps,
        "recorded_fps": recorded_fps(dataset.timestamp, meta.episodes.length, info.fps),
        "episodes": len(meta.episodes),
        "frames": meta.num_frames,
        "cameras": list(dataset.cameras),
        "camera_sizes": {key: info.features[key].image_size for key in dataset.cameras},
        "depth_cameras_not_read": list(info.depth_keys),
        "episodes_left_out": {str(index): reason for index, reason in dataset.unreadable.items()},
        "bad_episodes": {str(index): reason for index, reason in dataset.bad.items()},
        "offsets_taken_out": dataset.offsets,
        "state_dim": dataset.state.shape[1],
        "action_dim": dataset.action.shape[1],
        "state_names": info.features[STATE].names,
        "action_names": info.features[ACTION].names,
    }
