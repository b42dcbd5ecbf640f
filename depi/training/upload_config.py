"""The flags of `depi upload`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class UploadConfig:
    """Publish a checkpoint or a recorded dataset: depi upload FOLDER USER/NAME.

    A dataset is tagged with the version of its format, without which LeRobot does not load it (`hf upload`
    sets none), and gets a card. Of a checkpoint the commit is tagged with its step, such as step-000200, so
    that every checkpoint published to the same repository can be loaded: --policy.path=USER/NAME with
    --policy.pretrained_revision=step-000200.
    """

    # A run (its last checkpoint is taken), a checkpoint, or its pretrained_model folder; or a dataset.
    folder: Path
    repo_id: str
    # Create the repository private. One that is public already is refused.
    private: bool = False
    # The name of the commit; step-<step> if null.
    tag: str | None = None
    # Of a run with --ema.decay: raw, the weights as they are trained, or ema, their average; null for what
    # pretrained_model holds.
    weights: str | None = None
    # Upload the training state too, from which --resume=true --config_path=USER/NAME continues.
    all: bool = False
    # The eval.json of `depi eval`, for the model card; null for one that lies in the checkpoint.
    eval: Path | None = None

    def __post_init__(self) -> None:
        if self.weights not in (None, "raw", "ema"):
            raise ValueError(f"--weights={self.weights} is neither raw nor ema")
        if self.weights and self.all:
            raise ValueError("--all publishes a checkpoint as it is: leave out --weights")
