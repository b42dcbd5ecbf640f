"""The order of training samples: a pure function of (seed, position), with no memory and no state.

The stream of samples is numbered 0, 1, 2, ... without end. Position p belongs to epoch p // size, and every
epoch visits each frame once, in an order of its own. Processes and workers share the stream by taking
positions, so any number of them sees the same samples, and a run resumes at any position.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch.utils.data

_MASK = 2**64 - 1
_ROUNDS = 6


def shuffled_index(position: int, size: int, seed: int) -> int:
    """The frame at a position of the stream.

    A Feistel network permutes the numbers below the next power of four; numbers that are not below `size` are
    sent through it again until one is, which leaves a permutation of 0..size-1. O(1) memory, a few µs.

    Args:
        position: 0, 1, 2, ... in the stream.
        size: number of frames, at least 1.
        seed: any integer.

    Returns:
        A frame index; positions k * size to (k + 1) * size - 1 give each one once.
    """
    if size < 1 or position < 0:
        raise ValueError(f"position {position} of a stream over {size} frames does not exist")
    epoch, value = divmod(position, size)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    key = _mix(_mix(seed & _MASK) ^ epoch)
    while True:
        value = _permute(value, half, key)
        if value < size:
            return value


def _permute(value: int, half: int, key: int) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mix(key + (number << 58) + right) & mask)
    return left << half | right


def _mix(value: int) -> int:
    """A well-mixing map of 64-bit numbers (the finaliser of SplitMix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


def position_generator(seed: int, position: int, purpose: int) -> np.random.Generator:
    """Random numbers that belong to one position of the stream.

    Args:
        seed: any integer.
        position: in the stream.
        purpose: a number for each use, so that their draws do not depend on one another.
    """
    key = [seed & _MASK, position & _MASK]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, purpose]))


class StreamBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of stream positions for one of several processes.

    An optimizer step takes the next G = batch_size * world_size * accumulation positions of the stream, split
    into micro-batches, and these among the ranks. So the global stream does not depend on the number of
    processes, as long as G is the same.

    Samples may differ in cost, such as the number of their images. With `cost` the positions of `WINDOW`
    steps are dealt out to these steps, and those of a step to its micro-batches and ranks, so that each has
    nearly the same cost: no rank waits for another, and batches have nearly the same size. Which positions a
    step sees still depends on G alone, and every position is seen once.

    Args:
        batch_size: samples per micro-batch and process.
        rank: this process, 0..world_size-1.
        world_size: number of processes.
        start_batch: micro-batches of this process that are done already.
        num_batches: micro-batches to yield; None for no end.
        accumulation: micro-batches per optimizer step.
        cost: of the sample at a position, a whole number; None if all cost the same.
    """

    WINDOW = 16

    def __init__(
        self,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
        num_batches: int | None = None,
        *,
        accumulation: int = 1,
        cost: Callable[[int], int] | None = None,
    ) -> None:
        if batch_size < 1 or accumulation < 1 or not 0 <= rank < world_size or start_batch < 0:
            raise ValueError(f"no batches of {batch_size} for rank {rank} of {world_size} from {start_batch}")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.start_batch, self.num_batches = start_batch, num_batches
        self.accumulation, self.cost = accumulation, cost

    def __iter__(self) -> Iterator[list[int]]:
        steps = self._steps(self.start_batch // self.accumulation)
        batch = self.start_batch
        micro_batches: list[list[int]] = []
        while self.num_batches is None or batch < self.start_batch + self.num_batches:
            micro_step = batch % self.accumulation
            if micro_step == 0 or not micro_batches:
                micro_batches = next(steps)
            yield micro_batches[micro_step * self.world_size + self.rank]
            batch += 1

    def _steps(self, step: int) -> Iterator[list[list[int]]]:
        """The micro-batches of all ranks, step by step."""
        parts = self.accumulation * self.world_size
        size = self.batch_size * parts
        if self.cost is None:
            while True:
                first = range(step * size, (step + 1) * size, self.batch_size)
                yield [list(range(start, start + self.batch_size)) for start in first]
                step += 1
        while True:
            window, first_step = divmod(step, self.WINDOW)
            positions = range(window * self.WINDOW * size, (window + 1) * self.WINDOW * size)
            costs = {position: self.cost(position) for position in positions}
            for of_step in deal(costs, self.WINDOW)[first_step:]:
                yield deal({position: costs[position] for position in of_step}, parts)
                step += 1

    def __len__(self) -> int:
        if self.num_batches is None:
            raise TypeError("the stream has no end")
        return self.num_batches


def deal(costs: Mapping[int, int], hands: int) -> list[list[int]]:
    """Deal positions out so that all hands have as many of them, and nearly the same cost.

    The dearest positions go first, each to the hand that has the least cost so far and room left. With costs
    that differ by a few units, as numbers of cameras do, hands end within one such difference of each other.

    Args:
        costs: of the positions, whose number is a multiple of `hands`.
        hands: at least 1.

    Returns:
        The positions of every hand, ascending.
    """
    room = len(costs) // hands
    dealt: list[list[int]] = [[] for _ in range(hands)]
    poorest = [(0, hand) for hand in range(hands)]
    for position in sorted(costs, key=lambda position: (-costs[position], position)):
        total, hand = heapq.heappop(poorest)
        dealt[hand].append(position)
        if len(dealt[hand]) < room:
            heapq.heappush(poorest, (total + costs[position], hand))
    return [sorted(hand) for hand in dealt]
