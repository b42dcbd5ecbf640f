"""Writing a LeRobot v2.1 dataset: one parquet and one mp4 per camera and episode, metadata in JSON lines."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from depi.priority import priority_kept

VERSION = "v2.1"
CHUNK_SIZE = 1000
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
# v2.1 has no quantiles.
STATISTICS = ("min", "max", "mean", "std", "count")
MAX_STATS_FRAMES, STATS_WIDTH = 50, 150


class V21Writer:
    """Writes a dataset under `root`, an existing empty folder.

    Args:
        features: LeRobot features without the index columns; video features have shape (H, W, 3).
        fps: frames per second. codec: "av1" or "h264".
    """

    def __init__(self, root: Path, features: Mapping[str, dict], fps: int, codec: str, robot_type: str):
        from lerobot.configs import RGBEncoderConfig
        from lerobot.utils.constants import DEFAULT_FEATURES

        self.root = root
        self.fps = fps
        self._encoder = RGBEncoderConfig(vcodec=codec)
        self._features = {key: dict(feature) for key, feature in {**features, **DEFAULT_FEATURES}.items()}
        self._robot_type = robot_type
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._stats: list[dict[str, Any]] = []
        self._frames = 0

    @property
    def video_keys(self) -> list[str]:
        """Keys of the cameras, in order."""
        return [key for key, feature in self._features.items() if feature["dtype"] == "video"]

    def add_episode(
        self, columns: Mapping[str, NDArray], videos: Mapping[str, NDArray[np.uint8]], task: str
    ) -> None:
        """Write one episode: float32 (T, D) columns and uint8 (T, H, W, 3) videos by feature key."""
        import datasets
        from lerobot.datasets.compute_stats import compute_episode_stats
        from lerobot.datasets.feature_utils import get_hf_features_from_features

        index, length = len(self._episodes), len(next(iter(columns.values())))
        task_index = self._tasks.setdefault(task, len(self._tasks))
        frames = np.arange(length)
        table = {
            **columns,
            "timestamp": (frames / self.fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(length, index),
            "index": self._frames + frames,
            "task_index": np.full(length, task_index),
        }
        path = self.root / DATA_PATH.format(episode_chunk=index // CHUNK_SIZE, episode_index=index)
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = get_hf_features_from_features(self._features)
        datasets.Dataset.from_dict({key: table[key] for key in schema}, features=schema).to_parquet(path)

        stats = compute_episode_stats(table, self._features)
        for key, pixels in videos.items():
            place = VIDEO_PATH.format(episode_chunk=index // CHUNK_SIZE, video_key=key, episode_index=index)
            self._encode(self.root / place, pixels)
            stats[key] = _video_stats(pixels)
        self._stats.append({"episode_index": index, "stats": _plain(stats)})
        self._episodes.append({"episode_index": index, "tasks": [task], "length": length})
        self._frames += length

    def finalize(self) -> None:
        """Write the metadata; the dataset is complete afterwards."""
        from lerobot.datasets.video_utils import get_video_info

        for key in self.video_keys:
            first = self.root / VIDEO_PATH.format(episode_chunk=0, video_key=key, episode_index=0)
            info = get_video_info(first)
            self._features[key]["info"] = {**info, "video.is_depth_map": info.pop("is_depth_map")}
        count = len(self._episodes)
        info = {
            "codebase_version": VERSION,
            "robot_type": self._robot_type,
            "total_episodes": count,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "total_videos": count * len(self.video_keys),
            "total_chunks": (count + CHUNK_SIZE - 1) // CHUNK_SIZE,
            "chunks_size": CHUNK_SIZE,
            "fps": self.fps,
            "splits": {"train": f"0:{count}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.video_keys else None,
            "features": self._features,
        }
        meta = self.root / "meta"
        meta.mkdir()
        (meta / "info.json").write_text(json.dumps(info, indent=4) + "\n", encoding="utf-8")
        tasks = [{"task_index": index, "task": task} for task, index in self._tasks.items()]
        _write_lines(meta / "tasks.jsonl", tasks)
        _write_lines(meta / "episodes.jsonl", self._episodes)
        _write_lines(meta / "episodes_stats.jsonl", self._stats)

    def abandon(self) -> None:
        """Do nothing: no file is open between two calls, so the folder can be deleted at any time."""

    @priority_kept()
    def _encode(self, path: Path, pixels: NDArray[np.uint8]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = self._encoder.get_codec_options(encoder_threads=1, as_strings=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(self._encoder.vcodec, self.fps, options=options)
            stream.pix_fmt = self._encoder.pix_fmt
            stream.height, stream.width = pixels.shape[1:3]
            for image in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())


def _video_stats(pixels: NDArray[np.uint8]) -> dict[str, NDArray]:
    """Per-channel statistics in 0..1 of frames spread over the episode, each of shape (3, 1, 1)."""
    from lerobot.datasets.compute_stats import get_feature_stats

    chosen = np.linspace(0, len(pixels) - 1, min(len(pixels), MAX_STATS_FRAMES)).astype(int)
    stride = max(1, pixels.shape[2] // STATS_WIDTH)
    images = pixels[chosen, ::stride, ::stride].transpose(0, 3, 1, 2)
    stats = get_feature_stats(images, axis=(0, 2, 3), keepdims=True)
    return {name: value if name == "count" else value[0] / 255.0 for name, value in stats.items()}


def _plain(stats: Mapping[str, Mapping[str, NDArray]]) -> dict[str, dict[str, Any]]:
    return {
        key: {name: np.asarray(values[name]).tolist() for name in STATISTICS} for key, values in stats.items()
    }


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
