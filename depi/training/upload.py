"""`depi upload`: a checkpoint to the Hub, with its model card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from depi.errors import UserError
from depi.flags import parse_flags
from depi.hub.client import upload_folder
from depi.policies import resolve_checkpoint

REQUIRED = (
    "config.json",
    "model.safetensors",
    "policy_preprocessor.json",
    "policy_postprocessor.json",
    "README.md",
)


@dataclass
class UploadConfig:
    """Publish a checkpoint: depi upload RUN_OR_CHECKPOINT USER/NAME."""

    # A run (its last checkpoint is taken), a checkpoint, or its pretrained_model folder.
    checkpoint: Path
    repo_id: str
    private: bool = False
    # Also name the commit by this tag.
    tag: str | None = None


def find_pretrained_model(path: Path) -> Path:
    """Return the folder of weights inside a run, a checkpoint, or the folder itself.

    Raises:
        UserError: there is none, or it is not complete.
    """
    if not path.is_dir():
        raise UserError(f"{path} is neither a run, nor a checkpoint, nor a pretrained_model folder")
    folder = resolve_checkpoint(path)
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is not a complete checkpoint: {', '.join(missing)} missing")
    return folder.resolve()


def upload(config: UploadConfig) -> str:
    """Upload the checkpoint and return the commit sha.

    Raises:
        UserError: not a complete checkpoint, no write token, no such user, Hub unreachable.
    """
    folder = find_pretrained_model(config.checkpoint)
    step = folder.parent.name
    return upload_folder(
        folder,
        config.repo_id,
        repo_type="model",
        commit_message=f"Upload checkpoint {step}" if step.isdigit() else "Upload checkpoint",
        private=config.private,
        tag=config.tag,
    )


def main(args: Sequence[str]) -> int:
    """Run the `depi upload` verb."""
    config = parse_flags(UploadConfig, args, "depi upload", positionals=("checkpoint", "repo_id"))
    revision = upload(config)
    print(f"{config.repo_id}@{revision}")
    return 0
