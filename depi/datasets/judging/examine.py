"""The verdict on a recording: its joint convention, and the faults of its episodes.

One place for the catalogue, which shows it, and for training, which leaves the bad episodes out.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from depi.datasets.judging.faults import EpisodeRule, Fault, Recording, bad_episodes, find_faults
from depi.datasets.judging.reading import files_there, table_readable
from depi.datasets.judging.rules import CONTENTS, MOTION, OPTIONAL, READABLE, UNITS
from depi.datasets.recording.convention import detect_convention, given_convention
from depi.datasets.recording.formats import DatasetMeta, data_files, select_episodes
from depi.datasets.recording.joints import Detection, to_degrees
from depi.datasets.recording.sources import DatasetFiles
from depi.datasets.recording.tables import ACTION, STATE
from depi.engine.confined import MEGABYTES, SECONDS
from depi.errors import DatasetError

# A frame of an arm that never moves takes 6.4 bytes of a parquet file: with fewer, frames are a mere claim.
_BYTES_PER_FRAME = 4
# Limits grow no further: 200 s and 7 GB.
_MOST_FRAMES = 10_000_000


@dataclass(frozen=True)
class Examined:
    """What a recording turned out to be.

    recording: the episodes that can be read and are in one unit, in degrees where the convention is known
    detection: the joint convention
    faults: of all episodes
    unreadable: recorded numbers of the episodes that cannot be read, each with the reason
    unlike: those of the episodes in other units than the rest, which are not in `recording` either
    """

    recording: Recording
    detection: Detection
    faults: tuple[Fault, ...]
    unreadable: dict[int, str]
    unlike: dict[int, str]


def examine(
    meta: DatasetMeta,
    columns: Mapping[str, np.ndarray],
    recorded_in: str | None = None,
    *,
    unread: Sequence[Fault] = (),
    asked: Collection[EpisodeRule] = OPTIONAL,
) -> Examined:
    """Find the joint convention of a recording, and the faults of its episodes.

    Args:
        meta: the episodes that were read.
        columns: their numbers, see `depi.datasets.recording.tables.Tables`.
        recorded_in: the joint convention, where the user gives it; else it is detected.
        unread: the faults of the other episodes, see `depi.datasets.judging.reading`.
        asked: which rules are asked beside those without which nothing can be read.

    Raises:
        DatasetError: no episode can be read, or the joints cannot be `recorded_in`.
    """
    recording = Recording(meta, columns, columns[ACTION], columns[STATE])
    faults = [*unread, *find_faults(recording, READABLE)]
    unreadable = bad_episodes(faults)
    recording = keep(recording, ~np.isin(meta.episodes.episode_index, list(unreadable)), unreadable)
    faults += find_faults(recording, [rule for rule in CONTENTS if rule in asked])
    detection = _detect(recording, recorded_in)
    in_other_units = find_faults(replace(recording, detection=detection), UNITS)
    faults += in_other_units
    unlike = bad_episodes(in_other_units)
    recording = keep(recording, ~np.isin(recording.meta.episodes.episode_index, list(unlike)), unlike)
    recording = replace(recording, detection=replace(detection, unlike=()))
    if detection.convention not in ("unknown", "native"):
        action = to_degrees(recording.action, detection.action)
        state = to_degrees(recording.state, detection.state)
        recording = replace(recording, action=action, state=state)
        faults += find_faults(recording, [rule for rule in MOTION if rule in asked])
    return Examined(recording, detection, tuple(faults), unreadable, unlike)


@dataclass(frozen=True)
class FetchedTables:
    """A dataset whose tables are on disk.

    listed: its metadata
    meta: the same with the episodes that have their files
    absent: a fault for each of the others
    size: of the files, bytes
    """

    listed: DatasetMeta
    meta: DatasetMeta
    absent: tuple[Fault, ...]
    size: int

    @property
    def frames(self) -> int:
        """Frames that the limits are made for: those that are listed, if files of this size can hold them."""
        return min(self.listed.num_frames, self.size // _BYTES_PER_FRAME, _MOST_FRAMES)

    @property
    def seconds(self) -> float:
        """Processor time to read and judge them at most. Usual are 4 us a frame."""
        return max(SECONDS, 20e-6 * self.frames)

    @property
    def megabytes(self) -> float:
        """Memory to read and judge them at most. Usual are 500 bytes a frame."""
        return max(MEGABYTES, 700e-6 * self.frames)


def fetch_tables(files: DatasetFiles, meta: DatasetMeta) -> FetchedTables:
    """Have the tables of all episodes on disk that have their files.

    Raises:
        DatasetError: no episode has its files.
        UserError: the storage does not give a table.
    """
    there, absent = files_there(meta, files.lacking)
    names = data_files(there)
    files.fetch(names)
    size = sum((there.root / name).stat().st_size for name in names)
    return FetchedTables(meta, there, tuple(absent), size)


def examine_tables(
    fetched: FetchedTables, recorded_in: str | None = None, asked: Collection[EpisodeRule] = OPTIONAL
) -> Examined:
    """Read the tables of all episodes that can be read, and `examine` them.

    Raises:
        DatasetError: no episode can be read, or the joints cannot be `recorded_in`.
    """
    tables, unread = table_readable(fetched.meta)
    faults = [*fetched.absent, *unread]
    return examine(tables.meta, tables.columns, recorded_in, unread=faults, asked=asked)


def keep(recording: Recording, kept: np.ndarray, left_out: Mapping[int, str]) -> Recording:
    """Only the episodes `kept` (bool [E]) and their frames.

    Raises:
        DatasetError: there is none; says why the first one was left out.
    """
    if not kept.any():
        raise DatasetError(f"no episode can be used: {next(iter(left_out.values()))}")
    if kept.all():
        return recording
    rows = np.repeat(kept, recording.length)
    return replace(
        recording,
        meta=select_episodes(recording.meta, kept),
        columns={name: values[rows] for name, values in recording.columns.items()},
        action=recording.action[rows],
        state=recording.state[rows],
    )


def _detect(recording: Recording, recorded_in: str | None) -> Detection:
    if recorded_in is not None:
        return given_convention(recorded_in, recording.action, recording.state, recording.length)
    return detect_convention(
        recording.meta.info.features[ACTION].names,
        recording.action,
        recording.state,
        robot_type=recording.meta.info.robot_type,
        episode_length=recording.length,
    )
