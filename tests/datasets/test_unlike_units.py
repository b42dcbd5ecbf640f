"""Datasets whose columns or episodes are in unlike units, opened as for training."""

import numpy as np
from recordings import Recording, write_v2

from depi.datasets.recording.joints import from_degrees
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset

STEP = 360 / 4095
STEPS = np.array([2521, 2355, 2216, 2303, 3873])


class Unlike(Recording):
    """A leader in degrees, a follower in -100..100; the third episode in radians."""

    def degrees(self, episode):
        rng = np.random.default_rng((self.seed, episode))
        values = rng.uniform(
            [-40, -100, -30, 10, -50, 3], [40, 30, 95, 70, 50, 60], (self.lengths[episode], 6)
        )
        values[:5, 1:3] = -100, 95
        return np.round(values / STEP) * STEP

    def joints(self, episode):
        values = self.degrees(episode)
        if episode == 2:
            return (from_degrees(values, "radians").astype(np.float32),) * 2
        counts = np.round(values[:, :5] / STEP + STEPS / 2)
        state = np.column_stack([counts / STEPS * 200 - 100, values[:, 5]])
        return values.astype(np.float32), state.astype(np.float32)


def test_each_column_is_converted_and_the_odd_episode_left_out(tmp_path):
    recording = Unlike(lengths=(150, 150, 150, 150), cameras=("observation.images.front",))
    source = DatasetSource("ann/unlike", root=write_v2(tmp_path / "unlike", recording))
    dataset = MultiLeRobotDataset([source], chunk_size=2, max_bad_fraction=1.0)
    (entry,) = dataset.report()["datasets"]
    assert entry["convention"] == "degrees/normalized"
    assert dataset.episode_recorded.tolist() == [0, 1, 3]
    meant = np.concatenate([recording.degrees(episode) for episode in (0, 1, 3)])
    np.testing.assert_allclose(dataset.action, meant, atol=1e-3)
    np.testing.assert_allclose(dataset.state, meant, atol=STEP)
    left_out = {**entry["episodes_left_out"], **entry["bad_episodes"]}
    assert list(left_out) == ["2"]
    assert left_out["2"].startswith("units_agree: it is in small values (radians or scaled), the rest in")
