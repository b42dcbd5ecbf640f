"""Advantage sidecars: what is written is read back for the right frames, and what is wrong is said."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depi.datasets.samples.advantages import (
    MISSING,
    NEGATIVE,
    POSITIVE,
    FrameAdvantages,
    write_advantages,
    write_summary,
)
from depi.errors import DatasetError, UserError
from tests.helpers.training_set import training_set

RECORDED, LENGTHS = (0, 2, 7), (3, 2, 4)


def columns(indicator=None, recorded=RECORDED, lengths=LENGTHS):
    frames = sum(lengths)
    values = np.linspace(-1, 0, frames, dtype=np.float32)
    return {
        "episode_index": np.repeat(recorded, lengths),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        "value": values,
        "return": values,
        "advantage": values,
        "intervention": np.zeros(frames, bool),
        "indicator": [number % 2 == 0 for number in range(frames)] if indicator is None else indicator,
    }


@pytest.fixture
def folder(tmp_path):
    write_advantages(tmp_path, "a/b", columns(), run="r1", revision="one")
    write_advantages(tmp_path, "c/d", columns([True, None] + [False] * 7), run="r1", revision=None)
    write_summary(tmp_path, {"run": "r1", "epsilon": 0.25, "datasets": {"a/b": {}, "c/d": {}}})
    return tmp_path


def read(folder, repo_ids=("a/b",), recorded=(RECORDED,), lengths=(LENGTHS,), revisions=None):
    data = training_set(dict(zip(repo_ids, recorded, strict=True)), np.concatenate(lengths), revisions)
    return FrameAdvantages(data, folder)


def test_every_frame_has_its_own_indicator(folder):
    found = read(folder)
    assert found.indicators.tolist() == [POSITIVE, NEGATIVE] * 4 + [POSITIVE]
    assert [found.indicator(index) for index in range(3)] == [True, False, True]


def test_missing_is_neither_positive_nor_negative(folder):
    found = read(folder, ("c/d",))
    assert found.indicators.tolist() == [POSITIVE, MISSING] + [NEGATIVE] * 7
    assert found.indicator(1) is None
    report = found.report()
    assert (report["frames_positive"], report["frames_negative"], report["frames_missing"]) == (1, 7, 1)
    assert report["epsilon"] == 0.25


def test_some_episodes_of_several_datasets(folder):
    found = read(folder, ("c/d", "a/b"), ((7,), (2, 7)), ((4,), (2, 4)))
    assert found.indicators.tolist() == [0, 0, 0, 0, 0, 1, 0, 1, 0, 1]


def test_another_revision_is_noticed(folder, caplog):
    assert read(folder, revisions=["one"]).report()["other_revision"] == []
    assert read(folder, revisions=["two"]).report()["other_revision"] == ["a/b"]
    assert "of another revision" in caplog.text
    assert read(folder, ("c/d",), revisions=["two"]).report()["other_revision"] == []


def test_no_folder_and_no_sidecar_say_how_to_make_them(folder, tmp_path):
    with pytest.raises(UserError, match=r"no advantages in .*none: compute them with `depi advantage"):
        read(tmp_path / "none")
    with pytest.raises(UserError, match=r"of 1 of 2 datasets .*\(e/f: it has none\): run `depi advantage"):
        read(folder, ("a/b", "e/f"), (RECORDED, RECORDED), (LENGTHS, LENGTHS))


@pytest.mark.parametrize(
    ("recorded", "lengths", "says"),
    [
        ((0, 1), (3, 2), "episode 1 has 2 frames, 0 have advantages"),
        ((0, 2), (3, 5), "episode 2 has 5 frames, 2 have advantages"),
    ],
)
def test_episodes_without_rows_for_all_frames_are_an_error(folder, recorded, lengths, says):
    with pytest.raises(UserError, match=says):
        read(folder, recorded=(recorded,), lengths=(lengths,))


def test_sidecars_of_another_run_than_the_summary_are_an_error(folder):
    write_advantages(folder, "a/b", columns(), run="r2", revision=None)
    with pytest.raises(UserError, match="of another run than the summary"):
        read(folder)


def rewritten(folder, name, column):
    path = folder / "a/b.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index(name)
    pq.write_table(table.set_column(place, name, column), path)


@pytest.mark.parametrize(
    ("name", "column", "says"),
    [
        ("indicator", pa.array([1] * 9), "column indicator is 'int64'"),
        ("episode_index", pa.array([None] * 9, pa.int64()), "has gaps"),
        ("episode_index", pa.array([7] * 4 + [2, 2] + [0] * 3), "episodes are not in order"),
        ("frame_index", pa.array([0, 1, 1, 0, 1, 0, 1, 2, 3]), "frames of an episode are not in order"),
    ],
)
def test_damaged_columns_are_an_error(folder, name, column, says):
    rewritten(folder, name, column)
    with pytest.raises(UserError, match=says):
        read(folder)


def test_damaged_files_are_an_error(folder):
    (folder / "a/b.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"cannot be read as parquet.*run `depi advantage"):
        read(folder)


def test_datasets_in_buckets_have_sidecars_too(folder):
    write_advantages(folder, "s3://bucket/set", columns(), run="r1", revision=None)
    assert read(folder, ["s3://bucket/set"]).indicators.tolist() == read(folder).indicators.tolist()


def test_a_sidecar_never_leaves_its_folder(folder):
    with pytest.raises(DatasetError, match="repo id"):
        write_advantages(folder, "../x", columns(), run="r1", revision=None)
    with pytest.raises(UserError, match="repo id"):
        read(folder, ("../x",))
