import collections
import itertools
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depi.datasets.samples.filters import (
    FrameFilter,
    frame_ranges,
    is_held_out,
    least_motion,
    moving_range,
    read_exclusions,
)
from depi.datasets.samples.mixture import Mixture, make_mixture
from depi.datasets.samples.order import StreamBatchSampler, shuffled_index
from depi.errors import UserError


def pool(datasets, tasks=None, seed=0):
    """Columns of a training set: episode lengths per dataset, task per frame (0 by default)."""
    lengths = [length for dataset in datasets for length in dataset]
    frames = sum(lengths)
    rng = np.random.default_rng(seed)
    return SimpleNamespace(
        repo_ids=tuple(f"user/{number}" for number in range(len(datasets))),
        state=rng.normal(size=(frames, 2)),
        action=rng.normal(size=(frames, 2)),
        task=np.zeros(frames, int) if tasks is None else np.array(tasks),
        episode_start=np.concatenate([[0], np.cumsum(lengths)]),
        episode_dataset=np.repeat(np.arange(len(datasets)), [len(dataset) for dataset in datasets]),
        episode_recorded=np.concatenate([np.arange(len(dataset)) * 3 for dataset in datasets]),
    )


def owner_of(data, frame):
    """The dataset of a frame, by walking the episodes."""
    for episode, number in enumerate(data.episode_dataset):
        if data.episode_start[episode] <= frame < data.episode_start[episode + 1]:
            return int(number)
    raise AssertionError(frame)


def drawn(mixture, count, start=0):
    return [mixture[position] for position in range(start, start + count)]


DATASETS = st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(datasets=DATASETS, seed=st.integers(-5, 2**65))
def test_by_default_each_frame_comes_once_an_epoch_in_the_plain_shuffled_order(datasets, seed):
    data = pool(datasets)
    frames = sum(map(sum, datasets))
    order = drawn(make_mixture(data, seed=seed), 2 * frames)
    assert order == [shuffled_index(position, frames, seed) for position in range(2 * frames)]


@settings(max_examples=40, deadline=None)
@given(datasets=DATASETS, weights=st.lists(st.integers(0, 9), min_size=5, max_size=5), seed=st.integers(0, 9))
def test_blocks_hold_exact_counts_and_draw_all_frames_of_a_dataset_alike(datasets, weights, seed):
    data = pool(datasets)
    table = dict(zip(data.repo_ids, weights, strict=False))
    total = sum(table.values())
    if not total:
        with pytest.raises(UserError, match="weight 0"):
            make_mixture(data, weights=table, seed=seed)
        return
    mixture = make_mixture(data, weights=table, seed=seed)
    blocks = [drawn(mixture, mixture.block, start * mixture.block) for start in (0, 1)]
    owners = [collections.Counter(owner_of(data, frame) for frame in block) for block in blocks]
    assert owners[0] == owners[1]
    for number, repo_id in enumerate(data.repo_ids):
        assert owners[0][number] == pytest.approx(mixture.block * table[repo_id] / total, abs=1)
        times = collections.Counter(itertools.chain(*blocks))
        times = [times[frame] for frame in range(sum(map(sum, datasets))) if owner_of(data, frame) == number]
        assert max(times) - min(times) <= 1
    if len(set(blocks[0])) > 1:
        assert blocks[0] != blocks[1]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("proportional", [0.1, 0.9]),
        ("sqrt", [0.25, 0.75]),
        ("uniform", [0.5, 0.5]),
        ({"user/0": 3, "user/1": 1, "not/here": 7}, [0.75, 0.25]),
    ],
)
def test_shares(weights, expected):
    data = pool([[10], [40, 50]], tasks=[0] * 100)
    mixture = make_mixture(data, weights=weights, balance_tasks=weights == "proportional", seed=1)
    assert list(mixture.shares().values()) == pytest.approx(expected, abs=0.01)
    owners = np.array([owner_of(data, frame) for frame in drawn(mixture, 4096)])
    assert [(owners == 0).mean(), (owners == 1).mean()] == pytest.approx(expected, abs=0.04)


def test_a_small_share_is_met_and_no_dataset_is_forgotten():
    weights = [1e-6, 1, 1]
    mixture = Mixture(np.array([[0, 5], [5, 6], [6, 9]]), np.arange(3), ["a", "b", "c"], weights, 0)
    assert mixture.counts[0] >= 64
    assert mixture.shares()["a"] == pytest.approx(5e-7, rel=0.01)
    with pytest.raises(UserError, match="'a' is less than a billionth"):
        Mixture(np.array([[0, 5], [5, 6]]), np.arange(2), ["a", "b"], [1e-12, 1], 0)


