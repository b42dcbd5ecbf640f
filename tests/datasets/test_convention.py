"""Which convention a recording is in: by hand, by real arms, and by a matrix of simulated ones."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import NAMES, REAL

from depi.datasets.recording.convention import detect_convention, given_convention
from depi.datasets.recording.encoder import read_levels
from depi.datasets.recording.joints import HALF_RANGE, JOINTS, REACH, from_degrees, to_degrees
from depi.datasets.recording.metadata import load_meta
from depi.datasets.recording.tables import read_frames
from depi.errors import DatasetError

OLD = [f"main_{joint}" for joint in JOINTS]
NUMBERED = [f"motor_{number}" for number in range(1, 7)]
STEP = 360 / 4095


def motion(low, high, frames=200, seed=0):
    """A smooth random motion float32 [frames, 6] that touches both ends of every joint, nothing quantised."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(low, high, (frames, 6))
    values[:5], values[5:10] = low, high
    return values.astype(np.float32)


# Canonical degrees: the arm from its folded pose to where it works, and one that never folds.
FOLDED = motion([-40, -101, -30, 10, -50, 3], [40, 30, 96, 70, 50, 60])
BETWEEN = motion([-40, -20, -20, 10, -50, 3], [40] * 6)
RAISED = motion([-40, -30, 20, 10, -50, 3], [40, 30, 70, 60, 50, 60])


def on_encoder(degrees):
    return (np.round(degrees / STEP) * STEP).astype(np.float32)


def arm(steps, degrees):
    """What LeRobot records of joints float [F, 5] in degrees, -100..100 over the calibrated steps."""
    count = np.round(degrees * 4095 / 360 + np.array(steps) / 2)
    return (np.clip(count / steps, 0, 1) * 200 - 100).astype(np.float32)


def normalized(degrees, steps=(2521, 2355, 2216, 2303, 3873)):
    return np.column_stack([arm(steps, degrees[:, :5]), degrees[:, 5]])


def with_end(joint, value, values=FOLDED, count=5):
    values = on_encoder(values)
    values[5 : 5 + count, joint] = value
    return values


def old(degrees):
    return from_degrees(on_encoder(degrees), "degrees_v1")


