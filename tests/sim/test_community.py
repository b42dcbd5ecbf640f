import contextlib
import json
import shutil

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import NAMES, Recording, write_v2, write_v3

from depi.datasets.recording.convention import detect_convention
from depi.datasets.recording.joints import from_degrees
from depi.sim.community import community, record_community
from depi.sim.defects import DEFECTS

FOLDED = np.array([0.0, -100, 90, 60, 0, 5])


def test_the_community_is_as_varied_as_real_ones():
    contributors = community()
    good = [contributor for contributor in contributors if contributor.usable]
    bad = [contributor for contributor in contributors if not contributor.usable]
    setups = [contributor.setup for contributor in good]
    assert len({contributor.repo_id for contributor in contributors}) == len(contributors)
    assert len({contributor.repo_id.split("/")[0] for contributor in good}) == len(good) >= 6
    assert {setup.format for setup in setups} == {"v2.1", "v3.0"}
    assert {setup.codec for setup in setups} == {"av1", "h264"}
    assert {setup.fps for setup in setups} == {30, 15, 10}
    assert {setup.convention for setup in setups} == {"degrees_v1", "degrees", "normalized", "radians"}
    assert {len(setup.cameras) for setup in setups} == {1, 2, 3}
    assert len({(setup.width, setup.height) for setup in setups}) >= 3
    names = {camera.name for setup in setups for camera in setup.cameras}
    assert {"laptop", "phone", "wrist", "front", "top", "side", "camera1"} <= names
    assert {"", "test", None} <= {setup.task_text for setup in setups}
    assert {contributor.defect for contributor in bad} >= {
        "nan_in_actions",
        "wrong_action_size",
        "missing_video",
        "another_zero",
        None,
    }
    assert [contributor.defect for contributor in good if contributor.defect] == ["three_bad_episodes"]
    assert any(contributor.repo_id.split("/")[1].startswith("eval_") for contributor in bad)


@pytest.mark.slow
def test_record_community_records_everybody(tmp_path):
    seen = []
    contributors = community(episodes=1)
    folders = record_community(tmp_path, contributors, progress=lambda who, done, total: seen.append(done))
    assert seen == list(range(1, len(contributors) + 1))
    for folder, contributor in zip(folders, contributors, strict=True):
        info = json.loads((folder / "meta/info.json").read_text())
        assert info["codebase_version"] == contributor.setup.format
        assert info["total_episodes"] == contributor.episodes


@pytest.fixture(params=["recording_v21", "recording_v30"])
def dataset(request, tmp_path):
    recording, _ = request.getfixturevalue(request.param)
    return shutil.copytree(recording.root, tmp_path / "copy")


def actions(root):
    return [
        np.stack(pq.read_table(path)["action"].to_numpy())
        for path in sorted((root / "data").rglob("*.parquet"))
    ]


def info(root):
    return json.loads((root / "meta/info.json").read_text())


def test_nan_in_actions(dataset):
    assert np.isfinite(actions(dataset)[0]).all()
    DEFECTS["nan_in_actions"](dataset)
    assert np.isnan(actions(dataset)[0]).sum() == 3


def test_wrong_action_size(dataset):
    before = actions(dataset)
    DEFECTS["wrong_action_size"](dataset)
    for old, new in zip(before, actions(dataset), strict=True):
        np.testing.assert_array_equal(new, old[:, :5])
    assert info(dataset)["features"]["action"]["shape"] == [5]
    assert len(info(dataset)["features"]["action"]["names"]) == 5


def test_undeclared_action_size(dataset):
    DEFECTS["undeclared_action_size"](dataset)
    assert info(dataset)["features"]["action"]["shape"] == [7]
    assert actions(dataset)[0].shape[1] == 6


def test_frozen_robot(dataset):
    DEFECTS["frozen_robot"](dataset)
    assert all(np.ptp(values, axis=0).max() == 0 for values in actions(dataset))


