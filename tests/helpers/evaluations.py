"""What the tests of evaluations share."""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from depi.evaluation.config import EnvironmentConfig, EpisodesConfig, EvaluateConfig


@dataclass
class Arm:
    """The shape of the simulated arm's data, with a slot more than the environment has cameras."""

    state_dim: int = 6
    action_dim: int = 6
    max_cameras: int = 3
    camera_slots: tuple[str, ...] = tuple(f"observation.images.{slot}" for slot in range(3))


class Steady:
    """Acts on what it sees, without a network: half of the way to a point that depends on the chunk."""

    batch, expert_steps = 2, 0

    def fit(self, tables):
        self.tables = tables

    def act(self, observations):
        return [
            np.full((4, 2), 0.5 + 0.1 * (seen.chunk % 3) + 0.01 * seen.seen.state[0], np.float32)
            for seen in observations
        ]


def choices(folder: Path, count: int = 6, env: str = "odd_envs:Odd-v0", **more) -> EvaluateConfig:
    names = ("batch_size", "timeout", "n_videos")
    episodes = EpisodesConfig(
        n_episodes=count, **{"n_videos": 0, **{name: more.pop(name) for name in names if name in more}}
    )
    return EvaluateConfig(
        env=EnvironmentConfig(type=env, options=more), eval=episodes, output_dir=folder, seed=0
    )


def outcomes(result: dict) -> list[dict]:
    return [{name: row[name] for name in row.keys() - {"seconds"}} for row in result["episodes"]]


def pictures(video: Path) -> np.ndarray:
    """The frames of a video, int64 (frames, H, W, 3)."""
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def alike(first: Path, second: Path) -> bool:
    """Whether two videos show the same.

    x264 does not give the same bytes twice: of 400 encodings of the same noise, 45 differed, by 0.6 grey
    levels on average.
    """
    one, other = pictures(first), pictures(second)
    return one.shape == other.shape and abs(one - other).mean() < 2
