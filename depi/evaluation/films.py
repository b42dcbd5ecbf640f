"""Videos of episodes, and colours of contact sheets."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depi.files import atomic_write

GREEN, RED, GRAY = (40, 170, 70), (205, 50, 45), (130, 130, 130)


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: int) -> None:
    """Write RGB frames, uint8 (H, W, 3) of one size, as H.264 in mp4; the file appears complete or not."""
    import av

    remaining = iter(frames)
    first = next(remaining)
    height, width = first.shape[:2]
    even = ((0, height % 2), (0, width % 2), (0, 0))  # the pixel format halves both
    with atomic_write(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        for frame in chain([first], remaining):
            picture = av.VideoFrame.from_ndarray(np.pad(frame, even, mode="edge"), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
