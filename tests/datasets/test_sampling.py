import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depi.datasets.samples.order import StreamBatchSampler, deal, position_generator, shuffled_index


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 500), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 10**9))
def test_each_epoch_is_a_permutation(size, seed, epoch):
    frames = [shuffled_index(epoch * size + step, size, seed) for step in range(size)]
    assert sorted(frames) == list(range(size))


def test_orders_differ_between_epochs_and_seeds_and_look_random():
    size = 1000
    first, second, other = (
        [shuffled_index(start + step, size, seed) for step in range(size)]
        for start, seed in ((0, 1), (size, 1), (0, 2))
    )
    for a, b in itertools.combinations((first, second, other, list(range(size))), 2):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < 10
    # Neighbours in the stream lie a third of the range apart on average, as independent draws do.
    distance = sum(abs(x - y) for x, y in itertools.pairwise(first)) / (size - 1)
    assert 300 < distance < 367


def test_the_order_is_the_same_on_every_machine():
    assert [shuffled_index(position, 10, 7) for position in range(10)] == [3, 8, 6, 1, 0, 7, 2, 5, 9, 4]


@pytest.mark.parametrize(("position", "size"), [(-1, 5), (0, 0)])
def test_no_such_position(position, size):
    with pytest.raises(ValueError, match="does not exist"):
        shuffled_index(position, size, 0)


@settings(max_examples=60, deadline=None)
@given(
    per_rank=st.integers(1, 6),
    world=st.integers(1, 5),
    start=st.integers(0, 50),
    batches=st.integers(0, 6),
)
def test_ranks_together_give_the_stream_of_one_process(per_rank, world, start, batches):
    ranks = [list(StreamBatchSampler(per_rank, rank, world, start, batches)) for rank in range(world)]
    together = [position for parts in zip(*ranks, strict=True) for part in parts for position in part]
    alone = list(StreamBatchSampler(per_rank * world, 0, 1, start, batches))
    assert together == list(itertools.chain.from_iterable(alone))
    assert all(
        len(StreamBatchSampler(per_rank, rank, world, start, batches)) == batches for rank in range(world)
    )


def camera_cost(position):
    """1, 2 or 3 cameras, 40, 45 and 15% of the time."""
    return int(np.searchsorted([40, 85], position_generator(5, position, 0).integers(100), side="right")) + 1


@given(
    resumed=st.integers(0, 50), rank=st.integers(0, 2), accumulation=st.integers(1, 3), costly=st.booleans()
)
@settings(deadline=None)
def test_a_resumed_stream_continues_where_it_stopped(resumed, rank, accumulation, costly):
    shared = {"accumulation": accumulation, "cost": (lambda position: position % 3) if costly else None}
    whole = itertools.islice(StreamBatchSampler(4, rank, 3, **shared), 60)
    rest = itertools.islice(StreamBatchSampler(4, rank, 3, start_batch=resumed, **shared), 60 - resumed)
    assert list(whole)[resumed:] == list(rest)


@pytest.mark.parametrize("cost", [None, camera_cost])
def test_the_positions_of_a_step_depend_on_its_size_alone(cost):
    def steps(batch_size, world, accumulation):
        options = {"num_batches": 20 * accumulation, "accumulation": accumulation, "cost": cost}
        ranks = [list(StreamBatchSampler(batch_size, rank, world, **options)) for rank in range(world)]
        by_step = [
            [parts[step * accumulation + micro] for parts in ranks for micro in range(accumulation)]
            for step in range(20)
        ]
        return [sorted(itertools.chain.from_iterable(parts)) for parts in by_step]

    expected = steps(24, 1, 1)
    assert steps(6, 4, 1) == steps(6, 2, 2) == steps(3, 1, 8) == steps(12, 1, 2) == expected
    whole_windows = itertools.chain.from_iterable(expected[: StreamBatchSampler.WINDOW])
    assert sorted(whole_windows) == list(range(24 * StreamBatchSampler.WINDOW))


def test_ranks_and_steps_cost_the_same():
    """In the mix of cameras that the community records."""
    ranks = [StreamBatchSampler(32, rank, 8, 0, 40, cost=camera_cost) for rank in range(8)]
    per_batch = np.array([[sum(map(camera_cost, batch)) for batch in batches] for batches in ranks])
    assert (per_batch.max(axis=0) - per_batch.min(axis=0)).max() <= 1
    assert per_batch.max() - per_batch.min() <= 3
    plain = np.array(
        [
            [sum(map(camera_cost, batch)) for batch in StreamBatchSampler(32, rank, 8, 0, 40)]
            for rank in range(8)
        ]
    )
    assert plain.max() - plain.min() > 15


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), min_size=12, max_size=60).filter(lambda costs: len(costs) % 4 == 0))
def test_dealing(costs):
    dealt = deal(dict(enumerate(costs)), 4)
    assert sorted(itertools.chain.from_iterable(dealt)) == list(range(len(costs)))
    assert {len(hand) for hand in dealt} == {len(costs) // 4}
    totals = [sum(costs[position] for position in hand) for hand in dealt]
    assert max(totals) - min(totals) <= 2


def test_bad_ranks_are_refused():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        StreamBatchSampler(4, 2, 2)
    with pytest.raises(TypeError, match="no end"):
        len(StreamBatchSampler(4))
