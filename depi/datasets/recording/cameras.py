"""Which camera goes to which slot, and images to the one size of a training sample.

ORDERS holds all that the rest of DePi needs to know of an order: training, evaluation, advantages, prepared
images and the model card take it from there, by the text of `--dataset.cameras`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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


def numbered_slots(policy_keys: Iterable[str]) -> bool:
    """Whether a policy's cameras are slots, `observation.images.0` and so on."""
    return all(key == f"observation.images.{slot}" for slot, key in enumerate(policy_keys))


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


@dataclass(frozen=True)
class CameraOrder:
    """How the cameras of a dataset, or of an environment, find the slots of a sample.

    card: the sentence of the model card.
    choose: camera keys -> those that are read, the most wanted first; what has no slot is not read.
    place: (chosen keys, annotated views by key, number of slots) -> for each slot the position of its camera
        among the chosen, or None; a position that there is not means an empty slot too.
    by_views: whether `place` looks at annotated views.
    shuffled: whether training draws another order for every sample.
    least_slots: of a sample.
    """

    card: str
    choose: Callable[[Sequence[str]], tuple[str, ...]]
    place: Callable[[Sequence[str], Mapping[str, str], int], tuple[int | None, ...]]
    by_views: bool = False
    shuffled: bool = False
    least_slots: int = 1

    def by_slot(self, camera_keys: Sequence[str], num_slots: int) -> tuple[str | None, ...]:
        """The camera of each slot, for cameras of which no views are annotated."""
        chosen = self.choose(camera_keys)[:num_slots]
        return tuple(
            None if place is None or place >= len(chosen) else chosen[place]
            for place in self.place(chosen, {}, num_slots)
        )


def _as_chosen(chosen: Sequence[str], views: Mapping[str, str], num_slots: int) -> tuple[int | None, ...]:
    return tuple(range(num_slots))


ORDERS = {
    "name": CameraOrder("wrist, front, top, side, then by name, without gaps.", slot_order, _as_chosen),
    "view": CameraOrder("0 wrist, 1 front, 2 top, 3 side.", slot_order, slots_by_view, by_views=True),
    "shuffle": CameraOrder(
        "any order; they were shuffled sample by sample.", slot_order, _as_chosen, shuffled=True
    ),
}


def camera_order(text: str) -> CameraOrder:
    """The order that `--dataset.cameras` names: one of ORDERS, or a list such as `front,wrist,top`.

    Slot i is for the camera listed at place i: its key, with or without `observation.images.`; or one of
    VIEWS, for the first camera whose name tells that view, if none has that very name. Cameras that are not
    listed are left out; the slot of a missing camera stays empty. A list of one ends with a comma.

    Raises:
        ValueError: it is neither, or the list names a camera twice or none.
    """
    if text in ORDERS:
        return ORDERS[text]
    if "," not in text:
        raise ValueError(
            f"--dataset.cameras={text} is none of {', '.join(ORDERS)}, and no list such as front,wrist "
            "(of one camera: front,)"
        )
    names = tuple(_short_name(name.strip()) for name in text.rstrip(", ").split(","))
    if not all(names) or len(set(names)) < len(names) or not text.isprintable():
        raise ValueError(f"--dataset.cameras={text!r} must list at least one camera, and each once")
    slots = ", ".join(f"{slot} {name}" for slot, name in enumerate(names))
    return CameraOrder(
        f"{slots}; a slot whose camera is missing stays empty.",
        partial(_choose_listed, names),
        partial(_place_listed, names),
        least_slots=len(names),
    )


def check_slots(text: str, num_slots: int) -> None:
    """ValueError unless `text` is an order (see `camera_order`) that does with so many slots."""
    least = camera_order(text).least_slots
    if least > num_slots:
        raise ValueError(
            f"--dataset.cameras={text} lists {least} cameras: give each a slot with "
            f"--dataset.max_cameras={least}"
        )


def _choose_listed(names: Sequence[str], camera_keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(key for key in _find_listed(names, camera_keys) if key is not None)


def _place_listed(
    names: Sequence[str], chosen: Sequence[str], views: Mapping[str, str], num_slots: int
) -> tuple[int | None, ...]:
    found = [None if key is None else chosen.index(key) for key in _find_listed(names, chosen)]
    return tuple(found + [None] * (num_slots - len(found)))


def _find_listed(names: Sequence[str], camera_keys: Sequence[str]) -> list[str | None]:
    """The camera of each name: of that name, else the first of that view among those that none has."""
    keys = slot_order(camera_keys)
    named = {_short_name(key): key for key in reversed(keys)}
    found: dict[str, str | None] = {name: named[name] for name in names if name in named}
    for name in names:
        if name not in found:
            of_view = (key for key in keys if view_in_name(key) == name and key not in found.values())
            found[name] = next(of_view, None)
    return [found[name] for name in names]


def letterbox(image: "Tensor", size: int, antialias: bool = False) -> "Tensor":
    """Scale to fit a square, keeping the aspect ratio, centred on black; as LeRobot's pi0 does.

    Args:
        image: uint8 [C, H, W].
        size: side of the square.
        antialias: average over all the pixels that fall into one, as openpi does (Pillow's bilinear), where
            LeRobot reads the four nearest.

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
    inner = (new_height, new_width)
    scaled = F.interpolate(image[None], inner, mode="bilinear", align_corners=False, antialias=antialias)[0]
    square = image.new_zeros((image.shape[0], size, size))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square[:, top : top + new_height, left : left + new_width] = scaled
    return square
