"""Hashes of recordings: of each episode exactly, and of landmarks that trimming and rounding do not change.

A landmark is a joint passing one of a few fixed angles. What is hashed are runs of RUN landmarks: which
joints, in which direction, how many frames lie between them, and roughly the pose of the arm. Trimming an
episode loses only the runs that it cuts; rounding, and conversion from one joint convention to another, move
few landmarks by a frame. People never repeat a movement to the frame: two halves of a real recording of one
task had no run in common, while 86% of all runs stayed the same after rounding to 0.1 degrees, and a quarter
of them with a calibration that was 2% off. Scripted motion repeats itself more: 2 to 7% at 30 fps, 4 to 13%
at 10 fps.
"""

import hashlib

import numpy as np

LEVELS = ((-40.3, -10.3, 20.3, 50.3),) * 5 + ((12.3, 40.3),)
"""Angles per joint in degrees, off the values where arms rest."""
MARGIN = 3.0
"""A joint passes a level when it is this many degrees beyond it; trembling at the level does not count."""
RUN = 4
"""Landmarks in a row that are hashed together."""
CELL, OFFSET = 20.0, 7.7
"""Poses are compared by ranges of CELL degrees; OFFSET keeps their borders away from usual resting poses."""
KEPT = 2
"""One run in KEPT is stored; the hash alone decides which, so that equal recordings store equal runs."""
MAX_STORED = 4096
"""Most hashes stored of one dataset, of each kind."""
FEWEST_POSES = 8
"""Episodes with fewer different actions are not compared: all resting arms look alike."""


def episode_hashes(action: np.ndarray, episode_length: np.ndarray) -> np.ndarray:
    """Sorted distinct uint64 hashes of the episodes' actions, of those that move at all.

    Args:
        action: float32 [F, D], as recorded.
        episode_length: int64 [E], frames.
    """
    found = set()
    for values in np.split(np.ascontiguousarray(action, "<f4"), np.cumsum(episode_length)[:-1]):
        if len(values) >= FEWEST_POSES and (np.diff(values, axis=0) != 0).any(axis=1).sum() >= FEWEST_POSES:
            found.add(int.from_bytes(hashlib.blake2b(values.tobytes(), digest_size=8).digest(), "little"))
    return np.sort(np.fromiter(found, np.uint64, len(found)))[:MAX_STORED]


def landmark_hashes(degrees: np.ndarray, episode_length: np.ndarray) -> np.ndarray:
    """Sorted distinct uint32 hashes of runs of landmarks, one in KEPT of them.

    Args:
        degrees: float [F, 6], actions in canonical degrees.
        episode_length: int64 [E], frames.
    """
    frame, channel = _landmarks(degrees, episode_length)
    episode = np.searchsorted(np.cumsum(episode_length), frame, side="right")
    count = len(frame) - RUN + 1
    if count < 1:
        return np.zeros(0, np.uint32)
    mixed = np.zeros(count, np.uint64)
    for place in range(RUN):
        later = slice(place, place + count)
        gap = frame[later] - frame[:count]
        mixed = _mix(mixed ^ (channel[later].astype(np.uint64) << np.uint64(32) | gap.astype(np.uint64)))
    pose = np.floor((degrees[frame[RUN - 1 :]] + OFFSET) / CELL).astype(np.int64).astype(np.uint64)
    for joint in pose.T:
        mixed = _mix(mixed ^ joint)
    mixed = mixed[episode[:count] == episode[RUN - 1 :]]
    mixed = np.unique(mixed[mixed % np.uint64(KEPT) == 0] >> np.uint64(32)).astype(np.uint32)
    return mixed[:MAX_STORED]


def _landmarks(degrees: np.ndarray, episode_length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames and channels (joint, level and direction) of all landmarks, in order of time."""
    starts = np.concatenate([[0], np.cumsum(episode_length)[:-1]])
    first = np.zeros(len(degrees), bool)
    first[starts] = True
    frames, channels = [], []
    levels = [(joint, level) for joint, several in enumerate(LEVELS) for level in several]
    for number, (joint, level) in enumerate(levels):
        values = degrees[:, joint]
        side = np.where(values > level + MARGIN, 1, np.where(values < level - MARGIN, -1, 0))
        told = np.where((side != 0) | first, np.arange(len(side)), 0)
        side = side[np.maximum.accumulate(told)]
        before = np.concatenate([[0], side[:-1]])
        passed = np.flatnonzero((side * before == -1) & ~first)
        frames.append(passed)
        channels.append(2 * number + (side[passed] > 0))
    frame, channel = np.concatenate(frames), np.concatenate(channels)
    order = np.lexsort((channel, frame))
    return frame[order], channel[order]


def _mix(value: np.ndarray) -> np.ndarray:
    """Mix the bits of uint64 [N], a fixed function of each value (splitmix64)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
