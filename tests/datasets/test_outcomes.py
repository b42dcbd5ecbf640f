"""Rewards and returns against slow references; success flags from all the places where they may be."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import Recording, write_v2

from depi.datasets.samples.outcomes import (
    check_normalizer,
    episode_returns,
    episode_rewards,
    normalised,
    read_outcomes,
    read_success_file,
)
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError


@given(st.integers(1, 80), st.booleans(), st.floats(0, 2000))
def test_returns_are_the_rewards_that_are_still_to_come(length, success, c_fail):
    rewards = [-1.0] * (length - 1) + [0.0 if success else -c_fail]
    assert episode_rewards(length, success, c_fail).tolist() == rewards
    expected = [sum(rewards[frame:]) for frame in range(length)]
    np.testing.assert_allclose(episode_returns(length, success, c_fail), expected, rtol=1e-12)


def test_one_frame_and_immediate_success():
    assert episode_returns(1, True, 100).tolist() == [0]
    assert episode_returns(1, False, 100).tolist() == [-100]
    assert episode_returns(3, True, 100).tolist() == [-2, -1, 0]
    assert episode_returns(3, False, 100).tolist() == [-102, -101, -100]
    for wrong in ((0, True, 1), (3, False, -1), (3, False, np.nan)):
        with pytest.raises(ValueError, match="have no rewards"):
            episode_returns(*wrong)


lengths_and_ends = st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=8)


@given(lengths_and_ends, st.integers(0, 60) | st.floats(0, 60), st.integers(1, 100) | st.floats(0.5, 100))
def test_what_falls_below_the_range_is_counted_and_refused(episodes, c_fail, normalizer):
    lengths, success = (np.array(column) for column in zip(*episodes, strict=True))
    returns = np.concatenate([episode_returns(*episode, c_fail) for episode in episodes])
    below = int((returns < -normalizer).sum())
    assert check_normalizer(lengths, success, c_fail, normalizer, clamp=True) == below
    clamped = normalised(returns, normalizer, clamp=True)
    assert clamped.min() >= -1
    assert clamped.max() <= 0
    if below == 0:
        assert check_normalizer(lengths, success, c_fail, normalizer) == 0
        np.testing.assert_array_equal(normalised(returns, normalizer), returns / normalizer)
        return
    with pytest.raises(UserError, match=rf"returns of {below} of {len(returns)} frames fall below -1"):
        check_normalizer(lengths, success, c_fail, normalizer)
    # The remedy that the message names is one.
    needed = float(-returns.min())
    assert check_normalizer(lengths, success, c_fail, needed) == 0


def test_a_failure_longer_than_the_normaliser_says_what_would_do():
    with pytest.raises(UserError) as caught:
        check_normalizer(np.array([700, 601]), np.array([True, False]), 1000, 1600 - 1)
    assert "a failure of 601 frames returns -1600" in str(caught.value)
    assert "at least 1600" in str(caught.value)
    assert check_normalizer(np.array([700, 601]), np.array([True, False]), 1000, 1600) == 0
    with pytest.raises(ValueError, match="outside"):
        normalised(np.array([-3.0]), 2)
    with pytest.raises(ValueError, match="outside"):
        normalised(np.array([1.0]), 2, clamp=True)
    with pytest.raises(ValueError, match="reward_normalizer is 0"):
        normalised(np.array([-1.0]), 0)


LENGTHS = (4, 3, 5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return write_v2(tmp_path_factory.mktemp("plain") / "data", Recording(lengths=LENGTHS))


@pytest.fixture
def root(plain, tmp_path) -> Path:
    shutil.copytree(plain, tmp_path / "data")
    return tmp_path / "data"


def opened(root: Path, episodes=None) -> MultiLeRobotDataset:
    return MultiLeRobotDataset([DatasetSource("a/b", root=root, episodes=episodes)], image_size=64)


def say_in_metadata(root: Path, *flags) -> None:
    lines = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    texts = [json.dumps(row | flag) for row, flag in zip(rows, flags, strict=True)]
    lines.write_text("\n".join(texts))


def say_in_frames(root: Path, name: str, values: list, kind: pa.DataType, declared: bool = True) -> None:
    """A column with these values, from the first frame on."""
    info = json.loads((root / "meta/info.json").read_text())
    if declared:
        info["features"][name] = {"dtype": str(kind), "shape": [1], "names": None}
        (root / "meta/info.json").write_text(json.dumps(info))
    start = 0
    for path in sorted(root.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        column = pa.array(values[start : start + table.num_rows], kind)
        pq.write_table(table.append_column(name, column), path)
        start += table.num_rows


ENDS = [False] * 3 + [True] + [False] * 3 + [False, True, False, False, True]


@pytest.mark.parametrize("name", ["next.success", "success"])
@pytest.mark.parametrize("kind", [pa.bool_(), pa.int64(), pa.float32()])
def test_any_true_frame_makes_a_success(root, name, kind):
    say_in_frames(root, name, [kind.to_pandas_dtype()(flag) for flag in ENDS], kind)
    found = read_outcomes(opened(root))
    assert found.success.tolist() == [True, False, True]
    assert found.sources == {"a/b": {"recorded": 3}}
    assert not found.intervention.any()
    assert len(found.intervention) == sum(LENGTHS)


def test_a_column_of_lists_or_not_declared_is_read_too(root):
    say_in_frames(root, "next.success", [[flag] for flag in ENDS], pa.list_(pa.bool_()))
    say_in_frames(root, "is_intervention", [True, *ENDS[1:]], pa.bool_(), declared=False)
    found = read_outcomes(opened(root, episodes=(2, 0)))
    assert found.success.tolist() == [True, True]
    assert found.intervention.tolist() == [True, *ENDS[1:4], *ENDS[7:]]


def test_metadata_tells_and_a_file_wins(root, tmp_path):
    say_in_metadata(root, {"success": True}, {"success": 0}, {"success": [True]})
    assert read_outcomes(opened(root)).success.tolist() == [True, False, True]
    file = tmp_path / "success.json"
    file.write_text(json.dumps({"a/b": {"1": True, "2": False}}))
    found = read_outcomes(opened(root), file=file)
    assert found.success.tolist() == [True, True, False]
    assert found.sources == {"a/b": {"recorded": 1, "file": 2}}
    file.write_text('{"a/b": false}')
    assert not read_outcomes(opened(root), file=file).success.any()


def test_a_file_that_names_what_is_not_there(root, tmp_path, caplog):
    file = tmp_path / "success.json"
    flags = {"a/b": {"0": True, "1": True, "2": False}, "a/c": False, "other/one": True}
    file.write_text(json.dumps(flags))
    # Episodes that are not in use are there nevertheless.
    assert read_outcomes(opened(root, episodes=(2,)), file=file).success.tolist() == [False]
    assert "names 2 datasets that are not in use: 'a/c', 'other/one'" in caplog.text
    flags["a/b"]["3"] = True
    file.write_text(json.dumps(flags))
    with pytest.raises(UserError, match="names episode 3 of dataset a/b, which has 3 episodes"):
        read_outcomes(opened(root), file=file)


def test_what_is_not_known_is_an_error_unless_success_is_assumed(root):
    with pytest.raises(UserError, match=r"1 of 1 datasets do not say .* a/b \(3 of 3 episodes\)"):
        read_outcomes(opened(root))
    say_in_metadata(root, {"success": False}, {}, {"success": None})
    with pytest.raises(UserError, match=r"a/b \(2 of 3 episodes\).*assume_success=true"):
        read_outcomes(opened(root))
    assert read_outcomes(opened(root, episodes=(0,))).success.tolist() == [False]
    found = read_outcomes(opened(root), assume_success=True)
    assert found.success.tolist() == [False, True, True]
    assert found.sources == {"a/b": {"recorded": 1, "assumed": 2}}


def test_recordings_that_contradict_themselves_are_refused_unless_a_file_tells(root, tmp_path):
    say_in_frames(root, "next.success", ENDS, pa.bool_())
    say_in_metadata(root, {"success": True}, {"success": True}, {})
    with pytest.raises(UserError, match="episode 1 of dataset a/b is a success by its frames or"):
        read_outcomes(opened(root))
    file = tmp_path / "success.json"
    file.write_text('{"a/b": {"1": false}}')
    assert read_outcomes(opened(root), file=file).success.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.5] * 12, pa.float32()),
        ([np.nan] * 12, pa.float32()),
        ([2] * 12, pa.int64()),
        (["true"] * 12, pa.string()),
        ([None] * 12, pa.bool_()),
        ([[True, False]] * 12, pa.list_(pa.bool_())),
    ],
)
def test_a_column_of_something_else_is_refused(root, values, kind):
    say_in_frames(root, "next.success", values, kind)
    with pytest.raises(UserError, match="how the episodes of dataset a/b ended cannot be read"):
        read_outcomes(opened(root))


@pytest.mark.parametrize("flag", ["yes", 2, -1, [True, False], {"a": 1}, 1e999])
def test_metadata_of_something_else_is_refused(root, flag):
    say_in_metadata(root, {"success": flag}, {"success": True}, {"success": True})
    with pytest.raises(UserError, match="success of episode 0 is"):
        read_outcomes(opened(root))


@pytest.mark.parametrize(
    "content", ["[]", '{"a/b": 1}', '{"a/b": {"x": true}}', '{"a/b": {"1": "true"}}', "{", '{"a/b": null}']
)
def test_a_wrong_file_is_one_sentence(tmp_path, content):
    file = tmp_path / "success.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"success\.json"):
        read_success_file(file)
