"""LeRobot's policies see on a robot what they saw in training: letterboxed squares, or black."""

import json

import pytest
import torch
from lerobot.processor import PolicyProcessorPipeline, RenameObservationsProcessorStep
from lerobot.utils.constants import OBS_STATE

from depi.datasets.recording.cameras import letterbox
from depi.errors import UserError
from depi.policies.letterbox_step import letterboxes, letterboxing
from depi.policies.trust import PREPROCESSOR, check_steps

WRIST, FRONT = "observation.images.wrist", "observation.images.front"
SLOTS = ["observation.images.0", "observation.images.1"]
RENAME = RenameObservationsProcessorStep({WRIST: SLOTS[0]})


@pytest.fixture
def pre():
    plain = PolicyProcessorPipeline([RENAME], name="policy_preprocessor")
    assert not letterboxes(plain)
    return letterboxing(plain, 48, SLOTS)


@pytest.fixture
def frame():
    return torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8)


def same(seen, frame):
    """Whether it is the picture that a dataset gives of the frame, to a grey level."""
    return ((seen - letterbox(frame, 48).float() / 255).abs() < 1.5 / 255).all()


def test_a_robots_frame_is_as_in_training(pre, frame):
    for image in (frame, frame.float() / 255, frame[None].float() / 255, frame[None, None].float() / 255):
        seen = pre({WRIST: image, OBS_STATE: torch.zeros(*image.shape[:-3], 6)})
        assert seen[SLOTS[0]].shape == seen[SLOTS[1]].shape == (*image.shape[:-2], 48, 48)
        assert same(seen[SLOTS[0]], frame)
        assert not seen[SLOTS[1]].any()


def test_images_of_the_size_are_left_as_they_are(pre):
    images = {slot: torch.rand(2, 3, 48, 48) for slot in SLOTS}
    masks = {f"{slot}_is_pad": torch.ones(2, dtype=torch.bool) for slot in SLOTS}
    seen = pre({**images, **masks})
    assert all(seen[slot] is images[slot] for slot in SLOTS)


@pytest.mark.parametrize("cameras", [(), (FRONT,), (WRIST, FRONT)])
def test_a_camera_for_no_slot_is_not_lost_in_silence(pre, frame, cameras):
    with pytest.raises(ValueError, match=r"the policy sees the cameras .* --rename_map"):
        pre({OBS_STATE: torch.zeros(6), **dict.fromkeys(cameras, frame)})


def test_a_camera_more_than_slots_is_not_seen(pre, frame):
    seen = pre({WRIST: frame, SLOTS[1]: frame, FRONT: frame})
    assert same(seen[SLOTS[1]], frame)


def test_lerobot_reads_what_it_has_saved(pre, frame, tmp_path):
    pre.save_pretrained(tmp_path)
    check_steps(tmp_path / PREPROCESSOR, "act")
    again = PolicyProcessorPipeline.from_pretrained(tmp_path, config_filename=PREPROCESSOR)
    assert letterboxes(again)
    assert same(again({WRIST: frame})[SLOTS[0]], frame)


@pytest.mark.parametrize(
    "settings", [{"side": 0, "cameras": []}, {"side": 10**9, "cameras": []}, {"side": 48, "cameras": [1]}, {}]
)
def test_impossible_settings_are_refused(pre, tmp_path, settings):
    pre.save_pretrained(tmp_path)
    content = json.loads((tmp_path / PREPROCESSOR).read_text())
    content["steps"][1]["config"] = settings
    (tmp_path / PREPROCESSOR).write_text(json.dumps(content))
    with pytest.raises(UserError, match="images are letterboxed to 1 to 4096 pixels"):
        check_steps(tmp_path / PREPROCESSOR, "act")