RADIANS = from_degrees(FOLDED, "radians")
OTHER_ZERO = np.array([0, 1.6, 1.6, 0, 0, 0])


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        pytest.param(NAMES, on_encoder(FOLDED), "degrees", id="degrees"),
        pytest.param(None, on_encoder(FOLDED), "degrees", id="degrees, no names"),
        pytest.param(OLD, on_encoder(FOLDED), "unknown", id="degrees, names of before"),
        pytest.param(NAMES, np.round(on_encoder(FOLDED), 2), "degrees", id="degrees to 0.01"),
        pytest.param(NAMES, np.round(on_encoder(FOLDED), 1), "unknown", id="degrees to 0.1"),
        pytest.param(NAMES, FOLDED, "unknown", id="degrees without steps, which normalised could be"),
        pytest.param(NAMES, with_end(4, 130, FOLDED), "degrees", id="roll passes 100"),
        pytest.param(NAMES, with_end(4, 130, FOLDED, 1), "degrees", id="one glitch"),
        pytest.param(NAMES, with_end(4, 700, FOLDED, 1), "degrees", id="one absurd glitch"),
        pytest.param(NAMES, with_end(2, 111), "degrees", id="elbow just in reach"),
        pytest.param(NAMES, with_end(2, 113), "unknown", id="elbow just out of reach"),
        pytest.param(NAMES, with_end(4, 191), "unknown", id="roll beyond a turn"),
        pytest.param(NAMES, with_end(5, 131), "unknown", id="gripper far beyond 100"),
        pytest.param(
            None, on_encoder(motion([-40, -20, -20, 10, -50, 3], [40] * 6)), "unknown", id="any zero"
        ),
        pytest.param(OLD, old(FOLDED), "degrees_v1", id="before"),
        pytest.param(None, old(FOLDED), "degrees_v1", id="before, no names"),
        pytest.param(NAMES, old(FOLDED), "unknown", id="before, new names"),
        pytest.param(
            OLD, np.concatenate([old(FOLDED), on_encoder(FOLDED)]), "unknown", id="before and after, merged"
        ),
        pytest.param(NAMES, normalized(FOLDED), "normalized", id="normalised"),
        pytest.param(None, normalized(RAISED), "normalized", id="normalised, raised, no names"),
        pytest.param(NAMES, np.round(normalized(FOLDED), 2), "normalized", id="normalised to 0.01"),
        pytest.param(NAMES, np.round(normalized(FOLDED), 1), "unknown", id="normalised to 0.1"),
        pytest.param(NAMES, np.minimum(FOLDED * [1, 1, 1.1, 1, 1, 1], 100), "normalized", id="elbow at 100"),
        pytest.param(NAMES, with_end(1, -100, FOLDED), "degrees", id="lift at -100, its own limit"),
        pytest.param(NAMES, with_end(2, 100, with_end(4, 130)), "unknown", id="clamped and beyond"),
        pytest.param(NAMES, RADIANS, "radians", id="radians"),
        pytest.param(NUMBERED, RADIANS, "unknown", id="radians, no names"),
        pytest.param(OLD, RADIANS, "unknown", id="radians, names of before"),
        pytest.param(NAMES, from_degrees(RAISED, "radians"), "unknown", id="radians, never folded"),
        pytest.param(NAMES, RADIANS * [1, -1, 1, 1, 1, 1], "unknown", id="radians, lift the other way"),
        pytest.param(NAMES, RADIANS + OTHER_ZERO, "unknown", id="radians of another zero"),
        pytest.param(NAMES, normalized(FOLDED) / 100, "unknown", id="scaled to 1"),
        pytest.param(NAMES, np.round(2048 + FOLDED * 11), "unknown", id="motor ticks"),
        pytest.param(NAMES[::-1], on_encoder(FOLDED), "unknown", id="joints in another order"),
        pytest.param(["x", "y", "z", "roll", "pitch", "yaw"], FOLDED, "native", id="no SO-100 names"),
        pytest.param(None, np.zeros((5, 14), np.float32), "native", id="aloha"),
        pytest.param(NAMES, np.full((5, 6), np.nan, np.float32), "unknown", id="nothing finite"),
    ],
)
def test_detection(names, values, expected):
    values = np.asarray(values, np.float32)
    detection = detect_convention(names, values, values)
    assert detection.convention == expected, detection.evidence
    assert "\n" not in detection.evidence


def test_a_nan_does_not_hide_the_rest():
    values = on_encoder(FOLDED)
    values[3] = np.nan
    assert detect_convention(NAMES, values, values).convention == "degrees"


def test_a_state_of_another_width_is_no_so_100():
    found = detect_convention(NAMES, on_encoder(FOLDED), np.zeros((200, 7), np.float32))
    assert found.convention == "unknown"
    assert "a state has 7 numbers" in found.evidence


@pytest.mark.parametrize(
    ("leader", "follower", "expected"),
    [
        pytest.param(on_encoder(FOLDED), normalized(FOLDED), "degrees/normalized", id="degrees, normalised"),
        pytest.param(normalized(FOLDED), on_encoder(FOLDED), "normalized/degrees", id="normalised, degrees"),
        pytest.param(RADIANS, on_encoder(FOLDED), "radians/degrees", id="radians, degrees"),
        pytest.param(normalized(FOLDED), RADIANS, "normalized/radians", id="normalised, radians"),
    ],
)
def test_action_and_state_of_unlike_units_are_converted_each_by_itself(leader, follower, expected):
    found = detect_convention(NAMES, leader, follower)
    assert found.convention == expected, found.evidence
    for values, detection in ((leader, found.action), (follower, found.state)):
        np.testing.assert_allclose(to_degrees(values, detection), FOLDED, atol=0.1)
    with pytest.raises(ValueError, match="no conversion"):
        to_degrees(leader, found)


