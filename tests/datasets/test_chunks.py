"""Which frames a chunk of actions is made of, and the statistics of chunks relative to the state."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depi.datasets.union.chunks import ChunkData, chunk_places, relative_stats
from depi.datasets.union.statistics import compute_stats

SIZE = 7


def made_up(seed: int, episodes: int, frames: int) -> ChunkData:
    """Episodes of 1 to `frames` frames at three rates, of which some do not count; values repeat."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, frames, episodes, endpoint=True)
    action = (rng.normal(0, 30, (length.sum(), 3)) // 4 * 4).astype(np.float32)
    state = action - rng.normal(0, 1, action.shape).astype(np.float32)
    drawn = rng.random(episodes) < 0.8
    drawn[0] = True
    return ChunkData(
        state, action, np.r_[0, length.cumsum()], rng.choice([10.0, 24.99, 50.0], episodes), drawn
    )


def pooled(data: ChunkData, relative: list[bool], action_freq: float | None) -> np.ndarray:
    """The actions of all chunks, one after another, by the definition."""
    values = []
    for episode in np.flatnonzero(data.drawn):
        first, end = data.episode_start[episode : episode + 2]
        frame, action = np.arange(end - first), data.action[first:end].astype(np.float64)
        for start in frame:
            step = data.fps[episode] / action_freq if action_freq else 1.0
            place = start + np.arange(SIZE) * step
            place = place[place <= end - first - 1]
            at = np.stack([np.interp(place, frame, column) for column in action.T], axis=1)
            values.append(at - np.where(relative, data.state[first + start], 0))
    return np.concatenate(values)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000), st.integers(1, 6), st.sampled_from([1, 2, 40]), st.sampled_from([None, 20.0, 50.0])
)
def test_equals_numpy_on_the_pooled_chunks(seed, episodes, frames, action_freq):
    data, relative = made_up(seed, episodes, frames), [True, True, False]
    expected = compute_stats(pooled(data, relative, action_freq).astype(np.float32))
    stats = relative_stats(data, relative, SIZE, action_freq)
    assert stats.keys() == expected.keys()
    for name, value in expected.items():
        if name != "count":
            np.testing.assert_allclose(stats[name], value, rtol=0, atol=3e-5)
            assert stats[name].dtype == np.float32
    assert stats["count"] == np.diff(data.episode_start)[data.drawn].sum()


def test_places_between_frames():
    lower, way = chunk_places(4, 30.0, 20.0)
    assert lower.tolist() == [0, 1, 3, 4]
    assert way.tolist() == [0, 0.5, 0, 0.5]
    assert chunk_places(3, 30.0, None)[0].tolist() == chunk_places(3, 30.0, 30.0)[0].tolist() == [0, 1, 2]


@pytest.mark.slow
def test_five_million_frames_take_seconds():
    """At most 30 s on two cores: `pytest -m slow -s tests/datasets/test_chunks.py`."""
    rng = np.random.default_rng(0)
    length = rng.integers(200, 600, 12_500)
    action = rng.normal(0, 30, (length.sum(), 6)).astype(np.float32)
    data = ChunkData(action[::-1], action, np.r_[0, length.cumsum()], np.full(len(length), 30.0), length > 0)
    begin = time.perf_counter()
    relative_stats(data, [True] * 6, 50)
    seconds = time.perf_counter() - begin
    print(f"{len(action):,} frames: {seconds:.1f} s")
    assert seconds < 30
