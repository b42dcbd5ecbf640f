import logging
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forged_parquet import forge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depi.datasets.recording.cameras import slots_by_view
from depi.datasets.samples.annotations import (
    ANNOTATED_VIEWS,
    MAX_TEXT,
    SCHEMA,
    AnnotatedEpisodes,
    EpisodeAnnotation,
    annotation_path,
    read_annotations,
    write_annotations,
)
from depi.errors import DatasetError, UserError
from tests.helpers.training_set import training_set

TEXT = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=40)
ROWS = st.lists(
    st.builds(
        EpisodeAnnotation,
        episode_index=st.integers(0, 10**6),
        original_task=st.none() | TEXT,
        task=st.none() | TEXT,
        camera_views=st.dictionaries(TEXT, st.sampled_from(ANNOTATED_VIEWS), max_size=4),
        flags=st.lists(TEXT, max_size=3).map(tuple),
        refinements=st.integers(0, 9),
        confidence=st.none() | st.floats(0, 1, width=32),
    ),
    max_size=6,
    unique_by=lambda row: row.episode_index,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_what_is_written_is_read(rows, tmp_path):
    path = write_annotations(tmp_path, "user/name", rows, {"revision": "abc", "model": "vlm"})
    assert path == tmp_path / "user/name.parquet"
    assert read_annotations(tmp_path, "user/name") == (rows, {"revision": "abc", "model": "vlm"})
    assert pq.read_schema(path).equals(SCHEMA)


def test_no_sidecar_is_nothing(tmp_path):
    assert read_annotations(tmp_path, "user/name") is None


@pytest.mark.parametrize("repo_id", ["../name", "/etc/name", "user/../../name", "user\\name", "a/b\n", ""])
def test_a_repo_id_does_not_lead_out_of_the_folder(tmp_path, repo_id):
    with pytest.raises(DatasetError):
        annotation_path(tmp_path, repo_id)


def table(**changes):
    """One good row, but for the changed columns; None drops a column."""
    row = {
        "episode_index": pa.array([0]),
        "original_task": pa.array(["test"]),
        "task": pa.array(["pick the cube"]),
        "camera_views": pa.array([[{"camera": "top", "view": "top"}]], SCHEMA.field("camera_views").type),
        "flags": pa.array([["x"]]),
        "refinements": pa.array([1], pa.int32()),
    } | changes
    return pa.table({name: column for name, column in row.items() if column is not None})


def views(*pairs):
    items = [[None if pair is None else dict(zip(("camera", "view"), pair, strict=True)) for pair in pairs]]
    return pa.array(items, SCHEMA.field("camera_views").type)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": None}, "no column task"),
        ({"task": pa.array([3])}, "column task is 'int64', not string"),
        ({"task": pa.array(["x" * (MAX_TEXT + 1)])}, "the task has 1001 characters"),
        ({"task": pa.array(["pick\x00the\x1b[31mcube"])}, "is not printable"),
        ({"task": pa.array(["turn ‮ around"])}, "is not printable"),
        ({"episode_index": pa.array([-1])}, "episode_index is -1"),
        ({"episode_index": pa.array([None], pa.int64())}, "episode_index is None"),
        ({"episode_index": pa.array([0.0])}, "episode_index is 'double'"),
        ({"camera_views": views(("top", "inside"))}, "view 'inside' is none of wrist"),
        ({"camera_views": views(("top", None))}, "view None is none of"),
        ({"camera_views": views(None)}, "view None is none of"),
        ({"camera_views": views(*[("c", "top")] * 65)}, "has 65 cameras"),
        ({"camera_views": views(("c" * 201, "top"))}, "name has 201 characters"),
        ({"camera_views": pa.array([["top"]])}, "camera_views is 'list<"),
        ({"flags": pa.array([["f" * 201]])}, "a flag has 201"),
        ({"refinements": pa.array([1])}, "refinements is 'int64'"),
        ({"confidence": pa.array([1.5], pa.float32())}, "confidence is 1.5, expected 0 to 1"),
        ({"confidence": pa.array([float("nan")], pa.float32())}, "confidence is nan"),
        ({"confidence": pa.array([1])}, "column confidence is 'int64'"),
    ],
)
def test_hostile_sidecars_are_refused(tmp_path, changes, says):
    path = tmp_path / "a.parquet"
    pq.write_table(table(**changes), path)
    with pytest.raises(DatasetError, match=says):
        read_annotations(tmp_path, "a")


def test_a_footer_that_claims_too_little_is_refused(tmp_path):
    path = annotation_path(tmp_path, "user/name")
    path.parent.mkdir(parents=True)
    long = [[{"camera": "x" * 50, "view": "wrist"}]] * 3
    table = pa.Table.from_pylist(
        [{"episode_index": n, "flags": ["y" * 50], "refinements": 0} for n in range(3)], SCHEMA
    )
    table = table.set_column(3, SCHEMA.field(3), pa.array(long, SCHEMA.field(3).type))
    pq.write_table(table, path)
    forge(path, "flags", 5_000_000)
    with pytest.raises(DatasetError, match="5000000 values in its pages, 3 by the footer"):
        read_annotations(tmp_path, "user/name")


def test_the_good_row_is_good_and_unknown_columns_are_ignored(tmp_path):
    pq.write_table(table(extra=pa.array([b"\xff"])), tmp_path / "a.parquet")
    (row,), provenance = read_annotations(tmp_path, "a")
    assert (row.task, row.camera_views, provenance) == ("pick the cube", {"top": "top"}, {})
    pq.write_table(table(task=pa.array([" pick \n the\tcube "])), tmp_path / "a.parquet")
    assert read_annotations(tmp_path, "a")[0][0].task == "pick the cube"
    pq.write_table(table(task=pa.array([" \n"])), tmp_path / "a.parquet")
    assert read_annotations(tmp_path, "a")[0][0].task is None


