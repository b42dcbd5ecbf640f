"""Windows of observations, and actions from before now, are those that LeRobot's own dataset gives."""

import pickle

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from recordings import Recording, write_v3

from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset

FPS = 10
CAMERAS = ("observation.images.front", "observation.images.wrist")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    recording = Recording(lengths=(7, 5), fps=FPS, names=[f"motor_{number}" for number in range(6)])
    return write_v3(tmp_path_factory.mktemp("windows") / "recorded", recording)


def opened(root, **shape) -> MultiLeRobotDataset:
    return MultiLeRobotDataset(
        [DatasetSource("alice/windows", None, root)], joint_convention="native", **shape
    )


@pytest.mark.parametrize(("history", "start", "size"), [(2, -1, 8), (4, -3, 6), (1, 0, 4)])
def test_every_sample_is_lerobots(root, history, start, size):
    seen = [step / FPS for step in range(1 - history, 1)]
    wanted = {
        "action": [step / FPS for step in range(start, start + size)],
        **dict.fromkeys(("observation.state", *CAMERAS), seen),
    }
    theirs = LeRobotDataset("alice/windows", root=root, delta_timestamps=wanted, return_uint8=True)
    shape = {"image_size": None, "recorded_keys": True}
    ours = opened(root, chunk_size=size, chunk_start=start, history=history, **shape)
    ours = pickle.loads(pickle.dumps(ours))
    assert ours.camera_slots == ("observation.images.wrist", "observation.images.front")
    assert ours.image_sizes == ((48, 64), (48, 64))
    assert len(ours) == len(theirs) == 12
    for index in range(len(ours)):
        sample, expected = ours[index], theirs[index]
        for key in wanted:
            assert sample[key].shape == expected[key].shape
            assert torch.equal(sample[key], expected[key]), (index, key)
        assert torch.equal(sample["action_is_pad"], expected["action_is_pad"])


def test_a_window_at_another_rate_takes_the_nearest_frames_and_stays_in_its_episode(root):
    ours = opened(root, chunk_size=3, chunk_start=-1, history=3, action_freq=4.0)
    sample = ours[7 + 4]  # frame 4 of the second episode, which begins at 7
    recorded = ours.state[7:12]
    assert np.array_equal(sample["observation.state"].numpy(), recorded[[0, 2, 4]])  # -5, -2.5 and 0 frames
    between = (ours.action[7 + 1] + ours.action[7 + 2]) / 2
    assert np.allclose(sample["action"][0].numpy(), between, atol=1e-5)
    assert sample["action_is_pad"].tolist() == [False, False, True]


def test_images_as_recorded_are_for_one_dataset(root):
    with pytest.raises(ValueError, match="in a single dataset only"):
        opened(root, image_size=None)
    with pytest.raises(ValueError, match="in a single dataset only"):
        opened(root, max_cameras=None)
    with pytest.raises(ValueError, match="in a single dataset only"):
        opened(root, recorded_keys=True, cameras="view")
