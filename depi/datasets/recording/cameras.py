"""Which camera goes to which slot, and images to the one size of a training sample."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VIEWS = ("wrist", "front", "top", "side")
UNUSABLE = "unusable"
"""The annotated view of a camera that shows nothing of use: dark, covered, pointed at a wall."""


def slot_order(camera_keys: Iterable[str]) -> tuple[str, ...]:
    """Camera keys in the order of the slots: known views first (wrist, front, top, side), then by name.

    The order depends on nothing but the names, so a dataset's cameras have the same slots in every run.
    """
    return tuple(sorted(camera_keys, key=_rank))


def view_in_name(camera_key: str) -> str | None:
    """The view that a camera's name tells: the first of VIEWS that occurs in it; a laptop is no top."""
    name = _short_name(camera_key).replace("laptop", "").replace("desktop", "")
    return next((view for view in VIEWS if view in name), None)


def _rank(key: str) -> tuple[int, str]:
    view = view_in_name(key)
    return len(VIEWS) if view is None else VIEWS.index(view), _short_name(key)


def _short_name(camera_key: str) -> str:
    return camera_key.removeprefix("observation.images.").lower()


def slots_by_view(
    camera_keys: Sequence[str], views: Mapping[str, str], num_slots: int
) -> tuple[int | None, ...]:
    """Which camera goes to each slot, when slot i is for the view VIEWS[i].

    A camera's view is the annotated one, or else what its name tells. The first camera of a view gets its
    slot. The others (of no known view, of one that is taken, or that has no slot) fill the slots that are
    left over, save the wrist's, which no other camera enters unless it is the only slot. A camera annotated
    UNUSABLE gets no slot, unless all are. So a camera may stay without a slot, but never all of them.

    Args:
        camera_keys: a dataset's cameras.
        views: camera key -> view, as far as annotated.
        num_slots: slots of a sample.

    Returns:
        for every slot the position of its camera in `camera_keys`, or None.
    """
    slots: list[int | None] = [None] * num_slots
    waiting = []
    none_usable = all(views.get(key) == UNUSABLE for key in camera_keys)
    for camera, key in enumerate(camera_keys):
        view = views.get(key) or view_in_name(key)
        if view == UNUSABLE and not none_usable:
            continue
        slot = VIEWS.index(view) if view in VIEWS else num_slots
        if slot < num_slots and slots[slot] is None:
            slots[slot] = camera
        else:
            waiting.append(camera)
    free = [slot for slot in range(num_slots) if slots[slot] is None and (slot > 0 or num_slots == 1)]
    for slot, camera in zip(free, waiting, strict=False):
        slots[slot] = camera
    return tuple(slots)


def letterbox(image: "Tensor", size: int) -> "Tensor":
    """Scale to fit a square, keeping the aspect ratio, centred on black; as LeRobot's pi0 does.

    Args:
        image: uint8 [C, H, W].
        size: side of the square.

    Returns:
        uint8 [C, size, size], contiguous. An image of that size already comes back unchanged.
    """
    # Here, so that whoever only asks for views does not wait seconds for torch.
    import torch.nn.functional as F

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
