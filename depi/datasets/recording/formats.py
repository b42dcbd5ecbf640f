"""The metadata of a LeRobot dataset, v2.0, v2.1 or v3.0, read in place and checked at the border.

Everything here comes from strangers: every number, path and text is checked before it is used, and what is
not acceptable becomes a `DatasetError` with the reason.
"""

import math
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from depi.datasets.recording.checks import check_relative, short, whole_number
from depi.errors import DatasetError

INFO_FILE = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
MAX_EPISODES = 200_000
MAX_EPISODE_CAMERAS = 500_000
"""Episodes times cameras: each pair has a place of its own, and in v2 a file."""
MAX_FRAMES = 30_000_000
MAX_FEATURES = 256
MAX_VECTOR = 4096
MAX_IMAGE_SIDE = 8192
MIN_FPS, MAX_FPS = 0.01, 1000.0
MAX_TASK_CHARS = 10_000
MAX_TASKS_CHARS = 50_000_000
"""Characters over all distinct tasks of a dataset."""
MAX_TASKS_LISTED = 2_000_000
"""Over all episodes, the same one many times included."""
MAX_JOINT_NUMBERS = 500_000_000
"""Numbers over all frames of a state or action: 2 GB."""

_NUMBER_FORMAT = re.compile(r"0?[0-9]d")
_PLACEHOLDERS = {
    "v2": {"episode_chunk", "episode_index", "video_key"},
    "v3": {"chunk_index", "file_index", "video_key"},
}
_DEFAULT_PATHS = {
    "v2": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    "v3": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}


@dataclass(frozen=True)
class Feature:
    """One declared column: `names` has one entry per element of a vector, or is None."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    depth: bool = False

    @property
    def is_camera(self) -> bool:
        """Whether this is a colour camera, as video or as images in the table."""
        return self.dtype in ("video", "image") and not self.depth

    @property
    def image_size(self) -> tuple[int, int]:
        """Declared (height, width) of a camera, whichever way round the shape was written."""
        channels_first = self.shape[0] in (1, 3, 4) and self.shape[2] not in (1, 3, 4)
        return self.shape[1:] if channels_first else self.shape[:2]  # type: ignore[return-value]


@dataclass(frozen=True)
class DatasetInfo:
    """`meta/info.json`, checked. The totals are claims: the tables may say otherwise."""

    version: str
    robot_type: str | None
    fps: float
    features: dict[str, Feature]
    total_episodes: int
    total_frames: int
    chunks_size: int
    data_path: str
    video_path: str | None
    splits: dict[str, str]

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Video and image features in declared order, depth cameras left out."""
        return tuple(key for key, feature in self.features.items() if feature.is_camera)

    @property
    def depth_keys(self) -> tuple[str, ...]:
        """Depth cameras, which are not read."""
        return tuple(key for key, feature in self.features.items() if feature.depth)

    @property
    def video_keys(self) -> tuple[str, ...]:
        """The cameras that are stored as video files."""
        return tuple(key for key in self.camera_keys if self.features[key].dtype == "video")

    @property
    def max_episodes(self) -> int:
        """So many episodes may be listed."""
        return min(MAX_EPISODES, MAX_EPISODE_CAMERAS // max(1, len(self.camera_keys)))


@dataclass(frozen=True)
class VideoTable:
    """Where one camera's episodes lie: `paths[file[e]]`, from second `start[e]` to `end[e]`.

    `end` is infinite where an episode goes on to the end of its file, or the metadata does not say.
    """

    paths: tuple[str, ...]
    file: np.ndarray
    start: np.ndarray
    end: np.ndarray


@dataclass(frozen=True)
class Episodes:
    """All episodes of a dataset as columns of length E, in ascending `episode_index`.

    episode_index: int64 [E], as recorded, gaps are possible
    length: int64 [E], frames
    tasks: the distinct task texts of each episode, as recorded
    data_paths, data_file: episode e lies in `data_paths[data_file[e]]` (int32 [E])
    videos: camera key -> VideoTable
    rows: of v3.0, the first of the dataset's rows that is listed for each episode and the one after its last,
        int64 [E, 2]; None where that is not listed
    """

    episode_index: np.ndarray
    length: np.ndarray
    tasks: tuple[tuple[str, ...], ...]
    data_paths: tuple[str, ...]
    data_file: np.ndarray
    videos: dict[str, VideoTable]
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.episode_index)


@dataclass(frozen=True)
class DatasetMeta:
    """A dataset's checked metadata and where its files lie."""

    repo_id: str
    revision: str | None
    root: Path
    info: DatasetInfo
    tasks: dict[int, str]
    episodes: Episodes

    @property
    def num_frames(self) -> int:
        """Frames over all listed episodes."""
        return int(self.episodes.length.sum())


