"""What `depi advantage` is configured with."""

from dataclasses import dataclass, field
from pathlib import Path

from depi.recap.values import GROUP
from depi.training.config import DatasetConfig


@dataclass
class ValueNetworkConfig:
    """The value network that judges the frames."""

    # A checkpoint of `--policy.type=value`: folder, or USER/NAME on the Hub.
    path: str | None = None
    # Branch, tag or commit on the Hub.
    revision: str | None = None
    # By default the GPUs, or the processor where there are none.
    device: str | None = None


@dataclass
class AdvantageFlags:
    """Say which frames are better than expected: depi advantage --policy.path=VALUE --dataset.mixture=FILE.

    Writes, for every dataset, a table of value, return, advantage and indicator by frame, and advantages.json
    with the threshold and settings; train with --advantage.mode=use --advantage.path=FOLDER.

    Data:    --num_datasets=N, --dataset.repo_ids=FILE.json, --dataset.mixture=FILE.yaml or
             --dataset.repo_id=USER/NAME, as for training
    An interrupted run goes on where it stopped when it is started again; another share or look_ahead takes
    the values that are there.
    """

    policy: ValueNetworkConfig = field(default_factory=ValueNetworkConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    num_datasets: int | None = None
    # Where the tables go; by default outputs/advantages/ and a name that follows from network and data.
    output_dir: Path | None = None
    # Frames after which the value network is asked again (N_steps_look_ahead).
    look_ahead: int = 50
    # Share of all frames whose advantage shall be above the threshold.
    share: float = 0.3
    # A threshold for each task text, instead of one for all frames.
    per_task: bool = False
    # Frames in which a human intervened are positive whatever their advantage, on top of the share.
    force_interventions: bool = True
    # Take returns below -1, of episodes longer than the network's reward_normalizer allows, for -1.
    clamp: bool = False
    # Frames made ready together; the numbers do not depend on it.
    batch_size: int = 64
    # Processes; 0: two for each GPU, or one per core.
    workers: int = 0
    # Frames after which a process writes down what it has.
    part_frames: int = 2048

    def __post_init__(self) -> None:
        if self.look_ahead < 1:
            raise ValueError(f"--look_ahead must be at least 1, not {self.look_ahead}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"--share must be 0 to 1, not {self.share}")
        if not 0 <= self.workers <= 1024:
            raise ValueError(f"--workers must be 0 to 1024, not {self.workers}")
        for name in ("batch_size", "part_frames"):
            if getattr(self, name) < GROUP or getattr(self, name) % GROUP:
                raise ValueError(f"--{name} must be a multiple of {GROUP}, not {getattr(self, name)}")
