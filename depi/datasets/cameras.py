"""Which camera goes to which slot, and images to the one size of a training sample."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

VIEWS = ("wrist", "front", "top", "side")


def slot_order(camera_keys: Iterable[str]) -> tuple[str, ...]:
    """Camera keys in the order of the slots: known views first (wrist, front, top, side), then by name.

    The order depends on nothing but the names, so a dataset's cameras have the same slots in every run.
    """
    return tuple(sorted(camera_keys, key=_rank))


def _rank(key: str) -> tuple[int, str]:
    name = key.removeprefix("observation.images.").lower()
    view = next((rank for rank, view in enumerate(VIEWS) if view in name), len(VIEWS))
    return view, name


def letterbox(image: Tensor, size: int) -> Tensor:
    """Scale to fit a square, keeping the aspect ratio, centred on black; as LeRobot's pi0 does.

    Args:
        image: uint8 [C, H, W].
        size: side of the square.

    Returns:
        uint8 [C, size, size], contiguous. An image of that size already comes back unchanged.
    """
    height, width = image.shape[-2:]
    if (height, width) == (size, size):
        return image.contiguous()
    ratio = max(width, height) / size
    new_height, new_width = max(1, int(height / ratio)), max(1, int(width / ratio))
    scaled = F.interpolate(image[None], (new_height, new_width), mode="bilinear", align_corners=False)[0]
    square = image.new_zeros((image.shape[0], size, size))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square[:, top : top + new_height, left : left + new_width] = scaled
    return square