def test_tasks_of_a_dataset_share_its_weight_evenly():
    tasks = [0] * 30 + [1] * 10 + [1] * 20 + [2] * 40
    data = pool([[30, 30], [40]], tasks)
    mixture = make_mixture(data, weights="uniform", balance_tasks=True, seed=0)
    count = collections.Counter(tasks[frame] for frame in drawn(mixture, mixture.block))
    assert [count[task] / mixture.block for task in range(3)] == pytest.approx([0.25, 0.25, 0.5], abs=0.01)
    assert set(drawn(mixture, mixture.block)) == set(range(100))


def test_a_task_that_changes_within_an_episode_is_cut_there():
    data = pool([[10]], tasks=[0, 0, 0, 1, 1, 0, 0, 2, 2, 2])
    mixture = make_mixture(data, balance_tasks=True, seed=0)
    count = collections.Counter(data.task[frame] for frame in drawn(mixture, mixture.block))
    assert [count[task] / mixture.block for task in range(3)] == pytest.approx([1 / 3] * 3, abs=0.01)
    assert set(drawn(mixture, mixture.block)) == set(range(10))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"user/0": 1}, "dataset user/1 has no weight"),
        ({"user/0": 1, "user/1": -1}, "the weight of dataset user/1 is -1"),
        ({"user/0": 1, "user/1": float("nan")}, "user/1 is nan"),
        ("cubic", "'cubic' are none of proportional, sqrt, uniform"),
    ],
)
def test_weights_that_are_none(weights, says):
    with pytest.raises(UserError, match=says):
        make_mixture(pool([[3], [4]]), weights=weights, seed=0)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_processes_draws_the_same_stream(world):
    mixture = make_mixture(pool([[50], [9, 9]]), weights="uniform", seed=3)
    ranks = [
        StreamBatchSampler(8 // world, rank, world, start_batch=5, num_batches=20) for rank in range(world)
    ]
    together = [
        mixture[position] for parts in zip(*ranks, strict=True) for part in parts for position in part
    ]
    assert together == drawn(mixture, 160, start=40)


def test_sixty_million_frames_are_addressed_at_once():
    bounds = np.array([[0, 20_000_000], [20_000_000, 60_000_000]])
    started = time.perf_counter()
    for weights in (None, [1, 3]):
        group = [0, 0] if weights is None else [0, 1]
        mixture = Mixture(bounds, group, ["a", "b"][: 1 + bool(weights)], weights, 7)
        frames = [mixture[position] for position in (0, 59_999_999, 10**12, 10**15)]
        assert all(0 <= frame < 60_000_000 for frame in frames)
        arrays = [value for value in vars(mixture).values() if isinstance(value, np.ndarray)]
        assert sum(map(sys.getsizeof, arrays)) < 2000
        assert mixture.num_frames == 60_000_000
    assert time.perf_counter() - started < 0.5


def test_held_out_episodes_are_never_drawn_in_training_and_all_are_in_evaluation():
    data = pool([[4] * 60, [3] * 80])
    mixtures = [
        make_mixture(data, weights="sqrt", filters=FrameFilter(eval_split=0.25, split=split, seed=5), seed=5)
        for split in ("train", "eval")
    ]
    seen = [set(drawn(mixture, 3 * mixture.block)) for mixture in mixtures]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(60 * 4 + 80 * 3))
    assert 0.15 < mixtures[1].num_frames / 480 < 0.35
    starts = data.episode_start[:-1]
    for start, end in zip(starts, data.episode_start[1:], strict=True):
        assert len({frame in seen[1] for frame in range(start, end)}) == 1


def test_an_episode_stays_on_its_side_when_datasets_come_and_shares_grow():
    alone, more = pool([[2] * 40]), pool([[5] * 7, [2] * 40])
    more.repo_ids = ("another/one", "user/0")
    filters = FrameFilter(eval_split=0.3, split="eval")
    kept = [np.diff(frame_ranges(data, filters)[0])[:, 0] > 0 for data in (alone, more)]
    np.testing.assert_array_equal(kept[0], kept[1][7:])
    small, large = ({i for i in range(500) if is_held_out("a/b", i, 1, share)} for share in (0.1, 0.2))
    assert small < large
    assert 0.05 < len(small) / 500 < 0.15


def test_which_episodes_are_drawn_from():
    data = pool([[10, 2, 30], [5, 5]])
    filters = FrameFilter(min_episode_frames=5, exclude={data.repo_ids[0]: [0]})
    mixture = make_mixture(data, filters=filters, seed=0)
    assert mixture.draws_from(data.episode_start).tolist() == [False, False, True, True, True]
    weights = {data.repo_ids[0]: 1, data.repo_ids[1]: 0}
    mixture = make_mixture(data, weights=weights, seed=0)
    assert mixture.draws_from(data.episode_start).tolist() == [True, True, True, False, False]


