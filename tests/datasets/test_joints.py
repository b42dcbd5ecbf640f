import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from recordings import NAMES, REAL

from depi.datasets.recording.joints import (
    HALF_RANGE,
    JOINTS,
    REACH,
    Detection,
    check_native,
    detect_convention,
    from_degrees,
    to_degrees,
    to_space,
)
from depi.errors import UserError

OLD = [f"main_{joint}" for joint in JOINTS]
DEGREES = arrays(np.float64, (4, 6), elements=st.floats(-180, 180))
AFFINE = ("degrees_v1", "degrees", "normalized", "radians", "native")


def motion(low, high, frames=200, seed=0):
    """A smooth random motion float32 [frames, 6] that touches both ends of every joint, nothing quantised."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(low, high, (frames, 6))
    values[0], values[1] = low, high
    return values.astype(np.float32)


MODEST = motion([-40, -60, 20, 10, -50, 3], [40, 30, 70, 60, 50, 60])

OLD_MODEST = motion([-40, 20, 20, 10, -50, 3], [40, 80, 70, 60, 50, 60])
OLD_REACH = motion([-40, 60, 60, 0, 0, 0], [40, 190, 170, 60, 50, 60])
NEW_REACH = motion([-40, -99, -80, 0, 0, 0], [40, 30, 70, 60, 150, 60])


@pytest.mark.parametrize("convention", AFFINE)
@given(values=DEGREES)
def test_conversions_are_inverses(convention, values):
    there = from_degrees(values, convention)
    np.testing.assert_allclose(to_degrees(there, convention), values, atol=1e-10)
    np.testing.assert_allclose(from_degrees(to_degrees(values, convention), convention), values, atol=1e-10)
    assert there.shape == values.shape


def test_conversions_by_hand():
    old = np.array([[10, 90, 90, -5, 30, 40], [0, 190, 0, 0, 0, 0]], np.float32)
    new = np.array([[10, 0, 0, -5, 30, 40], [0, -100, -90, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(to_degrees(old, "degrees_v1"), new)
    np.testing.assert_array_equal(from_degrees(new, "degrees_v1"), old)
    full = np.array([100, -100, 100, -100, 100, 100], np.float32)
    expected = [110.8, -103.5, 97.4, -101.2, 170.2, 100]
    np.testing.assert_allclose(to_degrees(full, "normalized"), expected, rtol=1e-6)
    radians = np.array([np.pi / 2, 0, -np.pi / 4, 0, 0, -0.174533], np.float32)
    np.testing.assert_allclose(to_degrees(radians, "radians"), [90, 0, -45, 0, 0, 0], atol=1e-4)
    assert to_degrees(np.array([0, 0, 0, 0, 0, 1.745329]), "radians")[5] == pytest.approx(100)


def test_dtype_stays_and_what_has_no_conversion_is_refused():
    assert to_degrees(MODEST, "radians").dtype == np.float32
    assert to_degrees(np.zeros((2, 14)), "native").shape == (2, 14)
    with pytest.raises(ValueError, match="unknown"):
        to_degrees(MODEST, "unknown")
    with pytest.raises(ValueError, match="6 joints, not 7"):
        to_degrees(np.zeros((2, 7)), "normalized")


def with_end(joint, value, values=MODEST):
    values = values.copy()
    values[5:8, joint] = value
    return values


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        pytest.param(NAMES, MODEST, "normalized", id="default"),
        pytest.param(NAMES, with_end(4, 130), "degrees", id="roll passes 100"),
        pytest.param(NAMES, with_end(0, 100.9), "normalized", id="just within 101"),
        pytest.param(NAMES, with_end(0, 101.1), "degrees", id="just beyond 101"),
        pytest.param(NAMES, with_end(5, 100.5), "normalized", id="gripper just within 101"),
        pytest.param(NAMES, with_end(5, 102), "degrees", id="gripper beyond 101"),
        pytest.param(NAMES, with_end(5, -2), "degrees", id="gripper below 0"),
        pytest.param(NAMES, with_end(2, 100), "normalized", id="elbow rests at 100"),
        pytest.param(None, with_end(2, 100), "normalized", id="elbow rests at 100, no names"),
        pytest.param(NAMES, with_end(2, 124.9), "degrees", id="elbow just in reach"),
        pytest.param(NAMES, with_end(2, 125.1), "unknown", id="elbow just out of reach"),
        pytest.param(NAMES, with_end(4, 191), "unknown", id="roll beyond a turn"),
        pytest.param(NAMES, with_end(5, 131), "unknown", id="gripper far beyond 100"),
        pytest.param(OLD, OLD_MODEST, "degrees_v1", id="old names alone"),
        pytest.param(OLD, with_end(1, 190, OLD_MODEST), "degrees_v1", id="old names, rest pose"),
        pytest.param(OLD, with_end(2, 100, OLD_MODEST), "unknown", id="old names, normalised saturation"),
        pytest.param(OLD, with_end(2, -34, OLD_MODEST), "degrees_v1", id="old names, elbow just in reach"),
        pytest.param(OLD, with_end(2, -36, OLD_MODEST), "unknown", id="old names, elbow behind itself"),
        pytest.param(NAMES, with_end(1, 190), "unknown", id="new names, old rest pose"),
        pytest.param(None, with_end(1, 190), "unknown", id="no names, old lift but new elsewhere"),
        pytest.param(
            None, motion([-40, 60, 60, 0, 0, 0], [40, 190, 170, 60, 50, 60]), "degrees_v1", id="old, bare"
        ),
        pytest.param(
            None, motion([-40, -99, -80, 0, 0, 0], [40, 30, 70, 60, 150, 60]), "degrees", id="new, bare"
        ),
        pytest.param(None, MODEST, "unknown", id="no names, nothing decides"),
        pytest.param(NAMES, motion([-1.9] * 6, [1.9] * 6), "radians", id="radians"),
        pytest.param(None, motion([-3.5] * 6, [3.5] * 6), "radians", id="radians, just within 3.5"),
        pytest.param(NAMES, motion([-1.9] * 5 + [0], [3.6] * 6), "normalized", id="just beyond 3.5"),
        pytest.param(OLD, motion([-1.9] * 6, [1.9] * 6), "unknown", id="old names in radians"),
        pytest.param(NAMES, with_end(1, -100), "normalized", id="lift rests at 100, which degrees may too"),
        pytest.param(
            NAMES, np.maximum(with_end(4, 130), with_end(1, 100)), "degrees", id="lift at 100, roll beyond"
        ),
        pytest.param(
            NAMES, np.maximum(with_end(4, 130), with_end(2, 100)), "unknown", id="clamped and not clamped"
        ),
        pytest.param(NAMES[::-1], MODEST, "unknown", id="joints in another order"),
        pytest.param(["x", "y", "z", "roll", "pitch", "yaw"], MODEST, "native", id="no SO-100 names"),
        pytest.param(
            ["motor_1", "motor_2", "motor_3", "motor_4", "motor_5", "motor_6"],
            MODEST,
            "unknown",
            id="numbered",
        ),
        pytest.param(None, np.zeros((5, 14), np.float32), "native", id="aloha"),
        pytest.param(NAMES, np.full((5, 6), np.nan, np.float32), "unknown", id="nothing finite"),
    ],
)
def test_detection(names, values, expected):
    detection = detect_convention(names, values, None)
    assert detection.convention == expected
    assert detection.evidence


def test_a_nan_does_not_hide_the_rest():
    values = with_end(4, 130)
    values[3] = np.nan
    assert detect_convention(NAMES, values, values).convention == "degrees"


def test_the_state_counts_too():
    assert detect_convention(NAMES, MODEST, with_end(4, 130)).convention == "degrees"


@pytest.mark.parametrize("names", [NAMES, None])
def test_encoder_steps_tell_degrees_from_normalized(names):
    """Neither motion comes near ±100: only the size of a servo's step can tell."""
    degrees = np.round(MODEST / (360 / 4096)) * np.float32(360 / 4096)
    counts = np.array([2521, 2355, 2216, 2303, 3873, 1500])
    normalized = (np.round(MODEST / 200 * counts) / counts * 200).astype(np.float32)
    assert detect_convention(names, degrees, degrees).convention == "degrees"
    found = detect_convention(names, normalized, normalized)
    assert found.convention == "normalized"
    assert "0 of 10 columns advance by encoder steps" in found.evidence