def select_episodes(meta: DatasetMeta, chosen: np.ndarray) -> DatasetMeta:
    """The same dataset with only some of its episodes, given by their positions or as bool [E]."""
    old = meta.episodes
    positions = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
    episodes = Episodes(
        episode_index=old.episode_index[positions],
        length=old.length[positions],
        tasks=tuple(old.tasks[position] for position in positions),
        data_paths=old.data_paths,
        data_file=old.data_file[positions],
        videos={
            key: VideoTable(table.paths, table.file[positions], table.start[positions], table.end[positions])
            for key, table in old.videos.items()
        },
        rows=None if old.rows is None else old.rows[positions],
    )
    return replace(meta, episodes=episodes)


def parse_info(info: object) -> DatasetInfo:
    """Check the content of `meta/info.json`.

    Args:
        info: what `json.loads` returned.

    Raises:
        DatasetError: a type, version, shape, size or path template is not acceptable; says which.
    """
    if not isinstance(info, dict):
        raise DatasetError("meta/info.json is not a JSON object")
    version = _parse_version(info.get("codebase_version"))
    family = version[:2]
    robot_type = info.get("robot_type")
    if robot_type is not None and not (isinstance(robot_type, str) and len(robot_type) <= 200):
        raise DatasetError(f"robot_type is {short(robot_type)}, expected text or null")
    features = _parse_features(info.get("features"))
    data_default, video_default = _DEFAULT_PATHS[family]
    video_path = info.get("video_path")
    if video_path is None and any(feature.dtype == "video" for feature in features.values()):
        video_path = video_default
    splits = info.get("splits") or {}
    if not isinstance(splits, dict):
        raise DatasetError(f"splits is {short(splits)}, expected an object")
    return DatasetInfo(
        version=version,
        robot_type=robot_type,
        fps=_parse_fps(info.get("fps")),
        features=features,
        total_episodes=whole_number(info.get("total_episodes"), "total_episodes", 0, MAX_EPISODES),
        total_frames=whole_number(info.get("total_frames"), "total_frames", 0, MAX_FRAMES),
        chunks_size=whole_number(info.get("chunks_size", 1000), "chunks_size", 1, 10_000_000),
        data_path=_check_template(info.get("data_path", data_default), "data_path", family),
        video_path=None if video_path is None else _check_template(video_path, "video_path", family),
        splits={str(key)[:200]: str(value)[:200] for key, value in splits.items()},
    )


def _parse_version(value: Any) -> str:
    """One of VERSIONS, whose "v" some writers leave out; the files have to be of that version then."""
    for version in VERSIONS:
        if value in (version, version[1:]):
            return version
    raise DatasetError(f"codebase_version is {short(value)}, supported are {', '.join(VERSIONS)}")


def _parse_fps(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DatasetError(f"fps is {short(value)}, expected a number")
    if not MIN_FPS <= value <= MAX_FPS:
        raise DatasetError(f"fps is {short(value)}, expected {MIN_FPS:g} to {MAX_FPS:g}")
    return float(value)


def _parse_features(value: Any) -> dict[str, Feature]:
    if not isinstance(value, dict) or not value:
        raise DatasetError("features is missing or not a JSON object")
    if len(value) > MAX_FEATURES:
        raise DatasetError(f"{len(value)} features are declared, at most {MAX_FEATURES} are read")
    return {key: _parse_feature(key, entry) for key, entry in value.items()}


def _parse_feature(key: str, entry: Any) -> Feature:
    if not (0 < len(key) <= 200 and key.isprintable()):
        raise DatasetError(f"feature name {short(key)} is empty, too long or not printable")
    if not isinstance(entry, dict):
        raise DatasetError(f"feature {short(key)} is {short(entry)}, expected an object")
    dtype = entry.get("dtype")
    if not (isinstance(dtype, str) and len(dtype) <= 64):
        raise DatasetError(f"feature {short(key)} has dtype {short(dtype)}, expected text")
    if dtype in ("video", "image"):
        return _parse_camera(key, dtype, entry)
    shape = _parse_shape(key, entry.get("shape"), 0, MAX_VECTOR)
    size = math.prod(shape)
    names = _flatten_names(entry.get("names"))
    return Feature(dtype, shape, names if names is not None and len(names) == size else None)


def _parse_camera(key: str, dtype: str, entry: dict[str, Any]) -> Feature:
    if "/" in key or "\\" in key or key in (".", ".."):
        raise DatasetError(f"camera name {short(key)} contains a path separator")
    shape = _parse_shape(key, entry.get("shape"), 1, MAX_IMAGE_SIDE)
    if len(shape) != 3:
        raise DatasetError(f"camera {short(key)} has shape {list(shape)}, expected height, width, channels")
    details = [entry.get("info"), entry.get("video_info")]
    depth = any(
        isinstance(detail, dict) and bool(detail.get(flag))
        for detail in details
        for flag in ("is_depth_map", "video.is_depth_map")
    )
    one_channel = 1 in (shape[0], shape[2])
    return Feature(dtype, shape, None, depth=depth or one_channel)


def _parse_shape(key: str, value: Any, low: int, high: int) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list | tuple) or len(value) > 8:
        raise DatasetError(f"feature {short(key)} has shape {short(value)}, expected a list of numbers")
    shape = tuple(whole_number(side, f"shape of {short(key)}", low, high) for side in value)
    if len(shape) != 3 and math.prod(shape) > MAX_VECTOR:
        raise DatasetError(
            f"feature {short(key)} has {math.prod(shape)} numbers, at most {MAX_VECTOR} are read"
        )
    return shape


