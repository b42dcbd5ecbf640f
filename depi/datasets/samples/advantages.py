"""Advantage sidecars: what a value network said of every frame of a dataset, and whether that is good.

`FOLDER/<user>/<name>.parquet` holds one row per frame in the columns of SCHEMA, `FOLDER/advantages.json` what
they were computed with: the value network, the settings, the threshold epsilon. `depi advantage` writes both.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from depi.datasets.recording.addresses import as_path
from depi.datasets.recording.checks import check_relative, parse_json, short
from depi.datasets.recording.formats import MAX_FRAMES
from depi.datasets.recording.tables import read_table
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.errors import DatasetError, UserError
from depi.files import atomic_write, read_json, write_json

logger = logging.getLogger(__name__)

SUMMARY_NAME = "advantages.json"
NEGATIVE, POSITIVE, MISSING = 0, 1, -1

SCHEMA = pa.schema(
    [
        pa.field("episode_index", pa.int64(), nullable=False),  # as recorded
        pa.field("frame_index", pa.int64(), nullable=False),  # in its episode
        pa.field("value", pa.float32()),  # -1 to 0; null where the frame cannot be read
        pa.field("return", pa.float32(), nullable=False),  # -1 to 0
        pa.field("advantage", pa.float32()),  # in the unit of `value`; null where a value it needs is
        pa.field(
            "intervention", pa.bool_(), nullable=False
        ),  # a human acted: positive whatever the advantage
        pa.field("indicator", pa.bool_()),  # positive or negative; null where it is not known
    ]
)

_PROVENANCE = b"depi"
_NAMED = 5


def advantages_path(folder: Path, repo_id: str) -> Path:
    """Where a dataset's sidecar is; DatasetError for a repo id that would lead out of the folder."""
    return folder / f"{check_relative(as_path(repo_id), 'repo id')}.parquet"


