"""The catalogue on disk: `catalog.parquet`, and beside it the verdicts per episode and three lists of ids."""

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from depi.catalog.episodes import are_verdicts, episodes_table
from depi.datasets.recording.checks import short
from depi.datasets.union.lists import CATALOG_FILE, EPISODES_FILE, read_columns
from depi.errors import UserError, machine_error
from depi.files import atomic_write

ACCEPTED, REJECTED, FAILED = "accepted", "rejected", "failed"

CANDIDATES_FILE = "dataset_list.json"
VALID_FILE = "dataset_list_valid.json"
BAD_FILE = "bad_dataset_ids.json"
CATALOG_FILES = (CANDIDATES_FILE, VALID_FILE, BAD_FILE, EPISODES_FILE, CATALOG_FILE)

_ARROW_TYPES = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.binary(),
    datetime: pa.timestamp("us", tz="UTC"),
    list[str]: pa.list_(pa.string()),
    list[float]: pa.list_(pa.float64()),
}


@dataclass
class Row:
    """One candidate with its verdict; None where a value was not measured. All text is bounded and printable.

    repo_id: the id to train with, "user/name", or "user/name:path/inside" for a dataset of a collection
    verdict: "accepted", "rejected" (a rule says why in `reasons`) or "failed" (could not be inspected)
    path: the dataset's folder inside a collection, else None
    reasons, flags: "rule: sentence"; flags are remarks on datasets that passed
    camera_sizes: declared "WIDTHxHEIGHT" of each of `cameras`
    tasks: the first distinct task texts; num_tasks is the number of all
    bimanual, evaluation: whether two arms, or the runs of a policy, were recorded
    success_column: the column in which success or reward is declared, if any
    action_min, action_max, action_q01, action_q99: 6 numbers, joint by joint in the order of
        `JOINTS`; degrees (gripper 0..100) where the convention is known, else as
        recorded
    motion, smoothness, idle, lag, follow, gripper_range: see `depi.catalog.motion.Motion`
    offsets: 6 numbers, command minus measured position of each joint, in degrees and 0..100, beyond what lag
        and gravity explain, see `depi.datasets.judging.offsets`; 0 where it could not be measured
    fingerprint: of the action columns; equal actions have equal fingerprints
    episode_hashes, landmark_hashes: packed little-endian, uint64 per episode and uint32 per landmark, see
        `depi.catalog.duplicates`
    duplicate_of: repo_id of the accepted original with the same episodes
    near_duplicate_of: the same, where the episodes were trimmed, rounded or converted
    judged: the verdict on each episode, packed; `episodes.parquet` has the same, a row for each
    bad_episodes, good_frames, num_remarks: how many episodes training leaves out by default, how many frames
        the others have, and how many remarks there are on single episodes
    score: 0..1 for accepted datasets, see `depi.catalog.score`
    """

    repo_id: str
    verdict: str
    path: str | None = None
    revision: str | None = None
    codebase_version: str | None = None
    robot_type: str | None = None
    joint_convention: str | None = None
    joint_evidence: str | None = None
    fps: float | None = None
    cameras: list[str] | None = None
    num_cameras: int | None = None
    camera_sizes: list[str] | None = None
    episodes: int | None = None
    frames: int | None = None
    tasks: list[str] | None = None
    num_tasks: int | None = None
    bimanual: bool | None = None
    evaluation: bool | None = None
    success_column: str | None = None
    license: str | None = None
    gated: bool | None = None
    downloads: int | None = None
    likes: int | None = None
    created_at: datetime | None = None
    last_modified: datetime | None = None
    action_min: list[float] | None = None
    action_max: list[float] | None = None
    action_q01: list[float] | None = None
    action_q99: list[float] | None = None
    motion: float | None = None
    smoothness: float | None = None
    idle: float | None = None
    lag: float | None = None
    follow: float | None = None
    gripper_range: float | None = None
    offsets: list[float] | None = None
    fingerprint: str | None = None
    episode_hashes: bytes | None = field(default=None, repr=False)
    landmark_hashes: bytes | None = field(default=None, repr=False)
    duplicate_of: str | None = None
    near_duplicate_of: str | None = None
    judged: str | None = field(default=None, repr=False)
    bad_episodes: int | None = None
    good_frames: int | None = None
    num_remarks: int | None = None
    score: float | None = None
    reasons: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    checked_at: datetime | None = None
    rules_version: str | None = None


def column_types() -> dict[str, Any]:
    """The columns of the catalogue: field of Row -> its Python type, None left out."""
    return {
        item.name: next(kind for kind in (item.type, *get_args(item.type)) if kind in _ARROW_TYPES)
        for item in fields(Row)
    }