def _flatten_names(value: Any) -> tuple[str, ...] | None:
    """Names are published as a list, as {"motors": [...]}, as {name: position}, nested, or null."""
    if isinstance(value, str):
        return (value[:200],)
    if isinstance(value, dict):
        if value and all(isinstance(item, int) for item in value.values()):
            return tuple(str(name)[:200] for name, _ in sorted(value.items(), key=lambda pair: pair[1]))
        value = list(value.values())
    if not isinstance(value, list | tuple) or len(value) > MAX_VECTOR:
        return None
    names: list[str] = []
    for item in value:
        inner = _flatten_names(item)
        if inner is None:
            return None
        names.extend(inner)
    return tuple(names) if names else None


def _check_template(value: Any, name: str, family: str) -> str:
    """Accept relative templates with the known placeholders only: no attributes, indices or conversions."""
    if not isinstance(value, str) or len(value) > 500:
        raise DatasetError(f"{name} is {short(value)}, expected a path template")
    try:
        fields = list(string.Formatter().parse(value))
    except ValueError as error:
        raise DatasetError(f"{name} {short(value)} is not a valid template: {error}") from None
    for _, field, spec, conversion in fields:
        if field is None:
            continue
        plain_spec = not spec or (field != "video_key" and _NUMBER_FORMAT.fullmatch(spec))
        if field not in _PLACEHOLDERS[family] or conversion or not plain_spec:
            raise DatasetError(f"{name} {short(value)} has a placeholder that is not known")
    check_relative(value, name)
    return value


def metadata_files(repo_files: Iterable[str]) -> list[str]:
    """The files under `meta/` that `load_meta` reads, in order; recorded statistics are not among them."""
    wanted = {INFO_FILE, "meta/tasks.jsonl", "meta/episodes.jsonl", "meta/tasks.parquet"}
    return sorted(
        file
        for file in set(repo_files)
        if file in wanted or (file.startswith("meta/episodes/") and file.endswith(".parquet"))
    )


class TaskTexts:
    """The task texts of one dataset: each is checked and held once, all together are bounded."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._chars = self._listed = 0

    def check(self, text: Any) -> str:
        """The text, of at most MAX_TASK_CHARS characters.

        Raises:
            DatasetError: it is no text, too long, the distinct ones are more than MAX_TASKS_CHARS, or it is
                one more than MAX_TASKS_LISTED.
        """
        self._listed += 1
        if self._listed > MAX_TASKS_LISTED:
            raise DatasetError(f"more than {MAX_TASKS_LISTED} tasks are listed")
        if not isinstance(text, str):
            raise DatasetError(f"a task is {short(text)}, expected text")
        if len(text) > MAX_TASK_CHARS:
            raise DatasetError(f"a task has {len(text)} characters, at most {MAX_TASK_CHARS} are read")
        if text not in self._texts:
            self._chars += len(text)
            if self._chars > MAX_TASKS_CHARS:
                raise DatasetError(f"the tasks have more than {MAX_TASKS_CHARS} characters")
        return self._texts.setdefault(text, text)


def table_cameras(meta: DatasetMeta) -> list[str]:
    """The cameras whose images lie in the tables."""
    return [camera for camera in meta.info.camera_keys if camera not in meta.episodes.videos]


def data_files(meta: DatasetMeta, episodes: Sequence[int] | None = None) -> list[str]:
    """Repo-relative parquet files in order, each once; `episodes` are positions in `meta.episodes`."""
    chosen = (
        meta.episodes.data_file if episodes is None else meta.episodes.data_file[np.asarray(episodes, int)]
    )
    return [meta.episodes.data_paths[file] for file in dict.fromkeys(chosen.tolist())]


def video_files(
    meta: DatasetMeta, episodes: Sequence[int] | None = None, cameras: Sequence[str] | None = None
) -> list[str]:
    """Repo-relative video files in order, each once.

    Args:
        meta: the dataset.
        episodes: positions in `meta.episodes`, all by default.
        cameras: camera keys, all by default; those stored in the table have no files.
    """
    files: dict[str, None] = {}
    for camera, table in meta.episodes.videos.items():
        if cameras is not None and camera not in cameras:
            continue
        chosen = table.file if episodes is None else table.file[np.asarray(episodes, int)]
        files.update(dict.fromkeys(table.paths[file] for file in dict.fromkeys(chosen.tolist())))
    return list(files)