def write_advantages(
    folder: Path, repo_id: str, columns: Mapping[str, Any], *, run: str, revision: str | None
) -> Path:
    """Write a dataset's sidecar.

    Args:
        folder: of the sidecars.
        repo_id: whose they are.
        columns: those of SCHEMA, arrays or Arrow columns, by episode and frame in ascending order.
        run: the digest of all settings; `write_summary` names the same.
        revision: of the dataset, None where unknown.
    """
    provenance = json.dumps({"run": run, "revision": revision})
    schema = SCHEMA.with_metadata({_PROVENANCE: provenance.encode()})
    path = advantages_path(folder, repo_id)
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    with atomic_write(path) as temporary:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), temporary, compression="zstd")
    return path


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write what the sidecars have in common, after them; with the keys `run`, `epsilon` and `datasets`."""
    write_json(folder / SUMMARY_NAME, dict(summary))


def read_summary(folder: Path) -> dict[str, Any]:
    """What `write_summary` wrote.

    Raises:
        UserError: there is none, or it is no JSON.
    """
    path = folder / SUMMARY_NAME
    if not path.is_file():
        raise UserError(
            f"there are no advantages in {folder}: compute them with `depi advantage --policy.path=VALUE "
            f"--output_dir={folder}` and the --dataset flags of the training"
        )
    return read_json(path)


class FrameAdvantages:
    """Whether each frame of a training set is better than what the policy usually does.

    `indicators` int8 [F] are POSITIVE, NEGATIVE, or MISSING where the frame could not be read when advantages
    were computed. Nothing else is missing: a dataset, an episode or a frame without a row is an error.

    Args:
        dataset: the training set. Advantages of another revision than a dataset's are used when its episodes
            are as long; that is logged and reported.
        folder: of the sidecars.

    Raises:
        UserError: sidecars are missing, damaged, of another run than their summary, or lack frames; names the
            datasets and how to make them.
    """

    def __init__(self, dataset: MultiLeRobotDataset, folder: Path) -> None:
        self.folder = folder
        self.summary = read_summary(folder)
        self.other_revision: list[str] = []
        starts = np.asarray(dataset.episode_start)
        self.indicators = np.full(int(starts[-1]), MISSING, np.int8)
        problems: dict[str, str] = {}
        for number, entry in enumerate(dataset.entries):
            first, last = dataset.dataset_start[number : number + 2].tolist()
            start, recorded = starts[first : last + 1], np.asarray(dataset.episode_recorded[first:last])
            repo_id = entry["repo_id"]
            try:
                found, other = self._read(repo_id, entry["revision"], recorded, start)
            except DatasetError as error:
                problems[repo_id] = str(error)
                continue
            self.indicators[start[0] : start[-1]] = found
            if other:
                self.other_revision.append(repo_id)
        if problems:
            self._refuse(problems, len(dataset.entries))
        if self.other_revision:
            named = ", ".join(self.other_revision[:_NAMED])
            logger.warning(
                "advantages of %s datasets are of another revision than the one in use: %s",
                len(self.other_revision),
                named,
            )

    def _read(
        self, repo_id: str, revision: str | None, recorded: np.ndarray, start: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        """Indicators int8 [f] of a dataset's episodes in use, and whether they are of another revision."""
        path = advantages_path(self.folder, repo_id)
        if not path.is_file():
            raise DatasetError("it has none")
        columns = ("episode_index", "frame_index", "indicator")
        name = path.relative_to(self.folder).as_posix()
        table = read_table(self.folder, name, columns, max_rows=MAX_FRAMES)
        for name in columns:
            kind = table.schema.field(name).type
            if kind != SCHEMA.field(name).type or (name != "indicator" and table[name].null_count):
                raise DatasetError(f"{path.name}: the column {name} is {short(str(kind))} or has gaps")
        provenance = _provenance(table, path.name)
        if provenance.get("run") != self.summary.get("run"):
            raise DatasetError("they are of another run than the summary: it was interrupted or mixed up")
        rows = _rows(table["episode_index"].to_numpy(), table["frame_index"].to_numpy(), recorded, start)
        flags = pc.fill_null(pc.cast(table["indicator"], pa.int8()), pa.scalar(MISSING, pa.int8()))
        known = provenance.get("revision")
        return flags.to_numpy()[rows], None not in (revision, known) and revision != known

    def _refuse(self, problems: Mapping[str, str], datasets: int) -> None:
        named = "; ".join(f"{repo_id}: {why}" for repo_id, why in list(problems.items())[:_NAMED])
        more = "; ..." if len(problems) > _NAMED else ""
        raise UserError(
            f"the advantages in {self.folder} of {len(problems)} of {datasets} datasets cannot be used "
            f"({named}{more}): run `depi advantage --output_dir={self.folder}` with the --dataset flags of "
            "the training"
        )

    def indicator(self, index: int) -> bool | None:
        """Whether a frame is positive, by its index in the training set; None where that is not known."""
        flag = int(self.indicators[index])
        return None if flag == MISSING else flag == POSITIVE

    def report(self) -> dict[str, Any]:
        """What is conditioned on, for `data_report.json`."""
        counts = {"positive": POSITIVE, "negative": NEGATIVE, "missing": MISSING}
        return {
            "folder": str(self.folder),
            "run": self.summary.get("run"),
            "epsilon": self.summary.get("epsilon"),
            "settings": self.summary.get("settings"),
            **{f"frames_{name}": int((self.indicators == flag).sum()) for name, flag in counts.items()},
            "other_revision": self.other_revision,
        }


def _provenance(table: pa.Table, name: str) -> dict[str, Any]:
    text = (table.schema.metadata or {}).get(_PROVENANCE, b"{}")
    content = parse_json(text.decode(errors="replace"), name)
    if not isinstance(content, dict):
        raise DatasetError(f"{name} does not say what it was made with")
    return content


def _rows(episode: np.ndarray, frame: np.ndarray, recorded: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The rows of the frames of these episodes, int64 [f], in order."""
    length = np.diff(start)
    if (np.diff(episode) < 0).any():
        raise DatasetError("their episodes are not in order")
    first = np.searchsorted(episode, recorded, side="left")
    counted = np.searchsorted(episode, recorded, side="right") - first
    if (wrong := np.flatnonzero(counted != length)).size:
        one = wrong[0]
        raise DatasetError(
            f"episode {recorded[one]} has {length[one]} frames, {counted[one]} have advantages"
        )
    number = np.arange(length.sum()) - np.repeat(start[:-1] - start[0], length)
    rows = np.repeat(first, length) + number
    if (frame[rows] != number).any():
        raise DatasetError("the frames of an episode are not in order")
    return rows