def test_evidence_is_one_sentence_with_the_numbers():
    evidence = detect_convention(NAMES, MODEST).evidence
    assert "\n" not in evidence
    assert "-60..70" in evidence
    assert "3..60" in evidence
    assert "nothing decides between degrees and normalized, taken as normalized" in evidence


@pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not here")
@pytest.mark.parametrize("names", [NAMES, None])
def test_real_recording_is_normalized(names):
    file = REAL / "so101_pick_place_tape/data/chunk-000/file-000.parquet"
    table = pq.read_table(file, columns=["action", "observation.state"])
    action, state = (np.stack(column.to_numpy()) for column in table.columns)
    found = detect_convention(names, action, state)
    assert found.convention == "normalized"
    assert "elbow_flex, wrist_flex" in found.evidence
    # Away from the ends the encoder's steps alone give the same answer.
    middle = np.abs(np.hstack([action[:, :5], state[:, :5]])).max(axis=1) < 99
    found = detect_convention(names, action[middle], state[middle])
    assert found.convention == "normalized"
    assert "encoder steps" in found.evidence
    degrees = to_degrees(action, "normalized")
    assert (np.abs(degrees[:, :5]) <= np.array(REACH)).all()
    assert np.abs(degrees[:, 2]).max() == pytest.approx(HALF_RANGE[2], abs=0.01)