@pytest.mark.parametrize(
    ("leader", "follower"),
    [
        pytest.param(FOLDED, normalized(FOLDED), id="a command without steps moves by other amounts"),
        pytest.param(
            on_encoder(FOLDED * [1, 1, 1, 1, 1.6, 1]), normalized(FOLDED), id="the roll is turned farther"
        ),
        pytest.param(
            on_encoder(FOLDED - [0, 0, 30, 0, 0, 0]), normalized(FOLDED), id="the elbow is elsewhere"
        ),
        pytest.param(from_degrees(RAISED, "radians"), on_encoder(RAISED), id="radians, never folded"),
        pytest.param(on_encoder(BETWEEN), normalized(BETWEEN), id="any zero"),
    ],
)
def test_unlike_units_of_weak_or_contradictory_evidence_are_named(leader, follower):
    found = detect_convention(NAMES, leader.astype(np.float32), follower)
    assert found.convention == "unknown"
    assert "different units" in found.evidence


def test_a_command_without_steps_has_the_unit_of_the_state_that_it_moves():
    command = normalized(FOLDED) + np.random.default_rng(0).normal(0, 0.02, FOLDED.shape)
    found = detect_convention(NAMES, command.astype(np.float32), normalized(FOLDED))
    assert found.convention == "normalized", found.evidence


def episodes(*kinds, frames=200):
    """Episodes of these kinds one after another, each with a motion of its own, and their lengths."""
    low, high = [-40, -101, -30, 10, -50, 3], [40, 30, 96, 70, 50, 60]
    write = {
        "degrees": on_encoder,
        "normalized": normalized,
        "old": old,
        "radians": lambda values: from_degrees(values, "radians"),
        "filtered": lambda values: values,
        "another radians": lambda values: from_degrees(values, "radians") + OTHER_ZERO,
        "beyond": lambda values: with_end(2, 140, values, 20),
        "still": lambda values: on_encoder(np.tile(FOLDED[5:6], (len(values), 1)) + values / 50),
        "glitch": lambda values: with_end(2, 700, values, 1),
        "between": lambda values: on_encoder(np.clip(values, [-90, -20, -20, -90, -90, 0], 90)),
    }
    values = [write[kind](motion(low, high, frames, seed)) for seed, kind in enumerate(kinds)]
    return np.concatenate(values).astype(np.float32), np.full(len(kinds), frames)


@pytest.mark.parametrize(
    ("kinds", "expected", "unlike", "text"),
    [
        pytest.param(
            ["degrees"] * 5 + ["radians", "degrees"],
            "degrees",
            [5],
            "in small values (radians or scaled), the rest in larger ones",
            id="radians",
        ),
        pytest.param(
            ["radians"] * 3 + ["degrees"], "radians", [3], "in larger ones", id="degrees in radians"
        ),
        pytest.param(
            ["degrees", "old", "degrees"], "degrees", [1], "in degrees of before it", id="before the change"
        ),
        pytest.param(
            ["degrees", "normalized", "degrees", "still"],
            "degrees",
            [1, 3],
            "in normalized values (action), the rest in degrees (action)",
            id="normalised; what does not show its kind goes too",
        ),
        pytest.param(["normalized"] * 4 + ["degrees"] * 2, "normalized", [4, 5], "in degrees", id="degrees"),
        pytest.param(
            ["degrees"] * 4 + ["filtered"], "degrees", [], "", id="filtered, but none of another unit"
        ),
        pytest.param(
            ["degrees"] * 4 + ["beyond"],
            "degrees",
            [4],
            "out of reach (as degrees, in the action elbow_flex would be at 140 degrees, out of reach)",
            id="a joint beyond its reach",
        ),
        pytest.param(["degrees"] * 4 + ["glitch"], "degrees", [], "", id="one glitch"),
        pytest.param(["degrees", "radians"], "degrees", [1], "", id="half and half, each certain"),
        pytest.param(["another radians", "degrees"], "degrees", [0], "", id="half and half, one certain"),
        pytest.param(
            ["between"] * 3 + ["radians"], "unknown", [], "before or of after", id="most are unknown"
        ),
        pytest.param(
            ["another radians", "between"], "unknown", [], "1 of 2 episodes", id="half and half, none certain"
        ),
        pytest.param(
            ["degrees", "old"] + ["between"] * 4, "unknown", [], "too few agree", id="most do not show a zero"
        ),
    ],
)
def test_episodes_in_other_units_are_named_and_the_rest_is_judged(kinds, expected, unlike, text):
    values, length = episodes(*kinds)
    found = detect_convention([*JOINTS], values, values, episode_length=length)
    assert found.convention == expected, found.evidence
    assert [position for position, _ in found.unlike] == unlike
    assert text in (found.unlike[0][1] if unlike else found.evidence)


