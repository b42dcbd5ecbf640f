"""Clean sets of 12 episodes, to plant defects into: simulated ones, and real tables with stand-in videos.

A set is held as arrays and one mp4 per episode and camera, and written in LeRobot's v2.1 or v3.0 layout as a
recorder would: counts, ranges and statistics are those of what is written.
"""

import copy
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from depi.datasets.recording.joints import JOINTS, to_degrees
from depi.priority import priority_kept
from depi.sim.setup import Camera, Setup
from depi.sim.v21 import DATA_PATH, STATISTICS, VIDEO_PATH
from depi.sim.writing import write_card

EPISODES = 12
SIZE = (240, 320)
CAMERAS = ("front", "wrist")
SPARE = "spare"
"""A third view of the same scene, which clean sets do not publish."""
REAL = Path(__file__).parents[2] / "shared" / "real"
PER_FILE = 4
"""Episodes in one v3.0 file, as of somebody who recorded in three sessions."""
V30_PATHS = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
SENSOR_NOISE = 2.0  # grey levels


@dataclass(eq=False)
class Episode:
    """One episode of T frames.

    action, state: float32 [T, 6], as recorded
    time: float64 [T], seconds
    videos: camera -> mp4 of this episode alone, the spare view too
    """

    action: np.ndarray
    state: np.ndarray
    time: np.ndarray
    task: str
    videos: dict[str, Path]

    def __len__(self) -> int:
        return len(self.action)


@dataclass(eq=False)
class RecordedSet:
    """A set before it is written. unit: `degrees` or `normalized`; format: `v2.1` or `v3.0`."""

    format: str
    unit: str
    robot_type: str
    fps: int
    codec: str
    episodes: list[Episode]

    def copy(self) -> "RecordedSet":
        """The same set, whose arrays may be changed."""
        return copy.deepcopy(self)


@dataclass(frozen=True)
class Base:
    """Where a clean set comes from: the simulator (`table` None), or a folder of real tables.

    offset: added to the simulator's first seed, so that two sets are not of the same episodes
    """

    format: str
    codec: str
    setup: Setup
    table: str | None = None
    task: str | None = None
    offset: int = 0


def _rig(unit: str, **looks: Any) -> Setup:
    cameras = (Camera("front", "front"), Camera("wrist", "wrist"), Camera(SPARE, "side"))
    return Setup(cameras, SIZE[1], SIZE[0], convention=unit, **looks)


BASES = {
    "simulated": Base("v3.0", "av1", _rig("degrees")),
    "simulated_v21": Base(
        "v2.1",
        "h264",
        _rig("normalized", robot_color="white", table="wood", robot_type="so100", object_color="green"),
        offset=500,
    ),
    "cube": Base(
        "v3.0", "h264", _rig("normalized", table="white"), "normalized_clean", "lift up the red cube"
    ),
    "tape": Base(
        "v2.1",
        "h264",
        _rig("normalized", object_color="black", lighting=(0.9, 0.85, 0.8)),
        "so101_pick_place_tape",
        "Pick up the tape and place it in the box.",
    ),
}
FIRST = {"development": (100, 0), "table": (9000, 25)}
"""For each choice of seeds: the simulator's first seed, and the first episode cut out of a real table."""


def make_set(name: str, seeds: str, folder: Path) -> RecordedSet:
    """Record the base of that name, with its videos, to a folder; once it is there, read it."""
    base = BASES[name]
    if not (folder / "tables.npz").exists():
        _record(base, FIRST[seeds], folder)
    with np.load(folder / "tables.npz") as stored:
        tables = dict(stored)
    episodes = []
    for number in range(EPISODES):
        action, state = tables[f"action{number}"], tables[f"state{number}"]
        videos = {camera: folder / f"{camera}_{number:02d}.mp4" for camera in (*CAMERAS, SPARE)}
        time = np.arange(len(action)) / base.setup.fps
        episodes.append(Episode(action, state, time, (folder / "task.txt").read_text(), videos))
    setup = base.setup
    return RecordedSet(base.format, setup.convention, setup.robot_type, setup.fps, base.codec, episodes)


