"""Small real datasets: v3.0 by LeRobot's own writer, v2.0 and v2.1 in the published layout."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from depi.datasets.recording.joints import JOINTS
from depi.priority import priority_kept

NAMES = [f"{joint}.pos" for joint in JOINTS]
REAL = Path(__file__).parents[3] / "shared" / "real"
BLOCK = 16


@dataclass
class Recording:
    """What a dataset is written from: `lengths` frames per episode, joints in degrees by default."""

    lengths: tuple[int, ...] = (7, 5)
    fps: int = 10
    cameras: tuple[str, ...] = ("observation.images.front", "observation.images.wrist")
    names: list[str] | None = field(default_factory=lambda: list(NAMES))
    tasks: tuple[str, ...] = ("pick the cube", "drop the cube")
    dim: int = 6
    seed: int = 0
    size: tuple[int, int] = (48, 64)

    def joints(self, episode: int) -> tuple[np.ndarray, np.ndarray]:
        """Action and state float32 [n, dim]: slow waves, as an arm moves; wrist_roll beyond 100 degrees."""
        rng = np.random.default_rng((self.seed, episode))
        size, rate, phase = (
            rng.uniform(*span, self.dim) for span in ((20, 55), (0.05, 0.12), (0, 2 * np.pi))
        )
        action = size * np.sin(phase + rate * np.arange(self.lengths[episode])[:, None])
        if self.dim == 6:
            action[:, 5] = np.abs(action[:, 5])
            action[:, 1] = action[:, 1] / 3 - 50  # no pose of before the zeros were changed
            action[:, 4] = action[:, 4] / 4 + 120
        return action.astype(np.float32), (action * 0.98).astype(np.float32)

    def task(self, episode: int) -> str:
        return self.tasks[episode % len(self.tasks)]

    def image(self, camera: str, episode: int, frame: int) -> np.ndarray:
        return numbered_image(self.cameras.index(camera) * 1000 + episode * 100 + frame, self.size)


def numbered_image(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """uint8 [H, W, 3] whose blocks are the bits of a number: readable after any compression."""
    rows, columns = size[0] // BLOCK, size[1] // BLOCK
    bits = [(number >> bit) & 1 for bit in range(rows * columns)]
    grey = np.array(bits, np.uint8).reshape(rows, columns) * 200 + 20
    return np.repeat(grey.repeat(BLOCK, 0).repeat(BLOCK, 1)[:, :, None], 3, axis=2)


def number_in(image) -> int:
    """The number in a decoded image, uint8 [3, H, W], of the size it was made in."""
    centres = np.asarray(image)[0, BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK]
    return sum(1 << bit for bit, value in enumerate(centres.flatten()) if value > 120)


@priority_kept()
def write_video(
    path: Path, images: list[np.ndarray], fps: float, codec: str = "h264", **options: str
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    av.logging.set_level(av.logging.ERROR)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "4", **options})
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def info_of(recording: Recording, version: str) -> dict:
    frames = sum(recording.lengths)
    vector = {"dtype": "float32", "shape": [recording.dim], "names": recording.names}
    video = {"dtype": "video", "shape": [*recording.size, 3], "names": ["height", "width", "channels"]}
    scalar = {"dtype": "int64", "shape": [1], "names": None}
    return {
        "codebase_version": version,
        "robot_type": "so100",
        "total_episodes": len(recording.lengths),
        "total_frames": frames,
        "total_tasks": len(recording.tasks),
        "total_videos": len(recording.lengths) * len(recording.cameras),
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": recording.fps,
        "splits": {"train": f"0:{len(recording.lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "action": vector,
            "observation.state": vector,
            **dict.fromkeys(recording.cameras, video),
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), scalar),
        },
    }


def write_v2(
    root: Path,
    recording: Recording,
    version: str = "v2.1",
    indices: tuple[int, ...] | None = None,
    codec: str = "h264",
    **video: str,
) -> Path:
    """The published v2 layout; `indices` are the recorded episode indices, with gaps if need be."""
    indices = indices or tuple(range(len(recording.lengths)))
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info_of(recording, version)))
    tasks = [{"task_index": index, "task": task} for index, task in enumerate(recording.tasks)]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tasks))
    episodes = [
        {"episode_index": index, "tasks": [recording.task(episode)], "length": recording.lengths[episode]}
        for episode, index in enumerate(indices)
    ]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in episodes))
    start = 0
    for episode, index in enumerate(indices):
        length = recording.lengths[episode]
        action, state = recording.joints(episode)
        table = pa.table(
            {
                "action": pa.array(list(action), pa.list_(pa.float32())),
                "observation.state": pa.FixedSizeListArray.from_arrays(state.flatten(), recording.dim),
                "timestamp": pa.array(np.arange(length) / recording.fps, pa.float32()),
                "frame_index": np.arange(length),
                "episode_index": np.full(length, index),
                "index": np.arange(start, start + length),
                "task_index": np.full(length, recording.tasks.index(recording.task(episode))),
                "undeclared": np.zeros(length),
            }
        )
        path = root / f"data/chunk-{index // 1000:03d}/episode_{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        for camera in recording.cameras:
            images = [recording.image(camera, episode, frame) for frame in range(length)]
            file = root / f"videos/chunk-{index // 1000:03d}/{camera}/episode_{index:06d}.mp4"
            write_video(file, images, recording.fps, codec, **video)
        start += length
    return root


def write_v3(root: Path, recording: Recording, use_videos: bool = True) -> Path:
    """LeRobot's own writer."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    vector = {"dtype": "float32", "shape": (recording.dim,), "names": recording.names}
    image = {
        "dtype": "video" if use_videos else "image",
        "shape": (*recording.size, 3),
        "names": ["height", "width", "channels"],
    }
    dataset = LeRobotDataset.create(
        "someone/something",
        fps=recording.fps,
        root=root,
        robot_type="so101_follower",
        use_videos=use_videos,
        features={
            "action": vector,
            "observation.state": vector,
            **dict.fromkeys(recording.cameras, image),
        },
    )
    for episode, length in enumerate(recording.lengths):
        action, state = recording.joints(episode)
        for frame in range(length):
            row = {
                "action": action[frame],
                "observation.state": state[frame],
                "task": recording.task(episode),
            }
            row |= {camera: recording.image(camera, episode, frame) for camera in recording.cameras}
            dataset.add_frame(row)
        with priority_kept():
            dataset.save_episode()
    dataset.finalize()
    return root


def share_video(
    root: Path, recording: Recording, stored: tuple[int, int], fps: float, place: tuple[list[float], ...]
) -> None:
    """Give a v3.0 dataset videos with `stored` frames of each episode; `place` is from, to."""
    (table,) = (root / "meta/episodes").rglob("*.parquet")
    rows = pq.read_table(table)
    for key in recording.cameras:
        images = [
            recording.image(key, episode, frame) for episode in (0, 1) for frame in range(stored[episode])
        ]
        (video,) = (root / "videos" / key).rglob("*.mp4")
        write_video(video, images, fps)
        for name, values in zip(("from_timestamp", "to_timestamp"), place, strict=False):
            column = rows.column_names.index(f"videos/{key}/{name}")
            rows = rows.set_column(column, rows.column_names[column], pa.array(values, pa.float64()))
    pq.write_table(rows, table)
