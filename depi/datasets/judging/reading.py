"""Which episodes of a dataset can be read at all: those whose files are there, sound, and as long as listed.

One place for the catalogue and for training. It comes before the rules, which look at what was read.
"""

from collections.abc import Callable, Iterable, Mapping, Set

import numpy as np

from depi.datasets.judging.faults import Fault
from depi.datasets.recording.formats import DatasetMeta, data_files, select_episodes, video_files
from depi.datasets.recording.tables import Tables, read_recording
from depi.errors import DatasetError


def files_there(
    meta: DatasetMeta, lacking: Callable[[Iterable[str]], set[str]]
) -> tuple[DatasetMeta, list[Fault]]:
    """The table of an episode, and its videos, are in the repository.

    Args:
        meta: the dataset.
        lacking: says which of some files the dataset lacks, as `DatasetFiles.lacking`.

    Returns:
        The dataset with the episodes that have their files, and a fault for each of the others.

    Raises:
        DatasetError: no episode has its files.
    """
    episodes = meta.episodes
    absent = without_files(meta, lacking([*data_files(meta), *video_files(meta)]))
    if not absent:
        return meta, []
    if len(absent) == len(episodes):
        raise DatasetError(f"{absent[0]}, and every other episode lacks a file too")
    kept = ~np.isin(np.arange(len(episodes)), list(absent))
    numbers = {int(episodes.episode_index[position]): reason for position, reason in absent.items()}
    return select_episodes(meta, kept), _faults(files_there, numbers)


def without_files(meta: DatasetMeta, missing: Set[str]) -> dict[int, str]:
    """The episodes (positions) to which one of the `missing` files belongs, each with the reason.

    A camera without a single video is no fault of an episode: it is passed over.
    """
    episodes = meta.episodes
    lost = lost_cameras(meta, missing)
    kinds = [(episodes.data_paths, episodes.data_file)]
    kinds += [(table.paths, table.file) for key, table in episodes.videos.items() if key not in lost]
    absent: dict[int, str] = {}
    for paths, file in kinds:
        gone = np.array([path in missing for path in paths], bool)
        for position in np.flatnonzero(gone[file]).tolist():
            absent.setdefault(position, f"{paths[file[position]]} is missing")
    return absent


def lost_cameras(meta: DatasetMeta, missing: Set[str]) -> list[str]:
    """The cameras all of whose videos are missing."""
    return [key for key, table in meta.episodes.videos.items() if missing >= set(table.paths)]


def table_readable(meta: DatasetMeta) -> tuple[Tables, list[Fault]]:
    """An episode has as many rows in its table as listed, and they hold what is declared.

    Returns:
        The episodes that can be read, and a fault for each of the others.

    Raises:
        DatasetError: none can be read.
    """
    tables = read_recording(meta)
    return tables, _faults(table_readable, tables.unread)


def _faults(check: Callable[..., object], reasons: Mapping[int, str]) -> list[Fault]:
    return [Fault(check.__name__, number, reasons[number], leaves_out=True) for number in sorted(reasons)]
