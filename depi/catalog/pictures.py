"""What is kept of a picture to compare it with others: brightness, sharpness, and a tiny copy."""

import base64
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 16
"""Pixels of a tiny copy, each way."""
_STEP = 4
_COARSE = 8
_VIEW = (64, 48)


@dataclass(frozen=True)
class Sample:
    """One sampled frame of an episode.

    frame: its number in the episode
    brightness, contrast: mean and standard deviation of luma, 0..255
    sharpness: how much of the difference over 8 pixels is there from one pixel to the next; 0.5 to 0.1 in
        sharp pictures, whatever their brightness, less than half of that out of focus
    tiny: SIDE x SIDE grey values in base64
    """

    frame: int
    brightness: float
    contrast: float
    sharpness: float
    tiny: str

    @property
    def image(self) -> np.ndarray:
        """The tiny copy, float32 [SIDE, SIDE]."""
        values = np.frombuffer(base64.b64decode(self.tiny), np.uint8)
        return values.reshape(SIDE, SIDE).astype(np.float32)


def describe(frame: int, luma: np.ndarray) -> Sample:
    """A sample of a frame, from its luma, uint8 [H, W]."""
    some = luma[::_STEP, ::_STEP]
    return Sample(
        frame,
        round(float(some.mean()), 2),
        round(float(some.std()), 2),
        round(_sharpness(luma), 4),
        base64.b64encode(shrink(luma, (SIDE, SIDE)).tobytes()).decode(),
    )


def shrink(luma: np.ndarray, size: tuple[int, int] = _VIEW) -> np.ndarray:
    """A smaller copy of a picture, uint8 [height, width], each pixel the mean of what it covers."""
    return np.asarray(Image.fromarray(luma).resize(size, Image.Resampling.BOX))


def _sharpness(luma: np.ndarray) -> float:
    fine = coarse = 0.0
    for lines in (luma[::_STEP], luma[:, ::_STEP].T):
        if lines.shape[1] > _COARSE:
            values = lines.astype(np.int16)
            fine += float(np.abs(values[:, 1:] - values[:, :-1]).mean())
            coarse += float(np.abs(values[:, _COARSE:] - values[:, :-_COARSE]).mean())
    # A picture of one colour is neither sharp nor blurred; noise of compression is about one grey value.
    return fine / (coarse + 1.0)