SCHEMA = pa.schema(
    {name: _ARROW_TYPES[kind] for name, kind in column_types().items()} | {"num_cameras": pa.int32()}
)


def write_catalog(
    folder: Path, rows: Sequence[Row], judged_by: dict[str, Any], top: int | None = None
) -> None:
    """Write the five files; a reader sees each of them whole, old or new.

    Args:
        folder: created when missing.
        rows: one per candidate, the accepted ones best first.
        judged_by: JSON-able description of the rules and thresholds in force; `read_rows` compares it.
        top: the list of valid ids gets this many, the best; the catalogue has all of them.
    """
    accepted = [row.repo_id for row in rows if row.verdict == ACCEPTED][:top]
    rejected = {row.repo_id: row.reasons for row in rows if row.verdict == REJECTED}
    lists = {
        CANDIDATES_FILE: sorted(row.repo_id for row in rows),
        VALID_FILE: accepted,
        BAD_FILE: dict(sorted(rejected.items())),
    }
    table = pa.Table.from_pylist([vars(row) for row in rows], schema=SCHEMA)
    table = table.replace_schema_metadata({"judged_by": json.dumps(judged_by, sort_keys=True)})
    try:
        with ExitStack() as stack:
            # All five are complete under temporary names before the first one is renamed.
            for name, value in lists.items():
                temporary = stack.enter_context(atomic_write(folder / name))
                text = json.dumps(value, indent=2, ensure_ascii=False)
                temporary.write_text(text + "\n", encoding="utf-8")
            for name, content in ((EPISODES_FILE, episodes_table(rows)), (CATALOG_FILE, table)):
                pq.write_table(content, stack.enter_context(atomic_write(folder / name)))
    except OSError as error:
        fault = machine_error(error, folder, "choose another --data_ids")
        raise fault or UserError(f"cannot write the lists into {folder}: {error}") from None


def read_rows(folder: Path, judged_by: dict[str, Any] | None = None) -> list[Row]:
    """Read `catalog.parquet` of `folder`; no rows if there is none.

    Args:
        folder: where `write_catalog` wrote.
        judged_by: rows count only if they were judged by this; None takes any.

    Raises:
        UserError: the file is there and is not a catalogue.
    """
    path = folder / CATALOG_FILE
    if not path.exists():
        return []
    table = read_columns(path, SCHEMA, _REMEDY, _LATER)
    metadata = table.schema.metadata or {}
    if judged_by is not None and metadata.get(b"judged_by") != json.dumps(judged_by, sort_keys=True).encode():
        return []
    return _rows(table, path)


def load_catalog(path: Path) -> list[Row]:
    """The rows of a catalogue, named by its folder or its file.

    Raises:
        UserError: it does not exist, or is not a catalogue.
    """
    file = path / CATALOG_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no catalogue at {path}: `depi collect-ids` writes one")
    return _rows(read_columns(file, SCHEMA, _REMEDY, _LATER), file)


_REMEDY = "remove it, or run `depi collect-ids --refresh`"
# Columns that an earlier DePi did not write are None.
_LATER = set(SCHEMA.names) - {"repo_id", "verdict", "reasons", "flags"}
_SIZE = re.compile(r"\d{1,6}x\d{1,6}")


def _rows(table: pa.Table, path: Path) -> list[Row]:
    try:
        rows = [Row(**values) for values in table.to_pylist()]
    except (ValueError, OverflowError):  # a time that is no date
        raise UserError(f"{path} is damaged, it has an impossible time: {_REMEDY}") from None
    for row in rows:
        problem = _problem(row)
        if problem is not None:
            raise UserError(f"{path} is damaged, {short(row.repo_id)} has {problem}: {_REMEDY}")
    return rows


def _problem(row: Row) -> str | None:
    """What no DePi has written into a row, where it may be somebody else's."""
    for name, kind in column_types().items():
        value = getattr(row, name)
        if value is None and name not in _LATER:
            return f"no {name}"
        if isinstance(value, list) and None in value:
            return f"a gap in {name}"
        if kind is int and value is not None and value < 0:
            return f"a negative {name}"
    if not all(map(_SIZE.fullmatch, row.camera_sizes or ())):
        return "sizes of cameras that are none"
    if len(row.episode_hashes or b"") % 8 or len(row.landmark_hashes or b"") % 4:
        return "parts of hashes"
    return None if are_verdicts(row.judged) else "verdicts on episodes that are none"