def test_excluded_and_short_episodes_are_left_out():
    data = pool([[5, 2, 5], [5, 5]])
    filters = FrameFilter(min_episode_frames=3, exclude={"user/0": [6], "not/here": [0]})
    ranges, removed = frame_ranges(data, filters)
    assert ranges[:, 1].tolist() == [5, 5, 7, 17, 22]
    assert removed == {"excluded": 1, "other_split": 0, "idle_frames": 0, "too_short": 1}
    assert set(drawn(make_mixture(data, filters=filters, seed=0), 15)) == {*range(5), *range(12, 22)}
    with pytest.raises(UserError, match=r"no frame is left to draw.*too short 5|too_short 5"):
        make_mixture(data, filters=FrameFilter(min_episode_frames=6), seed=0)


@pytest.mark.parametrize("balance_tasks", [False, True])
def test_which_frames_are_drawn_and_what_comes_next(balance_tasks):
    data = pool([[3, 2, 4], [5, 5]], tasks=[0, 0, 1, 2, 2, 0, 0, 1, 1, *[3] * 10])
    filters = FrameFilter(exclude={"user/0": [3], "user/1": [0]})
    mixture = make_mixture(data, balance_tasks=balance_tasks, filters=filters, seed=0)
    kept = [*range(3), *range(5, 9), *range(14, 19)]
    assert [frame for frame in range(-1, 20) if frame in mixture] == kept
    assert mixture.range_after(4, 0, 9) == 5
    assert mixture.range_after(8, 0, 9) == 0
    assert mixture.range_after(9, 9, 19) == 14
    with pytest.raises(ValueError, match=r"no frame of 3\.\.4"):
        mixture.range_after(3, 3, 5)


def episode(*parts):
    """One joint that rests or moves: (frames, from, to) each; noise of a thousandth of the range."""
    values = np.concatenate([np.linspace(a, b, frames) for frames, a, b in parts])[:, None]
    return values + np.random.default_rng(0).uniform(-0.1, 0.1, values.shape)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        pytest.param([(20, 0, 0), (10, 10, 100), (15, 100, 100)], (19, 30), id="head and tail"),
        pytest.param([(10, 10, 100), (5, 100, 100)], (0, 10), id="tail"),
        pytest.param([(5, 0, 0), (10, 10, 100)], (4, 15), id="head"),
        pytest.param(
            [(20, 0, 0), (5, 10, 100), (9, 100, 100), (5, 90, 0), (20, 0, 0)], (19, 40), id="there and back"
        ),
        pytest.param([(30, 0, 0)], (0, 0), id="nothing"),
    ],
)
def test_idle_ends(parts, expected):
    values = episode(*parts)
    first, last = moving_range([values], [np.array([2.0])])
    assert (first, last) == pytest.approx(expected, abs=1)


def test_a_slow_start_is_motion_at_any_frame_rate():
    for frames in (50, 5000):
        values = np.concatenate([np.zeros(frames), np.linspace(0, 100, frames)])[:, None]
        first, last = moving_range([values, values], [least_motion(values)] * 2)
        assert 1 <= first / frames <= 1.05
        assert last == pytest.approx(2 * frames * 0.99, rel=0.02)


def test_the_noise_of_a_resting_joint_is_no_motion():
    values = np.concatenate([episode((20, 0, 0), (20, 5, 100)), episode((40, 0, 0)) / 10], axis=1)
    first, _ = moving_range([values], [least_motion(values)])
    assert first == 19


def test_idle_ends_are_not_drawn_and_an_idle_episode_not_at_all():
    data = pool([[40, 30]])
    data.state = np.concatenate([episode((20, 0, 0), (20, 5, 100)), episode((30, 0, 0))])
    data.action = data.state.copy()
    ranges, removed = frame_ranges(data, FrameFilter(trim_idle=True))
    assert ranges.tolist() == [[19, 40], [40, 40]]
    assert removed["idle_frames"] == 49
    assert removed["too_short"] == 1


@pytest.mark.parametrize("content", ['["a/b"]', '{"a/b": 3}', '{"a/b": ["1"]}', '{"a/b": [true]}'])
def test_an_exclusion_file_of_another_shape_is_refused(tmp_path, content):
    file = tmp_path / "exclude.json"
    file.write_text(content)
    with pytest.raises(UserError, match="list of episode numbers"):
        read_exclusions(file)
    file.write_text('{"a/b": [1, 2]}')
    assert read_exclusions(file) == {"a/b": [1, 2]}


def test_impossible_arguments():
    with pytest.raises(ValueError, match="eval_split"):
        FrameFilter(eval_split=1)
    with pytest.raises(ValueError, match="split 'test'"):
        FrameFilter(split="test")
    with pytest.raises(ValueError, match="ranges with frames"):
        Mixture(np.array([[0, 0]]), [0], ["a"], None, 0)
