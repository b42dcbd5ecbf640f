"""Constant offsets between leader and follower: found, not confused with lag, sag or grip, and taken out."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from catalog_facts import good_facts
from recordings import NAMES, REAL, Recording, write_v2

from depi.catalog.facts import Thresholds
from depi.catalog.rules import constant_offset
from depi.datasets.judging.offsets import Offsets, measure_offsets, name_offsets
from depi.datasets.recording.convention import detect_convention
from depi.datasets.recording.joints import to_degrees
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.training.card import _offset_lines

FPS, LAG, FRAMES = 30, 4, 300
SAG = np.array([0, -1.5, -3, -0.5, 0, 0])
NONE = np.zeros(6)
ENCODER = 360 / 4095


def episode(seed, offset=NONE, sag=SAG, frames=FRAMES):
    """One episode of picking: command and position float32 [frames, 6], with lag, sag and a grip of 12."""
    rng = np.random.default_rng(seed)
    pose, path = np.array([0.0, -95, 92, 60, 0, 10]), []
    while sum(map(len, path)) < frames + LAG:
        aim = rng.uniform([-60, -60, -40, -40, -90, 0], [60, 60, 80, 85, 110, 0])
        aim[5] = rng.choice([20, 40, 60])
        time = np.linspace(0, 1, int(FPS * rng.uniform(0.7, 1.5)))[1:, None]
        move = pose + (aim - pose) * (10 * time**3 - 15 * time**4 + 6 * time**5)
        path += [move, np.repeat(aim[None], int(FPS * rng.uniform(0.3, 1)), axis=0)]
        pose = aim
    path = np.concatenate(path) + rng.normal(0, 0.05, (sum(map(len, path)), 6))
    state = path[:frames] - sag
    command = path[LAG : frames + LAG] + offset
    # Held: the gripper was told to close further than the object lets it.
    falling = path[LAG : frames + LAG, 5] < np.maximum.accumulate(path[LAG : frames + LAG, 5]) - 5
    command[falling & (path[LAG : frames + LAG, 5] < 30), 5] -= 12
    on_encoder = np.round(np.stack([command, state]) / ENCODER) * ENCODER
    return on_encoder.astype(np.float32)


def measured(offsets, sag=SAG):
    pairs = [episode(seed, offset, sag) for seed, offset in enumerate(offsets)]
    action, state = (np.concatenate([pair[column] for pair in pairs]) for column in (0, 1))
    return measure_offsets(action, state, np.full(len(pairs), FRAMES), FPS)


def test_a_planted_offset_is_measured():
    found = measured([np.array([4, 5, -8, 4, -5, 9])] * 12)
    assert list(found.constant) == [
        "shoulder_pan",
        "shoulder_lift",
        "elbow_flex",
        "wrist_flex",
        "wrist_roll",
        "gripper",
    ]
    np.testing.assert_allclose(found.value, [4, 3.5, -7, 3.5, -5, 9], atol=0.5)
    assert max(found.error) < 0.5


@pytest.mark.parametrize(
    "offsets",
    [
        pytest.param([NONE] * 12, id="lag, sag and grip alone"),
        pytest.param([np.array([2, 2, -2, 2, 2, 4])] * 12, id="small"),
        pytest.param([np.full(6, 6.0)] * 4 + [NONE] * 8, id="in a third of the episodes"),
        pytest.param([np.full(6, sign * 6.0) for sign in (1, -1) * 6], id="changing sides"),
        pytest.param([np.full(6, 6.0)] * 2, id="too few episodes"),
    ],
)
def test_what_is_no_constant_offset(offsets):
    assert not measured(offsets).constant


def test_nothing_is_found_where_nothing_moves_or_little_was_recorded():
    still = np.zeros((90, 6), np.float32)
    assert measure_offsets(still, still, np.full(3, 30), FPS).value == (0.0,) * 6
    assert measure_offsets(still[:4], still[:4], np.array([1, 1, 1, 1]), FPS) == Offsets()


@pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not here")
@pytest.mark.parametrize("folder", ["so101_pick_place_tape", "degrees_so_follower"])
def test_real_arms_have_none_until_one_is_planted(folder):
    path = REAL / folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path, columns=["action", "observation.state"])
    action, state = (np.stack(column.to_numpy()) for column in table.columns)
    length = np.full(20, len(action) // 20)
    action, state = action[: length.sum()], state[: length.sum()]
    found = detect_convention(NAMES, action, state)
    action, state = to_degrees(action, found.action), to_degrees(state, found.state)
    assert not measure_offsets(action, state, length, FPS).constant
    found = measure_offsets(action + np.float32([5, 0, 0, 0, 0, -9]), state, length, FPS)
    assert found.constant == pytest.approx({"shoulder_pan": 5, "gripper": -9}, abs=0.7)


class Leader(Recording):
    """A leader whose roll and gripper are off."""

    offset = np.array([0, 0, 0, 0, -6, 8])

    def joints(self, number):
        return episode(number, self.offset, frames=self.lengths[number])


def test_it_is_taken_out_on_request_and_told(tmp_path):
    recording = Leader(lengths=(200, 200, 200), fps=FPS, cameras=("observation.images.front",), size=(16, 16))
    source = DatasetSource("ann/offset", root=write_v2(tmp_path / "offset", recording))
    plain, corrected = (
        MultiLeRobotDataset([source], chunk_size=4, correct_offsets=correct) for correct in (False, True)
    )
    np.testing.assert_array_equal(plain.state, corrected.state)
    apart = (plain.action - corrected.action).mean(axis=0)
    np.testing.assert_allclose(apart, recording.offset, atol=0.6)
    np.testing.assert_allclose(plain.action - corrected.action, np.tile(apart, (600, 1)), atol=1e-4)
    (before,), (after,) = plain.report()["datasets"], corrected.report()["datasets"]
    assert before["offsets_taken_out"] == {}
    assert after["offsets_taken_out"] == pytest.approx({"wrist_roll": -6, "gripper": 8}, abs=0.6)
    assert _offset_lines([before]) == []
    text = "\n".join(_offset_lines([before, after]))
    assert f"- `ann/offset`: {name_offsets(after['offsets_taken_out'])}" in text
    assert "force of a grip is left" in text


def test_the_catalogue_remarks_on_it():
    facts = good_facts()
    assert constant_offset(facts, Thresholds()) is None
    offsets = Offsets((0, 0, -4.1, 0, 0, 9), (0.1,) * 6, (False, False, True, False, False, True))
    facts.motion = dataclasses.replace(facts.motion, offsets=offsets)
    assert "off by elbow_flex -4.1 degrees, gripper +9.0 of 100;" in constant_offset(facts, Thresholds())
