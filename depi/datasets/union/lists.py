"""Lists of datasets that users and `depi collect-ids` write: ids as JSON, facts about each as a table."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from depi.datasets.recording.checks import short
from depi.datasets.recording.joints import GIVEN, may_be_given
from depi.errors import UserError
from depi.files import read_json

CATALOG_FILE = "catalog.parquet"
EPISODES_FILE = "episodes.parquet"
MAX_NAME = 2000


def read_id_list(path: Path) -> list[str]:
    """A JSON list of repo ids.

    Raises:
        UserError: it cannot be read, is no such list, is empty, names an id twice, or holds what cannot be
            printed.
    """
    ids = read_json(path)
    if not isinstance(ids, list) or not all(isinstance(repo_id, str) for repo_id in ids):
        raise UserError(f"{path} must hold a JSON list of repo ids")
    if not ids:
        raise UserError(f"{path} lists no dataset: collect some with `depi collect-ids`")
    seen: set[str] = set()
    for repo_id in ids:
        # Other names that are none fail when their dataset is opened, and cost the others nothing.
        if not repo_id.isprintable() or len(repo_id) > MAX_NAME:
            raise UserError(f"{path} names {short(repo_id)}, which is no name of a dataset: take it out")
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


def read_columns(path: Path, schema: pa.Schema, remedy: str, optional: Collection[str] = ()) -> pa.Table:
    """Columns of a parquet file that may be somebody else's, and so hold anything; its metadata stays.

    Args:
        path: of the file.
        schema: the columns to read; values are converted to their types where nothing is lost.
        remedy: what to do about a file that cannot be read, for the message.
        optional: columns that are None throughout where the file lacks them.

    Raises:
        UserError: it is no such file.
    """
    try:
        lacking = set(schema.names) - set(pq.read_schema(path).names)
        if lacking - set(optional):
            raise ValueError(f"there is no column {min(lacking - set(optional))}")
        there = [name for name in schema.names if name not in lacking]
        table = pq.read_table(path, columns=there, partitioning=None)
        columns = [
            pa.nulls(len(table), field.type) if field.name in lacking else table[field.name].cast(field.type)
            for field in schema
        ]
        found = pa.table(columns, schema=schema.with_metadata(table.schema.metadata))
        found.validate(full=True)  # of texts, that they are UTF-8
        return found
    # A name of a column that is no text is a ValueError.
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({short(str(error))}): {remedy}") from None


_REMEDY = "collect it again with `depi collect-ids`"
_TYPES = {"revision": pa.string(), "score": pa.float64()}


def catalogued(folder: Path, column: str) -> dict[str, Any]:
    """One column of the catalogue in a folder, by repo id, where it is known; empty without a catalogue.

    Raises:
        UserError: the catalogue is damaged.
    """
    path = folder / CATALOG_FILE
    if not path.exists():
        return {}
    schema = pa.schema({"repo_id": pa.string(), column: _TYPES[column]})
    table = read_columns(path, schema, _REMEDY).to_pydict()
    pairs = zip(table["repo_id"], table[column], strict=True)
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
    schema = pa.schema(
        {
            **{"repo_id": pa.string(), "revision": pa.string(), "episode": pa.int64(), "bad": pa.bool_()},
            **{"faults": pa.list_(pa.string()), "leaves_out": pa.list_(pa.bool_())},
        }
    )
    table = read_columns(path, schema, _REMEDY)
    judged = table.group_by(["repo_id", "revision"]).aggregate([]).to_pylist()
    found: dict[tuple[str, str | None], dict[int, str]] = {
        (row["repo_id"], row["revision"]): {} for row in judged
    }
    for row in table.filter(table["bad"]).to_pylist():
        try:
            reasons = zip(row["faults"], row["leaves_out"], strict=True)
            reason = next(fault for fault, leaves_out in reasons if leaves_out)
        except (ValueError, StopIteration, TypeError):
            raise UserError(f"{path} is damaged, a bad episode has no fault: {_REMEDY}") from None
        if reason is not None and row["episode"] is not None:
            found[row["repo_id"], row["revision"]][row["episode"]] = reason
    return found
