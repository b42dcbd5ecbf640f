import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depi.datasets.sampling import StreamBatchSampler, shuffled_index


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


@given(resumed=st.integers(0, 30), rank=st.integers(0, 2))
def test_a_resumed_stream_continues_where_it_stopped(resumed, rank):
    whole = itertools.islice(StreamBatchSampler(4, rank, 3), 40)
    rest = itertools.islice(StreamBatchSampler(4, rank, 3, start_batch=resumed), 40 - resumed)
    assert list(whole)[resumed:] == list(rest)


def test_bad_ranks_are_refused():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        StreamBatchSampler(4, 2, 2)
    with pytest.raises(TypeError, match="no end"):
        len(StreamBatchSampler(4))
