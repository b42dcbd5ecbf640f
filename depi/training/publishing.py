"""A checkpoint to the Hub, with its model card."""

import tempfile
from pathlib import Path

from lerobot.utils.constants import TRAINING_STATE_DIR

from depi.errors import UserError
from depi.hub.client.api import upload_folder
from depi.policies import resolve_checkpoint
from depi.policies.checkpoint import WEIGHTS
from depi.training.card import WEIGHTS_LINES, evaluation_lines
from depi.training.checkpoint import weights_file
from depi.training.folders import ADAPTER_DIR, checkpoint_part
from depi.training.upload_config import UploadConfig

REQUIRED = (
    "config.json",
    WEIGHTS,
    "policy_preprocessor.json",
    "policy_postprocessor.json",
    "README.md",
)


def find_pretrained_model(path: Path) -> Path:
    """Return the folder of weights inside a run, a checkpoint, or the folder itself.

    Raises:
        UserError: there is none, or it is not complete.
    """
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