def test_another_zero(tmp_path):
    """As the detection of conventions sees it: the folded arm would be out of reach."""
    joints = from_degrees(np.tile(FOLDED, (12, 1)).astype(np.float32), "radians")
    joints[6:, :5] += np.float32(0.3)
    root = write_v2(tmp_path / "radians", Fixed(joints, lengths=(12,)))
    before = detect_convention(NAMES, joints, joints)
    assert before.convention == "radians", before.evidence
    DEFECTS["another_zero"](root)
    (values,) = actions(root)
    found = detect_convention(NAMES, values, values)
    assert found.convention == "unknown"
    assert "radians of another zero or sign, since shoulder_lift" in found.evidence


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_three_bad_episodes(tmp_path, write):
    steady = np.tile(FOLDED, (10, 1)) + np.arange(10)[:, None]
    root = write(tmp_path / "touches", Fixed(steady.astype(np.float32), lengths=(10,) * 6))
    DEFECTS["three_bad_episodes"](root)
    tables = [pq.read_table(path) for path in sorted((root / "data").rglob("*.parquet"))]
    action, state = (
        np.concatenate([np.stack(table[key].to_numpy()) for table in tables]).reshape(6, 10, 6)
        for key in ("action", "observation.state")
    )
    for values in (action, state):
        for good in (0, 2, 4):
            np.testing.assert_allclose(values[good], steady, rtol=1e-6)
        assert not np.ptp(values[1], axis=0).any()
    np.testing.assert_allclose(action[3], steady, rtol=1e-6)
    assert [len(np.unique(column)) for column in state[3].T] == [4] * 6
    assert np.abs(np.diff(state[5], axis=0)).max(axis=0).round().tolist() == [84, 1, 1, 1, 84, 1]


def test_every_fifth_episode_bad(tmp_path):
    steady = np.tile(FOLDED, (10, 1)) + np.arange(10)[:, None]
    root = write_v3(tmp_path / "touches", Fixed(steady.astype(np.float32), lengths=(10,) * 14))
    DEFECTS["every_fifth_episode_bad"](root)
    tables = [pq.read_table(path) for path in sorted((root / "data").rglob("*.parquet"))]
    state = np.concatenate([np.stack(table["observation.state"].to_numpy()) for table in tables])
    changed = np.abs(state.reshape(14, 10, 6) - steady).max(axis=(1, 2)) > 0.01
    assert np.flatnonzero(changed).tolist() == [2, 7, 12]


class Fixed(Recording):
    """The same joints in every episode, as action and as state."""

    def __init__(self, values, lengths):
        super().__init__(lengths=lengths, cameras=("observation.images.front",))
        self.values = values

    def joints(self, episode):
        return self.values, self.values


@pytest.mark.parametrize(("defect", "suffix"), [("missing_video", ".mp4"), ("missing_table", ".parquet")])
def test_missing_files(dataset, defect, suffix):
    folder = dataset / ("videos" if suffix == ".mp4" else "data")
    before = list(folder.rglob(f"*{suffix}"))
    DEFECTS[defect](dataset)
    assert len(list(folder.rglob(f"*{suffix}"))) == len(before) - 1


def test_truncated_table(dataset):
    DEFECTS["truncated_table"](dataset)
    with pytest.raises(pa.ArrowInvalid, match="magic bytes"):
        actions(dataset)


def test_truncated_video(dataset):
    path = sorted(dataset.rglob("*.mp4"))[0]
    before = decodable_frames(path)
    DEFECTS["truncated_video"](dataset)
    assert decodable_frames(path) < before


def decodable_frames(path):
    count = 0
    with contextlib.suppress(av.error.InvalidDataError), av.open(str(path)) as container:
        for _ in container.decode(video=0):
            count += 1
    return count


def test_broken_metadata(dataset):
    DEFECTS["zero_fps"](dataset)
    DEFECTS["escaping_paths"](dataset)
    assert info(dataset)["fps"] == 0
    assert info(dataset)["data_path"].startswith("../../data/")
    DEFECTS["broken_info"](dataset)
    with pytest.raises(json.JSONDecodeError):
        info(dataset)