def test_unlike_episodes_are_found_in_one_column_too():
    action, length = episodes(*["degrees"] * 4)
    state = episodes("degrees", "degrees", "normalized", "degrees")[0]
    found = detect_convention(NAMES, action, state, episode_length=length)
    assert found.convention == "degrees"
    assert found.unlike == ((2, "it is in normalized values (state), the rest in degrees (state)"),)


def test_unlike_columns_and_unlike_episodes_together():
    action, length = episodes("degrees", "degrees", "degrees", "radians")
    state = episodes("normalized", "normalized", "normalized", "radians")[0]
    found = detect_convention(NAMES, action, state, episode_length=length)
    assert found.convention == "degrees/normalized", found.evidence
    assert [position for position, _ in found.unlike] == [3]


def test_a_given_convention_leaves_unlike_episodes_out_too():
    values, length = episodes("degrees", "degrees", "radians")
    found = given_convention("degrees", values, values, length)
    assert (found.convention, [position for position, _ in found.unlike]) == ("degrees", [2])
    found = given_convention("degrees/normalized", values[:400], normalized(FOLDED).repeat(2, axis=0))
    assert (found.action.convention, found.state.convention) == ("degrees", "normalized")


def test_an_episode_in_which_nothing_moves_says_nothing_of_the_unit():
    moving = np.minimum(FOLDED * [1, 1, 1.1, 1, 1, 1], 100).astype(np.float32)
    place = np.abs(moving[:, 2] - 97).argmin()
    still = np.tile(moving[place], (len(moving), 1))
    values = np.concatenate([moving, moving + np.float32([2, 0, 0, 0, 0, 0]), still])
    assert 90 < still[0, 2] < 100
    found = detect_convention(NAMES, values, values, episode_length=np.full(3, len(moving)))
    assert found.convention == "normalized"
    assert found.unlike == ()


def test_phosphobots_radians_are_named():
    found = detect_convention(NAMES, RADIANS, RADIANS, robot_type="so-100")
    assert found.convention == "unknown"
    assert "phosphobot" in found.evidence


@pytest.mark.parametrize(
    ("shift", "sign", "text"),
    [
        pytest.param([0, -1.57, 1.48, 0, 0, 0], [1] * 6, "fit the limits of so101_old_calib.urdf", id="old"),
        pytest.param(
            [0, 1.8, -1.4, -0.8, 0, 0], [1, 1, -1, 1, 1, 1], "fit the limits of so100.urdf", id="so100"
        ),
        pytest.param([0, 1.5, 1.5, 0, 0, 0], [1] * 6, "out of reach", id="neither"),
    ],
)
def test_radians_of_older_models_are_named(shift, sign, text):
    values = (RADIANS * sign + shift).astype(np.float32)
    found = detect_convention(NAMES, values, values)
    assert found.convention == "unknown"
    assert "radians of another zero or sign" in found.evidence
    assert found.evidence.endswith(text), found.evidence


def test_decimals_are_no_encoder():
    """Values to 0.1 fit 2,000 steps over 200 on every joint, and mean nothing."""
    assert read_levels(np.round(FOLDED[:, 0], 1)).unit is None
    assert read_levels(np.round(FOLDED[:, 0])).unit is None
    assert read_levels(FOLDED[:, 0]).unit is None
    assert read_levels(on_encoder(FOLDED[:, 0])).unit == "degrees"
    found = read_levels(normalized(FOLDED)[:, 0])
    assert (found.unit, found.steps) == ("normalized", 2521)


# 2000 and 2500 steps over 200 are values to 0.1 and to 0.08, which decimals may be too.
STEPS = st.integers(2000, 2600).filter(lambda steps: 20_000 % steps)