def _record(base: Base, first: tuple[int, int], folder: Path) -> None:
    from depi.sim.env import make_env
    from depi.sim.expert import Expert
    from depi.sim.record import quiet_libraries, to_convention
    from depi.sim.rollout import play

    quiet_libraries()
    folder.mkdir(parents=True, exist_ok=True)
    env = make_env("pick_lift", base.setup)
    expert = Expert(env)
    tables: dict[str, np.ndarray] = {}
    played: Iterable[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]
    if base.table is None:
        tries = (play(env, expert, seed) for seed in itertools.count(first[0] + base.offset))
        unit = base.setup.convention
        played = (
            (to_convention(episode.actions, unit), to_convention(episode.states, unit), episode.images)
            for episode in tries
            if episode.success
        )
    else:
        cut = read_tables(REAL / base.table, first[1])
        played = ((action, state, _replay(env, action, base.setup)) for action, state in cut)
    for number, (action, state, images) in enumerate(itertools.islice(played, EPISODES)):
        tables |= {f"action{number}": action, f"state{number}": state}
        for camera, frames in images.items():
            noisy = with_noise(frames, np.random.default_rng([number, len(camera)]))
            encode(folder / f"{camera}_{number:02d}.mp4", noisy, base.setup.fps, base.codec)
    env.close()
    (folder / "task.txt").write_text(base.task or env.instruction)
    np.savez(folder / "tables.npz", **tables)  # type: ignore[arg-type]


