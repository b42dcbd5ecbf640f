"""Every reader of images finds the same ones, in every format and in videos that are not as declared."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from recordings import Recording, number_in, share_video, write_v2, write_v3

from depi.annotate.frames import load_images
from depi.annotate.review_frames import load_frames
from depi.annotate.templates import INSTRUCTION, REFINEMENT, VIEWS
from depi.annotate.work import Plan, local_state, plan_dataset
from depi.catalog.view import find_episode, read_episode
from depi.datasets.recording.sources import DatasetSource
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.datasets.union.prepare import Settings, decode_frames, prepare
from depi.engine import make_runner
from depi.errors import DatasetError
from depi.recap.frames import FrameReader

FRONT = "observation.images.front"
SLOT = 1  # of FRONT, behind the wrist
LENGTHS = (7, 5)
WHOLE = {
    (episode, frame): episode * 100 + frame
    for episode, length in enumerate(LENGTHS)
    for frame in range(length)
}
# The file ends two frames early: the table may outlast it by one frame, what then follows is no image.
SHORT = {**WHOLE, (0, 5): 4}
del SHORT[0, 6]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["v2.1", "v3.0", "in tables", "ends early", "another rate"])
def recorded(request, tmp_path_factory):
    """A dataset, and the number that each of its images shows."""
    root, recording = tmp_path_factory.mktemp("recorded") / "data", Recording(LENGTHS)
    if request.param == "v2.1":
        return write_v2(root, recording), WHOLE
    write_v3(root, recording, use_videos=request.param != "in tables")
    if request.param == "ends early":
        share_video(root, recording, (5, 5), 10, ([0, 0.5], [0.5, 1.0]))
        return root, SHORT
    if request.param == "another rate":
        share_video(root, recording, LENGTHS, 20, ([0, 0.35], [0.35, 0.6]))
    return root, WHOLE


def source(root) -> DatasetSource:
    return DatasetSource("user/data", root=root)


def opened(root, **options) -> MultiLeRobotDataset:
    return MultiLeRobotDataset([source(root)], max_cameras=2, image_size=64, max_bad_fraction=1.0, **options)


def number_of_square(image) -> int:
    """The number in an image of 48 by 64 pixels that was letterboxed to 64."""
    return number_in(image[:, 8:56])


def number_of_jpeg(data: bytes) -> int:
    return number_in(np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1))


def by_training(root, tmp_path, **options):
    data, found = opened(root, **options), {}
    for key in WHOLE:
        with contextlib.suppress(DatasetError):
            found[key] = number_of_square(data.camera_images(*key, 64)[SLOT])
    return found


def by_prepare(root, tmp_path):
    data = opened(root)
    frames = decode_frames(data, 0, len(data))
    return {
        (episode, frame): number_in(image)
        for episode, frame, slot, image in frames
        if slot == SLOT and not isinstance(image, DatasetError)
    }


def by_training_on_prepared_images(root, tmp_path):
    prepare(opened(root), Settings(tmp_path / "out", 64), run=make_runner("local", workers=1))
    return by_training(root, tmp_path, prepared=tmp_path / "out")


def by_value_function(root, tmp_path):
    data = opened(root)
    samples = FrameReader(data).read(0, len(data))
    return {
        key: number_of_square(sample[f"observation.images.{SLOT}"])
        for key, sample in zip(WHOLE, samples, strict=True)
        if isinstance(sample, dict)
    }


def by_view(root, tmp_path):
    found = {}
    for episode in (0, 1):
        images = read_episode(*find_episode(source(root), episode)).cameras[FRONT]
        with contextlib.suppress(DatasetError):
            for frame, image in enumerate(images):
                found[episode, frame] = number_in(image)
    return found


def by_annotate(root, tmp_path):
    versions = dict.fromkeys((INSTRUCTION, REFINEMENT, VIEWS), "1")
    work = plan_dataset(source(root), Plan(tmp_path / "notes", "server", "model", versions, frames=7))
    work.close()
    found = {}
    for job in work.jobs:
        for frame, seconds in zip(job.clip.frames, job.clip.seconds, strict=True):
            clip = dataclasses.replace(job.clip, frames=(frame,), seconds=(seconds,))
            with contextlib.suppress(DatasetError):
                (jpeg,) = load_images(clip, 10**6, keep=False)[FRONT]
                found[job.episode, frame] = number_of_jpeg(jpeg)
    return found


def by_review(root, tmp_path):
    found = {}
    for episode, frame in WHOLE:
        key = ("user/data", episode)
        loaded = load_frames(
            [key], {key: {FRONT: [frame]}}, {"user/data": local_state(root)}, root, max_pixels=10**6
        )
        for _, images in loaded:
            for _, number, jpeg in images:
                found[episode, number] = number_of_jpeg(jpeg)
    return found


@pytest.mark.parametrize(
    "read",
    [
        by_training,
        by_prepare,
        by_training_on_prepared_images,
        by_value_function,
        by_view,
        by_annotate,
        by_review,
    ],
)
def test_every_reader_finds_the_image_of_every_frame(recorded, tmp_path, read):
    root, numbers = recorded
    if read is by_view:  # it shows whole episodes only
        last = {episode: length - 1 for episode, length in enumerate(LENGTHS)}
        numbers = {key: number for key, number in numbers.items() if (key[0], last[key[0]]) in numbers}
    assert read(root, tmp_path) == numbers