@given(st.lists(STEPS, min_size=5, max_size=5), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_encoder_steps_make_normalized_exact(steps, seed):
    """The leader's arm is another one than the follower's, whose ranges alone matter."""
    degrees = motion([-100, -99, -30, 10, -50, 3], [80, 60, 96, 60, 50, 60], 800, seed)
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
    degrees = motion([-100, -99, -30, 10, -50, 3], [80, 60, 96, 60, 50, 60], 800)
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


def column_values(folder):
    table = pq.read_table(folder / "data/chunk-000/file-000.parquet", columns=["action", "observation.state"])
    return [np.stack(column.to_numpy()) for column in table.columns]


real = pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not here")


@real
@pytest.mark.parametrize("names", [NAMES, None])
def test_a_real_arm_is_normalized(names):
    action, state = column_values(REAL / "so101_pick_place_tape")
    found = detect_convention(names, action, state)
    assert found.convention == "normalized"
    assert "elbow_flex, wrist_flex" in found.evidence
    # Away from the ends the encoder's steps alone give the same answer.
    middle = np.abs(np.hstack([action[:, :5], state[:, :5]])).max(axis=1) < 99
    found = detect_convention(names, action[middle], state[middle])
    assert found.convention == "normalized"
    degrees = to_degrees(action, "normalized")
    assert (np.abs(degrees[:, :5]) <= np.array(REACH)).all()
    assert np.abs(degrees[:, 2]).max() == pytest.approx(HALF_RANGE[2], abs=0.01)


@real
@pytest.mark.parametrize(
    ("folder", "convention", "evidence"),
    [
        ("degrees_one_episode", "degrees", "5 joints on encoder steps of degrees"),
        ("degrees_so_follower", "degrees", "5 joints on encoder steps of degrees"),
        ("normalized_clean", "normalized", "5 on those of a calibrated range"),
        ("radians_other_zero", "unknown", "radians of another zero or sign, since shoulder_lift"),
        ("piper_with_so_names", "unknown", "a state has 7 numbers"),
        ("ticks_bimanual", "native", "12 numbers"),
    ],
)
def test_real_recordings_get_the_verdict_that_they_deserve(folder, convention, evidence):
    try:
        meta = load_meta(REAL / folder, f"real/{folder}", None)
        frames = read_frames(meta, ["action", "observation.state"])
        names, robot_type = meta.info.features["action"].names, meta.info.robot_type
        action, state = (frames[key].reshape(len(frames[key]), -1) for key in ("action", "observation.state"))
    except DatasetError:  # templates of two versions mixed, no index columns: it is refused before its joints
        action = state = np.zeros((10, 12), np.float32)
        names = robot_type = None
        assert folder == "ticks_bimanual"
    found = detect_convention(names, action, state, robot_type=robot_type)
    assert found.convention == convention
    assert evidence in found.evidence


@pytest.fixture
def matrix(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import joint_conventions

    yield joint_conventions
    sys.modules.pop("joint_conventions")


def test_the_matrix_of_simulated_recordings(matrix):
    """A part of the table in benchmarks/README.md, on other random numbers."""
    cells = list(matrix.cells())
    some = np.random.default_rng(5).permutation(len(cells))[:400]
    answers = [matrix.judge(77_000, cells[number])[0] for number in some]
    assert answers.count("wrong") <= 2
    assert answers.count("right") > 80
    textbook = [matrix.judge(78_000, cell)[0] for cell in cells if matrix.is_textbook(cell)]
    assert len(textbook) == 24
    assert textbook.count("right") >= 23


@real
def test_a_real_arm_tells_its_calibration():
    action, state = column_values(REAL / "so101_pick_place_tape")
    found = detect_convention(NAMES, action, state)
    steps = np.array(found.half_range) * 2 * 4095 / 360
    np.testing.assert_allclose(steps, [2688, 2345, 2200, 2234, 4095])
    # As this arm's encoder counted, every state is a whole number of steps from the middle of its range.
    counts = to_degrees(state.astype(float), found)[:, :5] * 4095 / 360 + steps / 2
    assert np.abs(counts - np.round(counts)).max() < 1e-3