def read_tables(folder: Path, first: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Action and state, float32 [T, 6], of 12 episodes of a real recording, from the episode `first` on."""
    paths = sorted((folder / "data").rglob("*.parquet"))
    table = pa.concat_tables(
        pq.read_table(path, columns=["action", "observation.state", "episode_index"]) for path in paths
    )
    index = table["episode_index"].to_numpy()
    columns = [np.stack(table[key].to_numpy()).astype(np.float32) for key in ("action", "observation.state")]
    for number in range(first, first + EPISODES):
        yield columns[0][index == number], columns[1][index == number]


def _replay(env: Any, action: np.ndarray, setup: Setup) -> dict[str, np.ndarray]:
    """Pictures of the simulated arm that is sent a real arm's commands, uint8 [T, H, W, 3] by camera."""
    degrees = to_degrees(action.astype(np.float64), setup.convention)
    env.reset(seed=0, options={"images": False})
    for _ in range(setup.fps // 2):
        env.step(degrees[0])
    env.with_images = True
    seen = [env.step(command)[0]["images"] for command in degrees]
    return {camera.name: np.stack([images[camera.name] for images in seen]) for camera in setup.cameras}


def with_noise(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames with a camera's noise, another one in each frame, uint8 of the same shape."""
    height, width = frames.shape[1:3]
    field = rng.normal(0, SENSOR_NOISE, (height * 2, width * 2, 1)).astype(np.float32)
    noisy = np.empty_like(frames)
    for place, frame in enumerate(frames):
        row, column = rng.integers(height), rng.integers(width)
        noisy[place] = np.clip(frame + field[row : row + height, column : column + width], 0, 255)
    return noisy


@priority_kept()
def encode(path: Path, frames: Sequence[np.ndarray] | np.ndarray, fps: int, codec: str) -> None:
    """Write uint8 [T, H, W, 3] as an mp4, encoded as LeRobot does."""
    from lerobot.configs import RGBEncoderConfig

    encoder = RGBEncoderConfig(vcodec=codec)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = encoder.get_codec_options(encoder_threads=1, as_strings=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder.vcodec, fps, options=options)
        stream.pix_fmt = encoder.pix_fmt
        stream.height, stream.width = frames[0].shape[:2]
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@priority_kept()
def decode(path: Path) -> np.ndarray:
    """All frames of an mp4, uint8 [T, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@cache
def video_facts(path: Path) -> tuple[int, dict[str, np.ndarray]]:
    """The number of frames of an mp4, and LeRobot's statistics of some of them, each of shape (3, 1, 1)."""
    from lerobot.datasets.compute_stats import get_feature_stats

    frames = decode(path)
    images = frames[:: max(1, len(frames) // 10), ::2, ::2].transpose(0, 3, 1, 2)
    stats = get_feature_stats(images, axis=(0, 2, 3), keepdims=True)
    return len(frames), {name: v if name == "count" else v[0] / 255.0 for name, v in stats.items()}


def write_set(recorded: RecordedSet, root: Path, joined: Path, repo_id: str = "someone/so101_set") -> None:
    """Write a set under `root`, a folder that is not there yet; videos are hard links.

    joined: a folder for v3.0 files of several episodes, which copies of one clean set share.
    """
    tasks = list(dict.fromkeys(episode.task for episode in recorded.episodes))
    features = _features(recorded)
    starts = np.cumsum([0, *(len(episode) for episode in recorded.episodes)]).tolist()
    tables = [
        _columns(episode, number, starts[number], tasks.index(episode.task))
        for number, episode in enumerate(recorded.episodes)
    ]
    stats = [_stats(table, episode) for table, episode in zip(tables, recorded.episodes, strict=True)]
    (root / "meta").mkdir(parents=True)
    write = _write_v21 if recorded.format == "v2.1" else _write_v30
    paths = write(recorded, root, joined, tables, stats, tasks)
    info = {
        "codebase_version": recorded.format,
        "robot_type": recorded.robot_type,
        "total_episodes": len(recorded.episodes),
        "total_frames": starts[-1],
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "fps": recorded.fps,
        "splits": {"train": f"0:{len(recorded.episodes)}"},
        **paths,
        "features": features,
    }
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    write_card(root, repo_id, recorded.robot_type)


def _key(camera: str) -> str:
    return f"observation.images.{camera}"


def _features(recorded: RecordedSet) -> dict[str, dict[str, Any]]:
    from lerobot.utils.constants import DEFAULT_FEATURES

    vector = {"dtype": "float32", "shape": [6], "names": [f"{joint}.pos" for joint in JOINTS]}
    seen = {
        "video.height": SIZE[0],
        "video.width": SIZE[1],
        "video.codec": recorded.codec,
        "video.pix_fmt": "yuv420p",
        "video.fps": recorded.fps,
        "video.channels": 3,
        "video.is_depth_map": False,
        "has_audio": False,
    }
    names = ["height", "width", "channels"]
    video = {"dtype": "video", "shape": [*SIZE, 3], "names": names, "info": seen}
    indices = {key: {**feature, "shape": [1]} for key, feature in DEFAULT_FEATURES.items()}
    cameras = {_key(camera): video for camera in CAMERAS}
    return {"action": vector, "observation.state": vector, **cameras, **indices}


def _columns(episode: Episode, number: int, start: int, task: int) -> dict[str, np.ndarray]:
    frames = np.arange(len(episode))
    return {
        "action": episode.action,
        "observation.state": episode.state,
        "timestamp": episode.time.astype(np.float32),
        "frame_index": frames,
        "episode_index": np.full(len(episode), number),
        "index": start + frames,
        "task_index": np.full(len(episode), task),
    }


def _stats(table: dict[str, np.ndarray], episode: Episode) -> dict[str, dict[str, np.ndarray]]:
    from lerobot.datasets.compute_stats import compute_episode_stats

    declared = {key: {"dtype": str(values.dtype)} for key, values in table.items()}
    stats = compute_episode_stats(table, declared)
    return {**stats, **{_key(camera): video_facts(episode.videos[camera])[1] for camera in CAMERAS}}


def _write_parquet(tables: Sequence[dict[str, np.ndarray]], path: Path) -> None:
    columns = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
    arrays = {
        key: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 6) if values.ndim == 2 else values
        for key, values in columns.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path)


def _link(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, place)


def _write_v21(
    recorded: RecordedSet,
    root: Path,
    joined: Path,
    tables: list[dict[str, np.ndarray]],
    stats: list[dict[str, dict[str, np.ndarray]]],
    tasks: list[str],
) -> dict[str, Any]:
    for number, (episode, table) in enumerate(zip(recorded.episodes, tables, strict=True)):
        _write_parquet([table], root / DATA_PATH.format(episode_chunk=0, episode_index=number))
        for camera in CAMERAS:
            place = VIDEO_PATH.format(episode_chunk=0, video_key=_key(camera), episode_index=number)
            _link(episode.videos[camera], root / place)
    rows = [
        {"episode_index": number, "tasks": [episode.task], "length": len(episode)}
        for number, episode in enumerate(recorded.episodes)
    ]
    _write_lines(root / "meta/episodes.jsonl", rows)
    listed = [{"task_index": number, "task": task} for number, task in enumerate(tasks)]
    _write_lines(root / "meta/tasks.jsonl", listed)
    _write_lines(
        root / "meta/episodes_stats.jsonl",
        [
            {
                "episode_index": number,
                "stats": {
                    key: {name: np.asarray(values[name]).tolist() for name in STATISTICS}
                    for key, values in found.items()
                },
            }
            for number, found in enumerate(stats)
        ],
    )
    videos = len(recorded.episodes) * len(CAMERAS)
    return {"data_path": DATA_PATH, "video_path": VIDEO_PATH, "total_chunks": 1, "total_videos": videos}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_v30(
    recorded: RecordedSet,
    root: Path,
    joined: Path,
    tables: list[dict[str, np.ndarray]],
    stats: list[dict[str, dict[str, np.ndarray]]],
    tasks: list[str],
) -> dict[str, Any]:
    import pandas as pd
    from lerobot.datasets.compute_stats import aggregate_stats
    from lerobot.datasets.io_utils import write_stats, write_tasks

    rows = []
    for file, numbers in enumerate(itertools.batched(range(len(tables)), PER_FILE)):
        place = {"chunk_index": 0, "file_index": file}
        _write_parquet([tables[number] for number in numbers], root / V30_PATHS["data_path"].format(**place))
        begin = dict.fromkeys(CAMERAS, 0.0)
        for camera in CAMERAS:
            parts = [recorded.episodes[number].videos[camera] for number in numbers]
            video = V30_PATHS["video_path"].format(video_key=_key(camera), **place)
            _link(_join(parts, joined), root / video)
        for number in numbers:
            rows.append(_row(recorded.episodes[number], number, tables[number], place, begin, recorded.fps))
            rows[-1] |= {
                f"stats/{key}/{name}": np.asarray(value).tolist()
                for key, values in stats[number].items()
                for name, value in values.items()
            }
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    index = pd.Index(tasks, name="task")
    write_tasks(pd.DataFrame({"task_index": range(len(tasks))}, index=index), root)
    write_stats(aggregate_stats(stats), root)
    return {**V30_PATHS, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200}


def _row(
    episode: Episode,
    number: int,
    table: dict[str, np.ndarray],
    place: dict[str, int],
    begin: dict[str, float],
    fps: int,
) -> dict[str, Any]:
    """One episode's row of a v3.0 list; moves `begin`, the time at which each camera's next one starts."""
    start = int(table["index"][0])
    row: dict[str, Any] = {"episode_index": number, "tasks": [episode.task], "length": len(episode)}
    row |= {f"data/{name}": value for name, value in place.items()}
    row |= {"dataset_from_index": start, "dataset_to_index": start + len(episode)}
    for camera in CAMERAS:
        end = begin[camera] + video_facts(episode.videos[camera])[0] / fps
        row |= {f"videos/{_key(camera)}/{name}": value for name, value in place.items()}
        row[f"videos/{_key(camera)}/from_timestamp"] = begin[camera]
        row[f"videos/{_key(camera)}/to_timestamp"] = end
        begin[camera] = end
    return {**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}


@priority_kept()
def _join(parts: Sequence[Path], folder: Path) -> Path:
    """One mp4 of several, not encoded again; kept in `folder` under a name that follows from the parts."""
    from lerobot.datasets.video_utils import concatenate_video_files

    name = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:20]
    path = folder / f"{name}.mp4"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{name}.{os.getpid()}.draft.mp4"
        concatenate_video_files(list(parts), draft)
        draft.rename(path)
    return path