def test_unusable_cameras_take_no_slot_unless_all_are():
    views = {"a": "unusable", "wrist": "unusable", "b": "top"}
    assert slots_by_view(["a", "wrist", "b"], views, 3) == (None, None, 2)
    assert slots_by_view(["a"], views, 2) == (None, 0)
    assert slots_by_view(["a", "c"], views, 2) == (None, 1)


def test_files_that_are_no_parquet_too_large_or_double(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"\x00" * 50 + b"PAR1")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_annotations(tmp_path, "a")
    zeros = pa.table({"x": pa.array(np.zeros(40_000_000))})
    pq.write_table(zeros, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(DatasetError, match=r"40000000 rows of .* too much"):
        read_annotations(tmp_path, "a")
    pq.write_table(pa.concat_tables([table(), table()]), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match="more than once"):
        read_annotations(tmp_path, "a")
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "a.parquet").mkdir()
    with pytest.raises(DatasetError, match="is no file"):
        read_annotations(tmp_path, "a")


FEW, MANY = 40_000, 10_000


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("task", "x" * FEW),
        ("original_task", "x" * FEW),
        ("flags", ["x" * FEW]),
        ("flags", ["x"] * 4000),
        ("camera_views", [{"camera": "x" * FEW, "view": "top"}]),
        ("camera_views", [{"camera": "x", "view": "x" * FEW}]),
        ("task", "x" * MAX_TEXT),
        ("camera_views", [{"camera": f"{number}" * 100, "view": "top"} for number in range(64)]),
    ],
)
def test_one_long_text_in_many_rows_does_not_fill_the_memory(tmp_path, column, value):
    """It is once in the file, which has a few kB, and would be a GB in memory."""
    rows = {"episode_index": pa.array(range(MANY))}
    for name in SCHEMA.names[1:]:
        kind = SCHEMA.field(name).type
        pieces = [pa.array([value] * 500, kind)] * (MANY // 500) if name == column else [pa.nulls(MANY, kind)]
        rows[name] = pa.chunked_array(pieces)
    pq.write_table(pa.table(rows, SCHEMA), tmp_path / "a.parquet", compression="zstd")
    del rows
    code = (
        "import resource, sys; from pathlib import Path; from depi.datasets.samples.annotations import *\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: print(len(read_annotations(Path(sys.argv[1]), 'a')[0]), 'rows')\n"
        "except DatasetError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    said, grown = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said.endswith(("too much", "at most 64 are read", f"{MANY} rows")), said
    assert int(grown) < 100_000, "kB"


def test_a_recorded_text_is_cut_and_what_is_no_text_refused(tmp_path):
    pq.write_table(table(original_task=pa.array(["ä" * 5000])), tmp_path / "a.parquet")
    assert read_annotations(tmp_path, "a")[0][0].original_task == "ä" * MAX_TEXT
    for column in ("task", "original_task"):
        bad = pa.array([b"\xff\xfe"]).view(pa.string())
        pq.write_table(table(**{column: bad}), tmp_path / "a.parquet")
        with pytest.raises(DatasetError, match=r"a.parquet cannot be read"):
            read_annotations(tmp_path, "a")


def test_damaged_provenance(tmp_path):
    write_annotations(tmp_path, "a", [], {})
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match=r"a.json cannot be read"):
        read_annotations(tmp_path, "a")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DatasetError, match="no JSON object"):
        read_annotations(tmp_path, "a")


def test_episodes_of_many_datasets(tmp_path, caplog):
    """One annotated in part, one not at all, one damaged, one at another revision."""
    ids = ["a/a", "b/b", "c/c", "d/d"]
    write_annotations(
        tmp_path,
        "a/a",
        [
            EpisodeAnnotation(4, task="push", camera_views={"laptop": "front"}),
            EpisodeAnnotation(7, task=None),
            EpisodeAnnotation(9, task="not in use"),
        ],
        {"revision": "r1"},
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c/c.parquet").write_text("no parquet")
    write_annotations(tmp_path, "d/d", [EpisodeAnnotation(0, task="pull")], {"revision": "old"})
    with caplog.at_level(logging.WARNING):
        recorded = dict(zip(ids, [[4, 7], [0], [0], [0]], strict=True))
        data = training_set(recorded, revisions=["r1", None, "r3", "r4"])
        episodes = AnnotatedEpisodes(data, tmp_path)
    assert [episodes.task(episode) for episode in range(5)] == ["push", None, None, None, "pull"]
    assert [episodes.views(episode) for episode in range(5)] == [{"laptop": "front"}, {}, {}, {}, {}]
    report = episodes.report()
    assert report["missing"] == ["b/b"]
    assert list(report["damaged"]) == ["c/c"]
    assert report["other_revision"] == ["d/d"]
    assert (report["episodes"], report["episodes_with_task"], report["episodes_with_views"]) == (5, 2, 1)
    assert "1 of 4 datasets have no annotations and keep their recorded tasks: b/b" in caplog.text
    assert "another revision than the one in use: d/d" in caplog.text
    assert "annotations of c/c: c.parquet cannot be read" in caplog.text
    with pytest.raises(UserError, match=r"--dataset.annotations"):
        AnnotatedEpisodes(training_set({}), tmp_path / "nowhere")
