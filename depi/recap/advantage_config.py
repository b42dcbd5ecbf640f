"""The flags of `depi advantage`."""

from dataclasses import dataclass, field
from pathlib import Path

from depi.flags import check_ranges
from depi.recap.values import GROUP
from depi.training.config import DatasetConfig


@dataclass
class ValueNetworkConfig:
    """The value network that judges the frames."""

    # A checkpoint of `--policy.type=value`: folder, or USER/NAME on the Hub.
    path: str | None = None
    # Branch, tag or commit on the Hub.
    revision: str | None = None
    # By default all GPUs, or the CPU where there are none.
    device: str | None = None


@dataclass
class AdvantageFlags:
    """Label frames that are better than expected: depi advantage --policy.path=VALUE --dataset.mixture=FILE.

    Writes, for every dataset, a table of value, return, advantage and indicator by frame, and advantages.json
    with the threshold and settings; train with --advantage.mode=use --advantage.path=FOLDER.

    Data:    --num_datasets=N, --dataset.repo_ids=FILE.json, --dataset.mixture=FILE.yaml or
             --dataset.repo_id=USER/NAME, as for training
    The same command again continues an interrupted run; with another share or look_ahead the computed values
    are reused.
    """

    policy: ValueNetworkConfig = field(default_factory=ValueNetworkConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    num_datasets: int | None = None
    # The folder of the tables; by default outputs/advantages/ and a name made from network and data.
    output_dir: Path | None = None
    # Frames from a frame to the one whose value is compared with it (N_steps_look_ahead).
    look_ahead: int = 50
    # Share of all frames whose advantage is above the threshold.
    share: float = 0.3
    # A threshold for each task text, instead of one for all frames.
    per_task: bool = False
    # Label frames in which a human intervened as positive for any advantage, in addition to the share.
    force_interventions: bool = True
    # Clamp returns below -1, of episodes longer than the network's reward_normalizer allows, to -1.
    clamp: bool = False
    # Frames loaded together; the values do not depend on it.
    batch_size: int = 64
    # Processes; 0: two for each GPU, or one per core.
    workers: int = 0
    # Frames after which a process writes its values to a file.
    part_frames: int = 2048

    def __post_init__(self) -> None:
        check_ranges(self, look_ahead=(1, None), share=(0, 1), workers=(0, 1024))
        for name in ("batch_size", "part_frames"):
            if getattr(self, name) < GROUP or getattr(self, name) % GROUP:
                raise ValueError(f"--{name} must be a multiple of {GROUP}, not {getattr(self, name)}")
