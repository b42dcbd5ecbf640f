"""The rule about episodes that are copies of another one of the same recording, trimmed or a little noisy."""

from collections.abc import Iterator

import numpy as np

from depi.datasets.judging.faults import Finding, Recording
from depi.datasets.judging.movement import Track

CELL = 8.0
"""Poses are told apart by this many degrees of each joint. Of such cells, two of 170 real episodes had up
to 38% in common, one and its copy with noise of 0.5 degrees 64% and more."""
BINS = 2048
"""Cells are hashed to so many numbers; an episode passes 20 to 200."""
CANDIDATE = 0.5
"""Share of the cells in common from which two episodes are compared frame by frame."""
FEWEST_CELLS = 8
"""Episodes that pass fewer cells are not compared: all resting arms look alike."""
TRIES = 5
"""An episode is compared with at most so many earlier ones, the most alike."""
SAME = 1.2
"""Degrees, root of the mean square over joints and frames, between an episode and its copy. The
nearest of 760 pairs of real episodes, at their best shift, were 4.4 degrees apart."""
SAME_SHARE = 0.1
"""And share of how much the episode itself moves: two rests at the same place are no copies."""
MOST_EPISODES = 2_000
"""Each is compared with all before it, which takes 1 s of processor time for so many; more are not."""
OVERLAP = 0.7
"""Share of the shorter one that has to be in both."""


def not_a_copy(recording: Recording) -> Iterator[Finding]:
    """The episode is no copy of an earlier one of up to 2,000, exact, trimmed or with a little noise."""
    if len(recording.length) > MOST_EPISODES:
        return
    movement = recording.movement
    passed = _cells(movement.commanded)
    count = passed.sum(axis=1)
    numbers = recording.meta.episodes.episode_index
    copies = np.zeros(len(count), bool)
    enough = (count >= FEWEST_CELLS) & (movement.length >= 2)
    for later in range(1, len(count)):
        if not enough[later]:
            continue
        common = passed[:later] @ passed[later] / np.minimum(count[:later], count[later])
        common[copies[:later] | ~enough[:later]] = 0
        near = np.flatnonzero(common >= CANDIDATE)
        for earlier in near[np.argsort(-common[near])][:TRIES]:
            shift = _shift(recording, int(earlier), later)
            if shift is not None:
                copies[later] = True
                yield Finding(later, f"a copy of episode {numbers[earlier]}, {shift:+d} frames shifted")
                break


def _cells(track: Track) -> np.ndarray:
    """Which cells of poses each episode passes, by their hash: float32 [E, BINS] of 0 and 1."""
    # Odd factors mix the joints' cell numbers; the shift keeps cell borders away from zero, where arms rest.
    cells = np.floor((track.values + 3.3) / CELL).astype(np.int64)
    hashed = cells @ np.array([1, 31, 977, 30011, 924269, 28629151]) % BINS
    passed = np.zeros((len(track.length), BINS), np.float32)
    passed[track.episode, hashed] = 1
    return passed


def _shift(recording: Recording, earlier: int, later: int) -> int | None:
    """The frames by which one episode is shifted in the other where it is a copy, else None."""
    first, second = (recording.frames(position) for position in (earlier, later))
    difference, shifts = _differences(recording.action[first], recording.action[second])
    best = int(np.argmin(difference))
    shift = int(shifts[best])
    state = recording.state[first], recording.state[second]
    begin, end = max(0, -shift), min(len(state[1]), len(state[0]) - shift)
    moved = float(np.sqrt(recording.action[second][begin:end].var(axis=0).mean()))
    if difference[best] > min(SAME, SAME_SHARE * moved):
        return None
    apart = state[1][begin:end] - state[0][begin + shift : end + shift]
    return shift if float(np.sqrt(np.mean(apart**2))) <= SAME else None


def _differences(longer: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square difference of two episodes, [n, 6] and [m, 6], for each shift with enough overlap.

    Returns:
        The differences in degrees, and the shifts: frame t of `other` goes with t + shift of `longer`.
    """
    n, m = len(longer), len(other)
    middle = longer.mean(axis=0, dtype=np.float64)
    first, second = longer - middle, other - middle
    size = 1 << (n + m - 1).bit_length()
    product = (np.fft.rfft(first, size, axis=0) * np.fft.rfft(second, size, axis=0).conj()).sum(axis=1)
    together = np.fft.irfft(product, size)
    shifts = np.arange(-(m - 1), n)
    begin, end = np.maximum(0, -shifts), np.minimum(m, n - shifts)
    energy = [np.concatenate([[0.0], np.cumsum((side**2).sum(axis=1))]) for side in (first, second)]
    total = energy[0][end + shifts] - energy[0][begin + shifts] + energy[1][end] - energy[1][begin]
    overlap = end - begin
    difference = np.sqrt(np.maximum(total - 2 * together[shifts], 0) / (overlap * longer.shape[1]))
    difference[overlap < OVERLAP * min(n, m)] = np.inf
    return difference, shifts
