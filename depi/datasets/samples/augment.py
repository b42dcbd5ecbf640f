"""Random changes of an image that leave its meaning: colour, hue, and a small shift, zoom and turn."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.3, 0.4, 0.5, 0.05
"""Largest relative changes at strength 1; hue in turns of the colour circle."""

CROP, ROTATION = 0.05, 5.0
"""Share of the side that a crop takes away, and degrees of turn, at strength 1."""


@dataclass(frozen=True)
class Augmentation:
    """How strongly images are changed: 0 not at all, 1 as openpi does for pi0, up to 2.

    color: brightness, contrast and saturation
    hue: the hue; this costs several times as much time as the rest
    geometry: a zoom that crops, a shift within what was cropped, and a turn
    """

    color: float = 0.0
    hue: float = 0.0
    geometry: float = 0.0

    def __post_init__(self) -> None:
        for name in ("color", "hue", "geometry"):
            if not 0 <= getattr(self, name) <= 2:
                raise ValueError(f"augment_{name} must be 0 to 2, not {getattr(self, name)}")

    def __bool__(self) -> bool:
        return bool(self.color or self.hue or self.geometry)


def augment(image: Tensor, strength: Augmentation, draw: np.ndarray, *, wrist: bool) -> Tensor:
    """Change one image.

    Args:
        image: uint8 [..., 3, H, W].
        strength: of each kind of change.
        draw: float [8] in -1..1, what was drawn for this image.
        wrist: the camera moves with the hand, so its geometry is left alone.

    Returns:
        uint8 [..., 3, H, W].
    """
    brightness, contrast, saturation, hue, *place = draw.tolist()
    if strength.geometry and not wrist:
        image = _move(image, strength.geometry, place)
    if strength.color:
        image = F.adjust_brightness(image, 1 + brightness * min(BRIGHTNESS * strength.color, 1))
        image = F.adjust_contrast(image, 1 + contrast * min(CONTRAST * strength.color, 1))
        image = F.adjust_saturation(image, 1 + saturation * min(SATURATION * strength.color, 1))
    if strength.hue:
        image = F.adjust_hue(image, hue * HUE * strength.hue)
    return image


def _move(image: Tensor, strength: float, place: list[float]) -> Tensor:
    """Crop, resize and turn in one resampling."""
    across, down, turn, size = place
    zoom = 1 / (1 - CROP * strength * (1 + size) / 2)
    # As far as the zoomed image still covers the frame.
    down_room, across_room = ((zoom - 1) / 2 * side for side in image.shape[-2:])
    return F.affine(
        image,
        angle=turn * ROTATION * strength,
        translate=[across * across_room, down * down_room],
        scale=zoom,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
