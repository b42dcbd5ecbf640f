"""Small real datasets to annotate, and the command that does it."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from recordings import Recording, info_of, write_v2, write_v3

from depi.annotate.annotate import AnnotateConfig, annotate
from depi.hub.retry import RetryPolicy


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """v2.1: four episodes of two cameras, as mp4."""
    recording = Recording(lengths=(9, 12, 7, 8), tasks=("test", "pick the cube"))
    return write_v2(tmp_path_factory.mktemp("v21") / "videos", recording)


@pytest.fixture(scope="session")
def newer(tmp_path_factory) -> Path:
    """v3.0: three episodes of two cameras in one mp4 each."""
    return write_v3(tmp_path_factory.mktemp("v30") / "newer", Recording(lengths=(9, 12, 7)))


def write_images(root: Path, episodes: int, length: int = 2, size: tuple[int, int] = (32, 48)) -> Path:
    """v2.1 with one camera whose images, other ones in each episode, lie in the table."""
    camera = "observation.images.cam"
    recording = Recording(lengths=(length,) * episodes, cameras=(camera,), tasks=("test",), size=size)
    info = info_of(recording, "v2.1")
    info["features"][camera]["dtype"] = "image"
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "test"}) + "\n")
    rows = [{"episode_index": index, "tasks": ["test"], "length": length} for index in range(episodes)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    numbers = pa.array([[0.0] * 6] * length, pa.list_(pa.float32()))
    for index in range(episodes):
        colours = [(index % 251, index // 251 * 40, frame * 80) for frame in range(length)]
        images = [np.full((*size, 3), colour, np.uint8) for colour in colours]
        table = pa.table(
            {
                "action": numbers,
                "observation.state": numbers,
                camera: [{"bytes": png_of(image), "path": None} for image in images],
                "timestamp": pa.array(np.arange(length) / recording.fps, pa.float32()),
                "frame_index": np.arange(length),
                "episode_index": np.full(length, index),
                "index": np.arange(length) + index * length,
                "task_index": np.zeros(length, np.int64),
            }
        )
        path = root / f"data/chunk-{index // 1000:03d}/episode_{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    return root


def png_of(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def annotated(tmp_path, monkeypatch):
    """Annotate a local dataset into `tmp_path/out`: annotated(root, url, flag=value ...) -> Summary."""
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "depi.annotate.openai_server.ServerConfig.retries", RetryPolicy(attempts=4, first_wait=0.02)
    )

    def run(root: Path, url: str = "", **flags):
        backend = flags.pop("backend", "openai")
        config = AnnotateConfig(
            repo_id="ann/box", root=root, base_url=url, backend=backend, annotations=tmp_path / "out", **flags
        )
        return annotate(config)

    return run
