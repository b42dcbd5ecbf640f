"""`depi upload`: a checkpoint to the Hub, with its model card; or a recorded dataset."""

from collections.abc import Sequence

from depi.datasets.recording.publish import INFO, publish_dataset
from depi.errors import UserError
from depi.flags import parse_flags
from depi.training.upload_config import UploadConfig


def main(args: Sequence[str]) -> int:
    """Run the `depi upload` verb."""
    config = parse_flags(UploadConfig, args, "depi upload", positionals=("folder", "repo_id"))
    if (config.folder / INFO).is_file():
        print(f"{config.repo_id}@{_publish_dataset(config)}")
        return 0
    if not config.folder.is_dir():
        raise UserError(
            f"{config.folder} is neither a run, a checkpoint or its pretrained_model folder, nor a dataset"
        )
    # Slow imports, which datasets and mistakes do without.
    from depi.training.folders import check_checkpoint
    from depi.training.publishing import find_pretrained_model, publish

    config.folder = find_pretrained_model(config.folder)
    if config.all:
        check_checkpoint(config.folder)
    print(f"{config.repo_id}@{publish(config)}")
    return 0


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
