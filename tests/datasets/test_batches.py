"""Samples that are read together are those that are read one by one."""

import shutil

import numpy as np
import pytest
import torch
from recordings import Recording, write_v2

from depi.datasets.recording import decoders, video
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError

FRONT, WRIST, TOP = (f"observation.images.{name}" for name in ("front", "wrist", "top"))
LONG = Recording(lengths=(30, 26), seed=4)
AV1 = Recording(lengths=(9, 8), seed=5, fps=15, size=(64, 96), cameras=(TOP,))


@pytest.fixture(scope="module")
def roots(v21, v30, tmp_path_factory):
    """H.264 with a keyframe every 4th frame, in files of their own and in one; every 12th; AV1."""
    folder = tmp_path_factory.mktemp("batches")
    long = write_v2(folder / "long", LONG, g="12", bf="3")
    av1 = write_v2(folder / "av1", AV1, codec="libsvtav1", g="2", preset="12")
    return [v21, v30, long, av1]


def opened(roots, **options) -> MultiLeRobotDataset:
    options = {"chunk_size": 6, "image_size": 64, "max_bad_fraction": 1.0} | options
    sources = [DatasetSource(f"user/{number}", root=root) for number, root in enumerate(roots)]
    return MultiLeRobotDataset(sources, **options)


def check_batches(together: MultiLeRobotDataset, apart: MultiLeRobotDataset, size: int = 20) -> None:
    """In random order, with frames that are there twice, the ends of episodes among them."""
    order = np.random.default_rng(0).permutation(len(apart)).tolist()
    batches = [order[begin : begin + size] for begin in range(0, len(order), size)]
    batches.append([-1, 0, order[0], order[0], 0])
    for batch in batches:
        samples = together.__getitems__(batch)
        assert len(samples) == len(batch)
        for sample, expected in zip(samples, (apart[index] for index in batch), strict=True):
            assert list(sample) == list(expected)
            assert sample["task"] == expected["task"]
            for key in expected.keys() - {"task"}:
                assert sample[key].dtype == expected[key].dtype
                assert torch.equal(sample[key], expected[key])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"action_freq": 7.5, "chunk_start": -2},
        {"history": 3, "action_freq": 15},
        {"history": 1, "antialias": True},
        {"video_backend": "pyav"},
        {"video_backend": "torchcodec", "max_cameras": 1},
    ],
    ids=str,
)
def test_a_batch_is_its_samples(roots, options):
    check_batches(opened(roots, **options), opened(roots, **options))


def test_a_batch_of_images_as_recorded_is_its_samples(roots):
    options = {"image_size": None, "max_cameras": None, "recorded_keys": True, "history": 2}
    check_batches(opened(roots[2:3], **options), opened(roots[2:3], **options))


def test_each_file_of_a_batch_is_opened_once(roots, monkeypatch):
    opens = []

    def open_and_tell(path, backend):
        opens.append(path)
        return decoders.open_video(path, backend)

    monkeypatch.setattr(video, "open_video", open_and_tell)
    dataset = opened(roots)
    dataset.reader.videos.max_open = 1
    order = np.random.default_rng(1).permutation(len(dataset)).tolist()
    dataset.__getitems__(order)
    # Two episodes of two cameras in files of their own, twice; one file for each camera; one of AV1.
    assert len(opens) == len(set(opens)) == 4 + 2 + 4 + 2


def test_frames_behind_one_keyframe_are_decoded_in_one_run(roots, monkeypatch):
    """A keyframe is every 12th frame."""
    runs = []
    decode_some = decoders.PyavVideo._decode_some

    def decode_and_tell(self, packets, wanted):
        runs.append(len(wanted))
        return decode_some(self, packets, wanted)

    monkeypatch.setattr(decoders.PyavVideo, "_decode_some", decode_and_tell)
    opened(roots[2:3], max_cameras=1).__getitems__([11, 3, 7, 13, 2])
    assert runs == [4, 1]


@pytest.mark.parametrize("codec", ["h264", "libsvtav1"])
def test_what_cannot_be_decoded_is_replaced_as_by_itself(roots, codec, tmp_path):
    """A file that is no video, one with a stretch of zeros, and one that ends too soon."""
    recording = Recording(lengths=(24, 14, 22), cameras=(TOP, WRIST), size=(96, 128))
    preset = "12" if codec == "libsvtav1" else "fast"
    root = write_v2(tmp_path / "data", recording, codec=codec, g="8", preset=preset)
    folder = root / "videos/chunk-000"
    (folder / WRIST / "episode_000000.mp4").write_bytes(b"no video")
    damaged = folder / TOP / "episode_000001.mp4"
    shutil.copy(damaged, folder / TOP / "episode_000002.mp4")
    data = bytearray(damaged.read_bytes())
    begin = data.index(b"mdat")
    begin += (len(data) - begin) // 2
    data[begin : begin + 20] = bytes(20)
    damaged.write_bytes(data)
    together, apart = opened([root, roots[0]]), opened([root, roots[0]])
    check_batches(together, apart)
    failures = apart.decode_failures()["user/0"]
    assert failures.keys() >= ({0, 1, 2} if codec == "h264" else {0, 2})
    assert together.decode_failures() == apart.decode_failures()


def test_too_many_bad_episodes_stop_a_batch(roots, tmp_path):
    root = write_v2(tmp_path / "data", Recording())
    (root / f"videos/chunk-000/{WRIST}/episode_000001.mp4").write_bytes(b"broken")
    dataset = opened([root, *roots], max_bad_fraction=0.02)
    with pytest.raises(UserError, match=r"1 of \d+ episodes are bad.*episode 1 of user/0: episode_000001"):
        dataset.__getitems__([0, 20, 8])


def test_a_frame_that_there_is_not_is_refused_with_its_batch(roots):
    with pytest.raises(IndexError, match="frame 24 of 24"):
        opened(roots[:2]).__getitems__([3, 24])
