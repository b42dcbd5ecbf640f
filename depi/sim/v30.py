"""Writing a LeRobot v3.0 dataset with LeRobot's own writer."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class V30Writer:
    """Writes a dataset under `root`, a folder that does not exist yet. The counterpart of `V21Writer`."""

    def __init__(
        self, root: Path, repo_id: str, features: Mapping[str, dict], fps: int, codec: str, robot_type: str
    ):
        from lerobot.configs import RGBEncoderConfig
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        self._dataset = LeRobotDataset.create(
            repo_id,
            fps,
            {key: dict(feature) for key, feature in features.items()},
            root=root,
            robot_type=robot_type,
            rgb_encoder=RGBEncoderConfig(vcodec=codec),
            streaming_encoding=True,
            # Its encoder drops frames when the queue is full: the queue holds any episode.
            encoder_queue_maxsize=100_000,
            encoder_threads=1,
        )

    def add_episode(
        self, columns: Mapping[str, NDArray], videos: Mapping[str, NDArray[np.uint8]], task: str
    ) -> None:
        """Write one episode: float32 (T, D) columns and uint8 (T, H, W, 3) videos by feature key."""
        for step in range(len(next(iter(columns.values())))):
            frame = {key: values[step] for key, values in {**columns, **videos}.items()}
            self._dataset.add_frame({**frame, "task": task})
        self._dataset.save_episode()

    def finalize(self) -> None:
        """Close the files; the dataset is complete afterwards."""
        self._dataset.finalize()

    def abandon(self) -> None:
        """Stop the encoders and close the files, so that the folder can be deleted."""
        if self._dataset.writer is not None:
            self._dataset.writer.cancel_pending_videos()
        self._dataset.finalize()
