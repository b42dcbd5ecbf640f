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
# By how much small copies of one picture differ, encoded twice, by SVT-AV1 and by x264. Noise makes as much
# of a difference, an arm that moves by its own width 30 and more.
_SAME, _SIMILAR = {"av1": 6}, 10
_CHANGED = 12


@dataclass(frozen=True)
class Sample:
    """One sampled frame of an episode.

    frame: its number in the episode
    brightness, contrast: mean and standard deviation of luma, 0..255
    sharpness: how far a pixel is from the mean of its two neighbours, compared with the difference over 8
        pixels; 0.2 to 0.5 in sharp pictures, a third to a half of that out of focus, whatever the light
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


def is_same(a: np.ndarray, b: np.ndarray, codec: str) -> bool:
    """Whether two decoded frames (luma, uint8 [H, W]) are of one picture."""
    return int(np.abs(shrink(a).astype(np.int16) - shrink(b)).max()) <= _SAME.get(codec, _SIMILAR)


def changed(a: np.ndarray, b: np.ndarray) -> float:
    """The share of the picture that differs between two frames (luma, uint8 [H, W])."""
    return round(float((np.abs(shrink(a).astype(np.int16) - shrink(b)) > _CHANGED).mean()), 4)


def shrink(luma: np.ndarray, size: tuple[int, int] = _VIEW) -> np.ndarray:
    """A smaller copy of a picture, uint8 [height, width], each pixel the mean of what it covers."""
    return np.asarray(Image.fromarray(luma).resize(size, Image.Resampling.BOX))


def _sharpness(luma: np.ndarray) -> float:
    fine = coarse = 0.0
    for lines in (luma[::_STEP], luma[:, ::_STEP].T):
        if lines.shape[1] > _COARSE:
            values = lines.astype(np.int16)
            fine += float(np.abs(values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]).mean())
            coarse += float(np.abs(values[:, _COARSE:] - values[:, :-_COARSE]).mean())
    # A picture of one colour is neither sharp nor blurred; noise of compression is about one grey value.
    return fine / (coarse + 1.0)
