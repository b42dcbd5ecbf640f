"""Small real datasets in the published layouts, and a way to publish them on the embedded Hub."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi

from depi.datasets.recording.joints import JOINTS

Columns = dict[str, np.ndarray]


def tiny_mp4(frames: int = 10) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            image = np.full((48, 64, 3), 5 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_columns(path: Path, columns: Columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: pa.array(list(values)) if values.ndim == 2 else pa.array(values)
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), path)


def motion(frames: int, seed: int, width: int) -> np.ndarray:
    """Smooth normalised joints, float32 [frames, width]; the elbow rests at its stop, as real ones do."""
    random = np.random.default_rng(seed)
    phase, size = random.uniform(0, 6, width), random.uniform(20, 60, width)
    values = size * np.sin(np.linspace(0, 4, frames)[:, None] + phase)
    values[:, -1] = 50 + values[:, -1] / 2
    values[:, min(2, width - 1)] = np.clip(130 * np.sin(np.linspace(0.3, 2.8, frames)), None, 100)
    return values.astype(np.float32)


def write_dataset(
    folder: Path,
    *,
    version: str = "v2.1",
    seed: int = 0,
    episodes: int = 2,
    length: int = 40,
    cameras: tuple[str, ...] = ("front",),
    task: str = "Pick up the cube.",
    width: int = 6,
    poison: Callable[[Columns], None] | None = None,
    **info: Any,
) -> Path:
    """Write a dataset; `poison` changes the columns of each episode, `info` fields of meta/info.json."""
    names = [f"{joint}.pos" for joint in JOINTS] if width == 6 else None
    vector = {"dtype": "float32", "shape": [width], "names": names}
    index = {"dtype": "int64", "shape": [1], "names": None}
    camera = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    features = {
        "action": vector,
        "observation.state": vector,
        **{f"observation.images.{name}": camera for name in cameras},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), index),
    }
    template = (
        (
            "chunk-{chunk_index:03d}/file-{file_index:03d}",
            "{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}",
        )
        if version == "v3.0"
        else (
            "chunk-{episode_chunk:03d}/episode_{episode_index:06d}",
            "chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}",
        )
    )
    declared = {
        "codebase_version": version,
        "robot_type": "so101_follower",
        "fps": 30,
        "total_episodes": episodes,
        "total_frames": episodes * length,
        "chunks_size": 1000,
        "data_path": f"data/{template[0]}.parquet",
        "video_path": f"videos/{template[1]}.mp4",
        "splits": {"train": f"0:{episodes}"},
        "features": features,
        **info,
    }
    tables = []
    for episode in range(episodes):
        action = motion(length, 100 * seed + episode, width)
        columns = {
            "action": action,
            "observation.state": action + np.float32(0.25) * (np.abs(action) < 99),
            "timestamp": (np.arange(length) / 30).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, episode),
            "index": episode * length + np.arange(length),
            "task_index": np.zeros(length, np.int64),
        }
        if poison is not None:
            poison(columns)
        tables.append(columns)
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(declared))
    keys = [f"observation.images.{name}" for name in cameras]
    (_write_v3 if version == "v3.0" else _write_v2)(folder, tables, length, keys, task)
    return folder


def _write_v2(folder: Path, tables: list[Columns], length: int, keys: list[str], task: str) -> None:
    rows = [{"episode_index": e, "tasks": [task], "length": length} for e in range(len(tables))]
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": task}) + "\n")
    for episode, columns in enumerate(tables):
        write_columns(folder / f"data/chunk-000/episode_{episode:06d}.parquet", columns)
        for key in keys:
            video = folder / f"videos/chunk-000/{key}/episode_{episode:06d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            video.write_bytes(tiny_mp4())


def _write_v3(folder: Path, tables: list[Columns], length: int, keys: list[str], task: str) -> None:
    count = len(tables)
    joined = {name: np.concatenate([columns[name] for columns in tables]) for name in tables[0]}
    write_columns(folder / "data/chunk-000/file-000.parquet", joined)
    zeros = [0] * count
    rows: dict[str, Any] = {
        "episode_index": list(range(count)),
        "tasks": [[task]] * count,
        "length": [length] * count,
        "data/chunk_index": zeros,
        "data/file_index": zeros,
        "dataset_from_index": [length * e for e in range(count)],
        "dataset_to_index": [length * (e + 1) for e in range(count)],
    }
    for key in keys:
        rows[f"videos/{key}/chunk_index"] = zeros
        rows[f"videos/{key}/file_index"] = zeros
        rows[f"videos/{key}/from_timestamp"] = [e * length / 30 for e in range(count)]
        rows[f"videos/{key}/to_timestamp"] = [(e + 1) * length / 30 for e in range(count)]
        video = folder / f"videos/{key}/chunk-000/file-000.mp4"
        video.parent.mkdir(parents=True)
        video.write_bytes(tiny_mp4(count * 10))
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(rows), folder / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0], "task": [task]}), folder / "meta/tasks.parquet")


def publish_folder(folder: Path, repo_id: str, tags: tuple[str, ...] = ("LeRobot", "so101")) -> str:
    """Upload a dataset as its author would; returns the commit."""
    api = HfApi()
    card = json.dumps({"license": "apache-2.0", "tags": list(tags)})
    (folder / "README.md").write_text(f"---\n{card}\n---\n# A dataset\n")
    api.create_repo(repo_id, repo_type="dataset", exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=folder, repo_type="dataset").oid


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    return write_dataset


@pytest.fixture(scope="session")
def publish() -> Callable[..., str]:
    return publish_folder
