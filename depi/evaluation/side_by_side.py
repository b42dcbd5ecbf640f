"""Two videos next to each other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depi.errors import UserError

BORDER = 6  # pixels


def write_side_by_side(path: Path, left: Path, right: Path, left_won: bool, right_won: bool) -> None:
    """Write two videos next to each other as H.264 in mp4, each bordered by its outcome's colour.

    Raises:
        UserError: one of them cannot be decoded.
    """
    from depi.evaluation.films import GREEN, RED, write_video

    rates, sizes = zip(*(_probe(video) for video in (left, right)), strict=True)
    rate, height = max(rates), max(size[0] for size in sizes)
    halves = [
        _frames(video, rate, height, GREEN if won else RED)
        for video, won in ((left, left_won), (right, right_won))
    ]
    write_video(path, _joined(*halves), round(rate))


def _joined(left: Iterator[NDArray], right: Iterator[NDArray]) -> Iterator[NDArray[np.uint8]]:
    latest: list[NDArray | None] = [None, None]
    while True:
        following = [next(left, None), next(right, None)]
        if all(half is None for half in following):
            return
        latest = [old if new is None else new for new, old in zip(following, latest, strict=True)]
        yield np.concatenate([half for half in latest if half is not None], axis=1)


def _probe(video: Path) -> tuple[float, tuple[int, int]]:
    """Frames per second and (height, width) of a video."""
    import av

    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            rate, size = float(stream.average_rate or 0), (stream.height, stream.width)
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{video} is no video: {error}") from None
    return rate, size


def _frames(
    video: Path, rate: float, height: int, color: tuple[int, int, int]
) -> Iterator[NDArray[np.uint8]]:
    """Frames of a video at another rate and height, with a border."""
    import av

    shown = 0
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            width = max(round(stream.width * height / stream.height), 1)
            for number, frame in enumerate(container.decode(stream)):
                picture = frame.to_ndarray(format="rgb24", width=width, height=height)
                bordered = np.empty((height + 2 * BORDER, width + 2 * BORDER, 3), np.uint8)
                bordered[:] = color
                bordered[BORDER:-BORDER, BORDER:-BORDER] = picture
                until = round((number + 1) * rate / float(stream.average_rate or rate))
                for _ in range(until - shown):
                    yield bordered
                shown = until
    except av.FFmpegError as error:
        raise UserError(f"{video} cannot be decoded: {error}") from None
