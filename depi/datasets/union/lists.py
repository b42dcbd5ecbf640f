"""Lists of datasets that users and `depi collect-ids` write: ids as JSON, facts about each as a table."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from depi.datasets.recording.joints import GIVEN, may_be_given
from depi.errors import UserError
from depi.files import read_json

CATALOG_FILE = "catalog.parquet"
EPISODES_FILE = "episodes.parquet"


def read_id_list(path: Path) -> list[str]:
    """A JSON list of repo ids.

    Raises:
        UserError: it cannot be read, is no such list, is empty, or names an id twice.
    """
    ids = read_json(path)
    if not isinstance(ids, list) or not all(isinstance(repo_id, str) for repo_id in ids):
        raise UserError(f"{path} must hold a JSON list of repo ids")
    if not ids:
        raise UserError(f"{path} lists no dataset: collect some with `depi collect-ids`")
    seen: set[str] = set()
    for repo_id in ids:
        if repo_id in seen:
            raise UserError(f"{path} lists {repo_id} more than once")
        seen.add(repo_id)
    return ids


def read_conventions(conventions: dict[str, str] | Path) -> dict[str, str]:
    """The joint conventions that a user gives for datasets, by repo id, read from a JSON file if it is one.

    Raises:
        ValueError: the file cannot be read, or something is no convention.
    """
    try:
        content = read_json(conventions) if isinstance(conventions, Path) else conventions
    except UserError as error:
        raise ValueError(f"--dataset.conventions: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"--dataset.conventions={conventions} must hold a JSON object {{repo_id: convention}}"
        )
    for repo_id, convention in content.items():
        if not may_be_given(convention):
            raise ValueError(
                f"--dataset.conventions: {convention!r} of {repo_id} is none of {', '.join(GIVEN)}, "
                "nor two of them for action and state, as degrees/normalized"
            )
    return content


def catalogued(folder: Path, column: str) -> dict[str, Any]:
    """One column of the catalogue in a folder, by repo id, where it is known; empty without a catalogue.

    Raises:
        UserError: the catalogue is damaged.
    """
    path = folder / CATALOG_FILE
    if not path.exists():
        return {}
    try:
        table = pq.read_table(path, columns=["repo_id", column]).to_pydict()
        pairs = zip(table["repo_id"], table[column], strict=True)
    except (pa.ArrowException, OSError, ValueError, KeyError):
        raise UserError(f"{path} is damaged: collect it again with `depi collect-ids`") from None
    return {repo_id: value for repo_id, value in pairs if value is not None}


def read_bad_episodes(folder: Path) -> dict[tuple[str, str | None], dict[int, str]]:
    """The bad episodes of the datasets that the catalogue in a folder has judged; empty without a catalogue.

    Returns:
        (repo id, revision) -> recorded episode index -> its first fault.

    Raises:
        UserError: `episodes.parquet` is damaged.
    """
    path = folder / EPISODES_FILE
    if not path.exists():
        return {}
    try:
        table = pq.read_table(path, columns=["repo_id", "revision", "episode", "bad", "faults", "leaves_out"])
        judged = table.group_by(["repo_id", "revision"]).aggregate([]).to_pylist()
        found: dict[tuple[str, str | None], dict[int, str]] = {
            (row["repo_id"], row["revision"]): {} for row in judged
        }
        for row in table.filter(table["bad"]).to_pylist():
            reasons = zip(row["faults"], row["leaves_out"], strict=True)
            reason = next(fault for fault, leaves_out in reasons if leaves_out)
            found[row["repo_id"], row["revision"]][row["episode"]] = reason
    except (pa.ArrowException, OSError, ValueError, KeyError, StopIteration, TypeError):
        raise UserError(f"{path} is damaged: collect it again with `depi collect-ids`") from None
    return found
