import numpy as np
import pytest
import torch

from depi.datasets.recording.cameras import slots_by_view
from depi.datasets.samples.augment import Augmentation, augment

IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8))
SPOT = torch.zeros((3, 65, 65), dtype=torch.uint8)
SPOT[:, 31:34, 31:34] = 255
NOTHING = np.zeros(8)


def draw(**values):
    names = ("brightness", "contrast", "saturation", "hue", "across", "down", "turn", "size")
    return np.array([values.get(name, 0.0) for name in names])


def centre(image):
    weight = image[0].double() / image[0].double().sum()
    steps = torch.arange(image.shape[-1], dtype=torch.double)
    return (weight.sum(1) @ steps).item(), (weight.sum(0) @ steps).item()


def test_a_draw_of_zeros_leaves_colours_alone():
    assert (augment(IMAGE, Augmentation(1, 1), NOTHING, wrist=False).int() - IMAGE).abs().max() <= 1
    zoomed = augment(IMAGE, Augmentation(geometry=1), draw(size=-1), wrist=False)
    torch.testing.assert_close(zoomed, IMAGE, atol=1, rtol=0)


def test_brightness_contrast_and_saturation():
    strength = Augmentation(color=1)
    brighter = augment(IMAGE, strength, draw(brightness=1), wrist=False)
    torch.testing.assert_close(brighter.float(), (IMAGE * 1.3).clamp(max=255), atol=1, rtol=0)
    flat = augment(IMAGE, Augmentation(color=2), draw(contrast=-1), wrist=False)
    assert flat.float().std().item() == pytest.approx(IMAGE.float().std().item() * 0.2, rel=0.1)
    grey = augment(IMAGE, Augmentation(color=2), draw(saturation=-1), wrist=False)
    assert (grey.int().max(0).values - grey.int().min(0).values).max() <= 1


def test_hue_turns_the_colour_circle():
    red = torch.zeros((3, 4, 4), dtype=torch.uint8)
    red[0] = 200
    turned = augment(red, Augmentation(hue=2), draw(hue=1), wrist=False)
    assert turned[1, 0, 0] == pytest.approx(200 * 0.6, abs=3)
    assert turned[0, 0, 0] == 200


@pytest.mark.parametrize(("across", "down"), [(1, 0), (0, -1), (0.5, 0.5)])
def test_shifts_stay_within_what_the_zoom_cropped(across, down):
    strength = Augmentation(geometry=1)
    moved = augment(SPOT, strength, draw(across=across, down=down, size=1), wrist=False)
    row, column = centre(moved)
    room = (1 / 0.95 - 1) / 2 * 65
    assert (row - 32, column - 32) == pytest.approx((down * room, across * room), abs=0.2)
    full = torch.full_like(SPOT, 200)
    covered = augment(full, strength, draw(across=across, down=down, size=1), wrist=False)
    assert (covered == 200).float().mean() > 0.95


def test_the_wrist_camera_keeps_its_geometry():
    everything = np.ones(8)
    strength = Augmentation(geometry=1)
    assert torch.equal(augment(IMAGE, strength, everything, wrist=True), IMAGE)
    assert not torch.equal(augment(IMAGE, strength, everything, wrist=False), IMAGE)


def test_images_stay_images_at_any_strength():
    generator = np.random.default_rng(1)
    for strength in (0.2, 1, 2):
        changed = augment(
            IMAGE, Augmentation(strength, strength, strength), generator.uniform(-1, 1, 8), wrist=False
        )
        assert changed.shape == IMAGE.shape
        assert changed.dtype == torch.uint8
        assert changed.float().mean() > 20


def test_strengths():
    assert not Augmentation()
    assert Augmentation(hue=0.1)
    with pytest.raises(ValueError, match="augment_hue must be 0 to 2, not 3"):
        Augmentation(hue=3)


@pytest.mark.parametrize(
    ("keys", "views", "slots", "expected"),
    [
        (["wrist", "front"], {}, 3, [0, 1, None]),
        (["front", "top"], {}, 3, [None, 0, 1]),
        (["laptop", "phone"], {}, 3, [None, 0, 1]),
        (["laptop", "phone"], {"laptop": "top", "phone": "wrist"}, 3, [1, None, 0]),
        (["wrist", "laptop"], {"laptop": "other"}, 4, [0, 1, None, None]),
        (["wrist", "side"], {}, 4, [0, None, None, 1]),
        (["wrist", "side"], {}, 3, [0, 1, None]),
        (["wrist_left", "wrist_right", "top"], {}, 3, [0, 1, 2]),
        (["a", "b", "c"], {}, 3, [None, 0, 1]),
        (["laptop"], {}, 1, [0]),
        (["front"], {"front": "top"}, 3, [None, None, 0]),
    ],
)
def test_slots_of_views(keys, views, slots, expected):
    prefix = "observation.images."
    annotated = {prefix + key: view for key, view in views.items()}
    assert slots_by_view([prefix + key for key in keys], annotated, slots) == tuple(expected)
