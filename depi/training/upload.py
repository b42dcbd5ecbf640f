"""`depi upload`: a checkpoint to the Hub, with its model card; or a recorded dataset."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lerobot.utils.constants import TRAINING_STATE_DIR

from depi.datasets.recording.publish import INFO, publish_dataset
from depi.errors import UserError
from depi.flags import parse_flags
from depi.hub.client.api import upload_folder
from depi.policies import resolve_checkpoint
from depi.policies.checkpoint import WEIGHTS
from depi.training.card import WEIGHTS_LINES, evaluation_lines
from depi.training.checkpoint import EMA, RAW, weights_file
from depi.training.folders import ADAPTER_DIR, check_checkpoint, checkpoint_part

REQUIRED = (
    "config.json",
    WEIGHTS,
    "policy_preprocessor.json",
    "policy_postprocessor.json",
    "README.md",
)


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
        if self.weights not in (None, RAW, EMA):
            raise ValueError(f"--weights={self.weights} is neither {RAW} nor {EMA}")
        if self.weights and self.all:
            raise ValueError("--all publishes a checkpoint as it is: leave out --weights")


def find_pretrained_model(path: Path) -> Path:
    """Return the folder of weights inside a run, a checkpoint, or the folder itself.

    Raises:
        UserError: there is none, or it is not complete.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} is neither a run, a checkpoint or its pretrained_model folder, nor a dataset"
        )
    folder = resolve_checkpoint(path)
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is not a complete checkpoint: {', '.join(missing)} missing")
    return folder.resolve()


def publish(config: UploadConfig) -> str:
    """Upload a checkpoint, named by its `pretrained_model` folder, and return the commit sha.

    Raises:
        UserError: there is no average or no training state to publish, no write token, no such user, a
            public repository with `private`, or the Hub is unreachable.
    """
    pretrained = config.folder
    step = pretrained.parent.name
    with tempfile.TemporaryDirectory(prefix="depi-upload-") as name:
        staged = Path(name)
        _link_files(pretrained, staged)
        card = (pretrained / "README.md").read_text(encoding="utf-8")
        if config.weights is not None:
            (staged / WEIGHTS).unlink()
            (staged / WEIGHTS).symlink_to(weights_file(pretrained, config.weights).resolve())
            for line in WEIGHTS_LINES.values():
                card = card.replace(line, WEIGHTS_LINES[config.weights])
        if config.all:
            _link_state(pretrained, staged)
        if evaluation := config.eval or _find_evaluation(pretrained):
            card += "\n".join(evaluation_lines(evaluation)) + "\n"
        (staged / "README.md").unlink()
        (staged / "README.md").write_text(card, encoding="utf-8")
        return upload_folder(
            staged,
            config.repo_id,
            repo_type="model",
            commit_message=f"Upload checkpoint {step}" if step.isdigit() else "Upload checkpoint",
            private=config.private,
            tag=config.tag or (f"step-{step}" if step.isdigit() else None),
        )


def _publish_dataset(config: UploadConfig) -> str:
    for flag, given in {
        "--tag": config.tag,
        "--weights": config.weights,
        "--all": config.all,
        "--eval": config.eval,
    }.items():
        if given:
            raise UserError(f"{flag} is for checkpoints, and {config.folder} is a dataset: leave it out")
    return publish_dataset(config.folder, config.repo_id, private=config.private)


def _link_files(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).symlink_to(path.resolve())


def _link_state(pretrained: Path, staged: Path) -> None:
    for part in (TRAINING_STATE_DIR, ADAPTER_DIR):
        folder = checkpoint_part(pretrained, part)
        if folder.is_dir():
            _link_files(folder, staged / part)
    if not (staged / TRAINING_STATE_DIR).is_dir():
        raise UserError(f"{pretrained.parent} has no {TRAINING_STATE_DIR}: leave out --all")


def _find_evaluation(pretrained: Path) -> Path | None:
    for folder in (pretrained, pretrained.parent):
        if (folder / "eval.json").is_file():
            return folder / "eval.json"
    return None


def main(args: Sequence[str]) -> int:
    """Run the `depi upload` verb."""
    config = parse_flags(UploadConfig, args, "depi upload", positionals=("folder", "repo_id"))
    if (config.folder / INFO).is_file():
        print(f"{config.repo_id}@{_publish_dataset(config)}")
        return 0
    config.folder = find_pretrained_model(config.folder)
    if config.all:
        check_checkpoint(config.folder)
    print(f"{config.repo_id}@{publish(config)}")
    return 0
