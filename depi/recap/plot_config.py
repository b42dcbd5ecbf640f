"""The flags of `depi value plot`."""

from dataclasses import dataclass, field
from pathlib import Path

from depi.flags import check_ranges
from depi.recap.advantage_config import ValueNetworkConfig
from depi.training.config import DatasetConfig


@dataclass
class ValuePlotConfig:
    """Draw the value of every frame of an episode: depi value plot --policy.path=VALUE --dataset.repo_id=NAME

    Writes NAME_episode_NUMBER.png, frames of every camera above the curve, and .mp4, in which the curve grows
    under the video. Where the episode's success is known, the true return is drawn beside it.
    """

    policy: ValueNetworkConfig = field(default_factory=ValueNetworkConfig)
    # Cameras, joint convention and tasks are read as in the network's training.
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    # As recorded.
    episode: int = 0
    # A folder.
    output: Path = Path("outputs/value")
    # Of the cameras in the mp4, in pixels.
    height: int = 240

    def __post_init__(self) -> None:
        check_ranges(self, episode=(0, None), height=(16, 2160))