def arm(steps, degrees):
    """What LeRobot records of joints float [F, 5] in degrees, -100..100 over the calibrated steps."""
    count = np.round(degrees * 4095 / 360 + np.array(steps) / 2)
    return (np.clip(count / steps, 0, 1) * 200 - 100).astype(np.float32)


@given(st.lists(st.integers(2000, 2600), min_size=5, max_size=5), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_encoder_steps_make_normalized_exact(steps, seed):
    """The leader's arm is another one than the follower's, whose ranges alone matter."""
    degrees = motion([-100, -60, 20, 10, -50, 3], [80, 130, 70, 60, 50, 60], 800, seed)
    leader = np.column_stack([arm(np.array(steps) + 77, degrees[:, :5]), degrees[:, 5]])
    follower = np.column_stack([arm(steps, degrees[:, :5]), degrees[:, 5]])
    found = detect_convention(NAMES, leader, follower)
    assert found.convention == "normalized"
    half = np.array(steps) / 2 * 360 / 4095
    np.testing.assert_allclose(found.half_range, half)
    assert f"shoulder_pan {steps[0]}, shoulder_lift {steps[1]}" in found.evidence
    clamped = np.clip(degrees[:, :5], -half, half)
    np.testing.assert_allclose(to_degrees(follower, found)[:, :5], clamped, atol=360 / 4095 / 2 + 1e-4)
    np.testing.assert_allclose(from_degrees(to_degrees(follower, found), found), follower, atol=1e-4)


def test_joints_without_visible_levels_keep_their_nominal_half_range():
    degrees = motion([-100, -60, 20, 10, -50, 3], [80, 130, 70, 60, 50, 60], 800)
    state = np.column_stack([arm([2688, 2345, 2200, 2234, 4095], degrees[:, :5]), degrees[:, 5]])
    state[:, 1] += np.random.default_rng(0).normal(0, 0.05, 800)  # filtered
    state[:, 3] = 30.3  # at rest
    found = detect_convention(NAMES, state, state)
    assert [half is None for half in found.half_range] == [False, True, False, True, False]
    assert "nominal half range for shoulder_lift, wrist_flex" in found.evidence
    assert to_degrees(np.full((1, 6), 50.0), found)[0] == pytest.approx(
        [2688 / 4 * 360 / 4095, 103.5 / 2, 2200 / 4 * 360 / 4095, 101.2 / 2, 90, 50]
    )
    assert detect_convention(NAMES, state).half_range == (None,) * 5


def test_the_space_of_training():
    exact = Detection("normalized", "", (120.0, None, None, None, None))
    values = np.full((1, 6), 50, np.float32)
    degrees = [60, 51.75, 48.7, 50.6, 85.1, 50]
    np.testing.assert_allclose(to_space(values, exact, "degrees"), [degrees], rtol=1e-6)
    shares = [60 / 1.108, 50, 50, 50, 50, 50]
    np.testing.assert_allclose(to_space(values, exact, "normalized"), [shares], rtol=1e-6)
    old = to_degrees(values, "degrees_v1")
    np.testing.assert_allclose(
        to_degrees(to_space(values, Detection("degrees_v1", ""), "normalized"), "normalized"), old, rtol=1e-5
    )
    np.testing.assert_array_equal(to_space(values, exact, "native"), values)
    pusht = np.zeros((3, 2), np.float32)
    assert to_space(pusht, Detection("native", ""), "normalized") is pusht
    with pytest.raises(ValueError, match="'radians' of the training data"):
        to_space(values, exact, "radians")


def test_recorded_numbers_of_different_conventions_are_not_pooled():
    same = Detection("normalized", "a")
    check_native({"a/b": same, "c/d": Detection("normalized", "b")})
    with pytest.raises(UserError, match=r"degrees \(x/y\), normalized \(a/b\): choose"):
        check_native({"a/b": same, "x/y": Detection("degrees", "")})


@pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not here")
def test_a_real_arm_tells_its_calibration():
    file = REAL / "so101_pick_place_tape/data/chunk-000/file-000.parquet"
    table = pq.read_table(file, columns=["action", "observation.state"])
    action, state = (np.stack(column.to_numpy()) for column in table.columns)
    found = detect_convention(NAMES, action, state)
    steps = np.array(found.half_range) * 2 * 4095 / 360
    np.testing.assert_allclose(steps, [2688, 2345, 2200, 2234, 4095])
    # As this arm's encoder counted, every state is a whole number of steps from the middle of its range.
    counts = to_degrees(state.astype(float), found)[:, :5] * 4095 / 360 + steps / 2
    assert np.abs(counts - np.round(counts)).max() < 1e-3


@pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not here")
def test_real_extremes_are_normalized():
    table = pq.read_table(REAL / "so101_pick_tiger/meta/episodes/chunk-000/file-000.parquet")
    ends = [np.array(table[f"stats/action/{end}"].to_pylist(), np.float32) for end in ("min", "max")]
    assert detect_convention(NAMES, np.concatenate(ends)).convention == "normalized"
