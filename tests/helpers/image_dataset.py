"""A dataset whose images lie in its tables: many episodes, written and read in little time."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from recordings import Recording, info_of, numbered_image


def write_images(root: Path, episodes: int, length: int = 2, size: tuple[int, int] = (64, 64)) -> Path:
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
        images = [numbered_image(index * length + frame, size) for frame in range(length)]
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
