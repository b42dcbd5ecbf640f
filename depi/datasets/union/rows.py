"""Which rows of the columns the samples of some frames are made of, all of them at once."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from depi.datasets.union.chunks import chunk_places


@dataclass(frozen=True)
class FramePlaces:
    """B frames of a training set.

    index: int64 [B], their rows
    start, end: int64 [B], the rows where the episode of each begins and ends
    fps: float64 [B], frames per second at which it was recorded
    """

    index: np.ndarray
    start: np.ndarray
    end: np.ndarray
    fps: np.ndarray


def past_rows(places: FramePlaces, history: int, action_freq: float | None) -> np.ndarray:
    """The rows of observations up to each frame, int64 [B, history]; before its start an episode's first."""
    lower, way = _steps(places, history, action_freq, 1 - history)
    return np.maximum(places.index[:, None] + lower + (way >= 0.5), places.start[:, None])


def action_chunks(
    action: np.ndarray, places: FramePlaces, chunk_size: int, action_freq: float | None, chunk_start: int
) -> tuple[Tensor, Tensor]:
    """Chunks of actions around frames; see `chunk_places`.

    Args:
        action: float32 [F, D], of all frames.
        places: the frames.
        chunk_size: H.
        action_freq: actions per second; None for one action per frame.
        chunk_start: the chunk's first step.

    Returns:
        float32 [B, H, D], outside the episode its first or last action; and bool [B, H], True there.
    """
    lower, way = _steps(places, chunk_size, action_freq, chunk_start)
    rows = places.index[:, None] + lower
    first, last = places.start[:, None], places.end[:, None] - 1
    chunks = torch.from_numpy(action[rows.clip(first, last)])
    outside = (rows < first) | (rows + way > last)
    for sample in np.flatnonzero(way.any(1)):
        # One by one: how a sum is rounded may depend on the place in a longer row of numbers.
        after = torch.from_numpy(action[(rows[sample] + 1).clip(first[sample], last[sample])])
        chunks[sample] = torch.lerp(
            chunks[sample], after, torch.from_numpy(way[sample].astype(np.float32))[:, None]
        )
    return chunks, torch.from_numpy(outside)


def _steps(
    places: FramePlaces, size: int, action_freq: float | None, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """`chunk_places` of each frame, [B, size]."""
    steps = {fps: chunk_places(size, fps, action_freq, start) for fps in set(places.fps.tolist())}
    lower, way = zip(*(steps[fps] for fps in places.fps.tolist()), strict=True)
    return np.stack(lower), np.stack(way)
