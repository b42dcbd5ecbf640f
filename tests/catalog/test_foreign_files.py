"""Catalogue files of others, which may hold anything: they are read, or refused in one sentence."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depi import cli
from depi.catalog.catalogue import CATALOG_FILE, SCHEMA, Row, load_catalog, write_catalog
from depi.catalog.episodes import add_verdicts
from depi.catalog.facts import EpisodeVerdict
from depi.catalog.report import read_pictures
from depi.catalog.thumbnails import THUMBNAILS_FILE, Thumbnail, to_jpeg, write_thumbnails
from depi.datasets.judging.faults import Fault
from depi.datasets.recording.sources import DatasetSource
from depi.datasets.union.lists import EPISODES_FILE, catalogued, read_bad_episodes, read_id_list
from depi.errors import UserError

DATASETS = 3
FILES = {CATALOG_FILE: load_catalog, EPISODES_FILE: read_bad_episodes, THUMBNAILS_FILE: read_pictures}


@pytest.fixture
def folder(tmp_path) -> Path:
    rows = []
    for number in range(DATASETS):
        row = Row(f"ann/box{number}", "accepted", revision="a" * 40, fps=30.0, episodes=2, frames=100)
        row.created_at, row.cameras, row.camera_sizes = datetime(2025, 1, 1, tzinfo=UTC), ["top"], ["64x48"]
        row.tasks, row.episode_hashes, row.score = ["Pick it up."], bytes(8), 0.5
        faults = (Fault("still", 1, "nothing moves", True, 0, 9),)
        add_verdicts(row, [EpisodeVerdict(0, 50), EpisodeVerdict(1, 50, faults)])
        rows.append(row)
    write_catalog(tmp_path, rows, {})
    jpeg = to_jpeg(np.zeros((48, 64, 3), np.uint8))
    write_thumbnails(tmp_path, [Thumbnail(row.repo_id, "a" * 40, "top", jpeg) for row in rows])
    return tmp_path


def use(folder: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[int]:
    """What the verbs end with that read the files; what they say is one sentence."""
    for verb in (["report"], ["catalog", "stats"], ["catalog", "export"], ["catalog", "show", "ann/box1"]):
        status = cli.main([*verb, f"--data_ids={folder}"])
        _, complaint = capsys.readouterr()
        assert status in (0, 2)
        assert complaint.count("\n") == (status == 2), complaint
        assert complaint.isprintable() or complaint.endswith("\n")
        yield status
    try:
        catalogued(folder, "revision"), catalogued(folder, "score"), read_bad_episodes(folder)
    except UserError:
        yield 2


def changed(content: bytes, chance: random.Random) -> bytes:
    """A file with some bytes changed, cut out or doubled."""
    data, place = bytearray(content), chance.randrange(len(content))
    for _ in range(chance.choice((1, 1, 4, 16))):
        data[chance.randrange(len(data))] = chance.randrange(256)
    end = place + chance.randrange(1, 64)
    return bytes(chance.choice((data, data[:place] + data[end:], data[:end] + data[place:])))


def mutate(folder: Path, capsys, count: int) -> set[int]:
    chance, ends = random.Random(0), set()
    originals = {name: (folder / name).read_bytes() for name in FILES}
    for _ in range(count):
        name = chance.choice(list(FILES))
        (folder / name).write_bytes(changed(originals[name], chance))
        ends |= set(use(folder, capsys))
        (folder / name).write_bytes(originals[name])
    return ends


def test_changed_bytes(folder, capsys):
    assert mutate(folder, capsys, 150) == {0, 2}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_changed_bytes(folder, capsys):
    assert mutate(folder, capsys, 3_000) == {0, 2}


ODD = {
    "repo_id": [None],
    "verdict": [None, "\x1b[2J"],
    "reasons": [None, [None], ["no colon"]],
    "flags": [None],
    "cameras": [[None]],
    "camera_sizes": [["big"], [""], ["1x2x3"], ["9" * 5000 + "x1"]],
    "episodes": [-2, 2**62],
    "bad_episodes": [-1],
    "frames": [-(2**62)],
    "fps": [float("nan"), 1e-320, -1.0],
    "created_at": [2**62],
    "episode_hashes": [b"123"],
    "judged": ["[", "[1]", '[["a", 1, []]]', "{}", '[[1, 1, [["rule"]]]]', "[" * 100_000, "\ud800"],
    "action_min": [[1.0], [None] * 6, [1.0] * 7],
    "offsets": [[float("inf")]],
    "score": [float("nan")],
}


def _array(value: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(value, str):  # also one that is no UTF-8
        return pa.array([value.encode("utf-8", "surrogatepass")]).cast(kind, safe=False)
    if pa.types.is_timestamp(kind):  # also one that is no date
        return pa.array([value], pa.int64()).cast(kind)
    return pa.array([value], kind)


@pytest.mark.parametrize(
    ("column", "value"),
    [(column, value) for column, values in ODD.items() for value in values],
    ids=lambda value: ascii(value)[:20],
)
def test_odd_values(folder, capsys, column, value):
    table = pq.read_table(folder / CATALOG_FILE)
    given = _array(value, SCHEMA.field(column).type)
    array = pa.chunked_array([*table[column].slice(0, 1).chunks, given, *table[column].slice(2).chunks])
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, SCHEMA.field(column), array), folder / CATALOG_FILE)
    list(use(folder, capsys))


@pytest.mark.parametrize(
    "content",
    [
        *(b"\xff\xfe", b"[", b"[" * 100_000, b"{}", b"3", b"[1]", b"[]", b'["ann/\\ud800"]'),
        *(b'["\\u0000/x"]', b'["ann/\\u001b[2J"]', b'["s3://a@b/c"]', b'["ann/box", "ann/box"]'),
        b'["' + b"a" * 5000 + b'/b"]',
    ],
)
def test_lists_of_ids(tmp_path, content):
    path = tmp_path / "ids.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        [DatasetSource(repo_id) for repo_id in read_id_list(path)]
    assert "\n" not in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


def test_names_of_columns_that_are_no_text(folder):
    for name in FILES:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content.replace(b"repo_id", b"repo_\xff\xfe"))
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            FILES[name](folder)
        (folder / name).write_bytes(content)
    assert json.loads((folder / "dataset_list.json").read_text()) == [f"ann/box{n}" for n in range(DATASETS)]
