import numpy as np
import pytest

from depi.catalog.motion import measure_motion

LENGTH = np.array([150, 150])


def smooth(seed: int = 0) -> np.ndarray:
    """Two episodes of degrees, float32 [300, 6], at 30 fps."""
    random = np.random.default_rng(seed)
    time = np.linspace(0, 10, 300)[:, None]
    waves = [np.sin(time * random.uniform(1, 4, 6) + random.uniform(0, 6, 6)) for _ in range(3)]
    return (20 * np.sum(waves, axis=0) + 30).astype(np.float32)


def later(action: np.ndarray, frames: int) -> np.ndarray:
    return np.roll(action, frames, axis=0)


@pytest.mark.parametrize(
    ("frames", "fps"), [(-4, 10), (0, 10), (3, 10), (12, 10), (-4, 30), (0, 30), (3, 30), (12, 30), (40, 30)]
)
def test_the_lag_is_found_in_seconds(frames, fps):
    found = measure_motion(smooth(), later(smooth(), frames), LENGTH, fps)
    assert found.lag == pytest.approx(frames / fps, abs=1.01 / fps)
    assert found.follow > 0.8


def test_one_lost_reading_changes_nothing():
    state = later(smooth(), 3)
    state[70, 2] += 4000
    found = measure_motion(smooth(), state, LENGTH, 30)
    assert found.lag == pytest.approx(0.1, abs=0.034)
    assert found.follow > 0.8


def test_unrelated_motion_does_not_follow():
    state = np.random.default_rng(1).permutation(smooth())
    assert measure_motion(smooth(), state, LENGTH, 30).follow < 0.2


def test_an_arm_that_never_moves_has_no_lag():
    still = np.ones((300, 6), np.float32)
    found = measure_motion(still, still, LENGTH, 30)
    assert (found.lag, found.follow, found.smoothness, found.motion, found.idle) == (None, 0, 0, 0, 1)
    assert measure_motion(still, smooth(), LENGTH, 30).lag is None


def test_an_arm_that_moves_once_still_has_a_lag():
    action = np.zeros((300, 6), np.float32)
    action[40:43] = [[10], [20], [30]]
    action[43:] = 30
    found = measure_motion(action, later(action, 2), np.array([300]), 30)
    assert found.lag == pytest.approx(2 / 30)
    assert found.idle == pytest.approx(0.9)  # all but two half seconds


def test_jitter_is_no_motion_and_slow_motion_is():
    jitter = np.random.default_rng(3).normal(0, 0.3, (300, 6)).astype(np.float32)
    assert measure_motion(jitter, jitter, LENGTH, 30).idle == 1
    slow = np.linspace(0, 60, 300, dtype=np.float32)[:, None] * np.eye(6, dtype=np.float32)[0]
    assert measure_motion(slow, slow, LENGTH, 30).idle == 0
    half = np.minimum(slow, 30)
    assert measure_motion(half, half, np.array([300]), 30).idle == pytest.approx(0.5, abs=0.06)


def test_jerks_cost_smoothness_and_units_do_not():
    random = np.random.default_rng(2)
    jerky = smooth() + random.normal(0, 5, (300, 6)).astype(np.float32)
    noise = random.normal(0, 20, (300, 6)).astype(np.float32)
    values = [measure_motion(action, smooth(), LENGTH, 30).smoothness for action in (smooth(), jerky, noise)]
    assert values[0] > 0.9 > values[1] > values[2]
    assert values[2] < 0.1
    doubled = measure_motion(2 * smooth(), smooth(), LENGTH, 30)
    assert doubled.smoothness == pytest.approx(values[0], rel=1e-5)


def test_motion_is_counted_within_episodes():
    action = np.zeros((300, 6), np.float32)
    action[150:] = 90  # from one episode to the next
    action[10:20, 0] = 3
    action[200:, 5] = 50
    found = measure_motion(action, action, LENGTH, 30)
    assert found.moved.tolist() == [3, 40]
    assert found.motion == pytest.approx((3 + 3 + 40) / 300 * 30)
    assert found.gripper_range == 90


@pytest.mark.parametrize("length", [[1], [2], [1, 1, 1], [3, 1]])
def test_the_shortest_recordings_can_be_measured(length):
    values = np.arange(sum(length) * 6, dtype=np.float32).reshape(-1, 6)
    found = measure_motion(values, values, np.array(length), 30)
    assert np.isfinite([found.motion, found.smoothness, found.idle, found.follow]).all()
    assert len(found.moved) == len(length)
