"""Datasets of which single episodes are lost: the catalogue accepts the others, through the embedded Hub."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from depi.catalog.catalogue import Row
from depi.catalog.facts import Thresholds
from depi.catalog.find import Candidate
from depi.catalog.inspect import Inspector
from depi.datasets.judging.examine import fetch_tables
from depi.datasets.recording.hub_files import HubFiles
from depi.datasets.recording.metadata import read_meta
from depi.datasets.recording.sources import DatasetSource
from depi.datasets.union.opening import open_dataset

EPISODES, LENGTH = 5, 40


def file_of(root: Path, episode: int) -> Path:
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def table_missing(root: Path) -> None:
    file_of(root, 2).unlink()


def table_broken(root: Path) -> None:
    file_of(root, 2).write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")


def video_missing(root: Path) -> None:
    (root / "videos/chunk-000/observation.images.front/episode_000002.mp4").unlink()


def rows_missing(root: Path) -> None:
    pq.write_table(pq.read_table(file_of(root, 2)).slice(0, 30), file_of(root, 2))


def length_wrong(root: Path) -> None:
    file = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2]["length"] = 55
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def task_unknown(root: Path) -> None:
    table = pq.read_table(file_of(root, 2))
    place = table.column_names.index("task_index")
    pq.write_table(table.set_column(place, "task_index", [[7] * LENGTH]), file_of(root, 2))


def inspected(repo_id: str) -> Row:
    row = Inspector(Thresholds())(Candidate(repo_id))
    assert isinstance(row, Row)
    return row


@pytest.mark.parametrize(
    "how", [table_missing, table_broken, video_missing, rows_missing, length_wrong, task_unknown]
)
def test_an_episode_that_is_lost_does_not_cost_the_dataset(module_hub, tmp_path, make_dataset, publish, how):
    root = make_dataset(tmp_path / "data", episodes=EPISODES, length=LENGTH)
    how(root)
    repo_id = f"ann/so101_{how.__name__}"
    commit = publish(root, repo_id)
    row = inspected(repo_id)
    assert (row.verdict, row.reasons) == ("accepted", [])
    files = HubFiles(DatasetSource(repo_id, commit))
    opened = open_dataset(fetch_tables(files, read_meta(files)))
    assert opened.meta.episodes.episode_index.tolist() == [0, 1, 3, 4]
    assert list(opened.unreadable) == [2]


def test_counts_that_nothing_explains_refuse_the_dataset(module_hub, tmp_path, make_dataset, publish):
    root = make_dataset(tmp_path / "data", episodes=EPISODES, length=LENGTH, total_frames=199)
    publish(root, "ann/so101_counts")
    assert inspected("ann/so101_counts").reasons == [
        "counts_match: 199 frames declared, 200 listed, 200 in the tables"
    ]


def test_stale_statistics_are_fetched_with_the_metadata(module_hub, tmp_path, make_dataset, publish):
    root = make_dataset(tmp_path / "data", version="v3.0")
    (root / "meta/stats.json").write_text("{}")
    commit = publish(root, "ann/so101_stats")
    inspected("ann/so101_stats")
    files = HubFiles(DatasetSource("ann/so101_stats", commit))
    assert (files.root / "meta/stats.json").is_file()
