"""Reading the metadata of a dataset, in whichever version it was written."""

import math
from pathlib import Path

import numpy as np

from depi.datasets.recording import meta_v2, meta_v3
from depi.datasets.recording.checks import parse_json, read_text, short
from depi.datasets.recording.formats import MAX_FRAMES, MAX_JOINT_NUMBERS, DatasetMeta, Episodes, parse_info
from depi.datasets.recording.sources import DatasetFiles
from depi.engine.confined import confined
from depi.errors import DatasetError


def load_meta(root: Path, repo_id: str, revision: str | None = None) -> DatasetMeta:
    """Read the metadata under `root/meta`; data and video files need not be there.

    Raises:
        DatasetError: a file is missing or holds what it must not.
    """
    root = Path(root)
    info = parse_info(read_info(root))
    reader = meta_v3 if info.version.startswith("v3") else meta_v2
    tasks = reader.read_tasks(root)
    episodes = reader.read_episodes(root, info)
    if len(episodes) == 0:
        raise DatasetError("no episodes are listed")
    if len(np.unique(episodes.episode_index)) != len(episodes):
        raise DatasetError("an episode is listed twice")
    _check_shared(episodes)
    frames = int(episodes.length.sum())
    if frames > MAX_FRAMES:
        raise DatasetError(f"more than {MAX_FRAMES} frames are listed")
    for key in ("action", "observation.state"):
        width = math.prod(info.features[key].shape) if key in info.features else 0
        if frames * width > MAX_JOINT_NUMBERS:
            raise DatasetError(
                f"{key} has {frames} times {width} numbers, at most {MAX_JOINT_NUMBERS} are read"
            )
    return DatasetMeta(repo_id, revision, root, info, tasks, episodes)


def _check_shared(episodes: Episodes) -> None:
    """No two episodes, or cameras, are given the same file by a template without their number or name."""
    named: set[str] = set()
    for paths in (episodes.data_paths, *(table.paths for table in episodes.videos.values())):
        for path in paths:
            if path in named:
                raise DatasetError(
                    f"data_path or video_path gives {short(path)} to several episodes or cameras: a "
                    "placeholder is missing"
                )
            named.add(path)


def read_info(root: Path) -> object:
    """The JSON of `meta/info.json`, not yet checked."""
    text = read_text(root, "meta/info.json", limit=8_000_000)
    return parse_json(text, "meta/info.json")


def read_meta(files: DatasetFiles) -> DatasetMeta:
    """Fetch a dataset's metadata and read it in a process with limits; tables and videos are not touched.

    Raises:
        DatasetError: a file is missing or holds what it must not.
        UserError: the storage does not give one, or offline the cache lacks one.
    """
    files.fetch_metadata()
    meta = confined(load_meta, files.root, files.repo_id, files.revision)
    files.check_complete(meta)
    return meta
