"""A recorded dataset to the Hub, so that LeRobot, the Hub's viewer and `depi collect-ids` find it."""

import re
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from depi.datasets.recording.formats import DatasetInfo, parse_info
from depi.errors import DatasetError, UserError
from depi.files import read_json
from depi.hub.client.api import upload_folder

INFO = Path("meta", "info.json")
PARTS = ("meta", "data", "videos")


def publish_dataset(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a LeRobot dataset with a card, and tag it with the version of its format.

    LeRobot loads a dataset of the Hub by that tag and refuses one without it; `hf upload` sets none. A card
    in the folder is published as it is.

    Returns:
        The sha of the commit.

    Raises:
        UserError: it is no complete dataset, or as for `upload_folder`.
    """
    info = check_whole(folder)
    with tempfile.TemporaryDirectory(prefix="depi-upload-") as name:
        staged = Path(name)
        for path in (path for part in PARTS for path in (folder / part).rglob("*") if path.is_file()):
            link = staged / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        if (folder / "README.md").is_file():
            (staged / "README.md").symlink_to((folder / "README.md").resolve())
        else:
            _write_card(staged, info)
        return upload_folder(
            staged,
            repo_id,
            repo_type="dataset",
            commit_message=f"Upload {info.total_episodes} episodes",
            private=private,
            tag=info.version,
        )


def check_whole(folder: Path) -> DatasetInfo:
    """The checked `meta/info.json` of a dataset whose tables are there and closed.

    Raises:
        UserError: something is missing, or recording was cut off in the middle of a file.
    """
    try:
        info = parse_info(read_json(folder / INFO))
    except DatasetError as error:
        raise UserError(f"{folder} is no LeRobot dataset: {error}") from None
    tables = sorted(path for part in ("meta", "data") for path in (folder / part).rglob("*.parquet"))
    if not any(path.is_relative_to(folder / "data") for path in tables):
        raise UserError(f"{folder} has no episodes: there is no table in {folder / 'data'}")
    for path in tables:
        try:
            pq.read_metadata(path)
        except (pa.ArrowInvalid, OSError):
            raise UserError(
                f"{path} is cut off, as when a recording was killed: record again, or go on with "
                "lerobot-record --resume=true"
            ) from None
    return info


def _write_card(folder: Path, info: DatasetInfo) -> None:
    """LeRobot's card, with the robot among its tags, by which `depi collect-ids` searches."""
    from lerobot.datasets.utils import create_lerobot_dataset_card

    robot = info.robot_type or ""
    arm = re.search(r"so[-_]?10[01]", robot, re.IGNORECASE)
    tags = [robot, *([re.sub(r"[-_]", "", arm.group().lower())] if arm else [])]
    card = create_lerobot_dataset_card(tags=[tag for tag in dict.fromkeys(tags) if tag])
    card.save(folder / "README.md")
