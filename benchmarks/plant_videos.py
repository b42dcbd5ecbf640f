"""Defects of cameras."""

from functools import partial
from pathlib import Path

import numpy as np
from clean_sets import CAMERAS, SPARE, with_noise
from PIL import Image, ImageFilter
from planting import Copy, Frames, kind


@kind(
    "files",
    (1, "one file of one camera cut at 60% of its bytes"),
    (2, "one file of one camera"),
    (3, "all files of one camera"),
)
def video_missing(copy: Copy, amount: float) -> list[int]:
    """An upload was cut."""
    camera = str(copy.rng.choice(CAMERAS))
    count = len(copy.set.episodes) if copy.set.format == "v2.1" else 3
    file = int(copy.rng.integers(1, count))

    def edit(root: Path) -> None:
        files = sorted(path for path in (root / "videos").rglob("*.mp4") if camera in str(path.parent))
        for path in files if amount == 3 else files[file : file + 1]:
            content = path.read_bytes()
            path.unlink()  # it is a hard link
            if amount == 1:
                path.write_bytes(content[: len(content) * 6 // 10])

    copy.edits.append(edit)
    if amount == 3:
        return []
    return [file] if copy.set.format == "v2.1" else list(range(4 * file, 4 * file + 4))


def _dark(frames: Frames, rng: np.random.Generator) -> Frames:
    return with_noise(np.full_like(frames, 3), rng)


@kind(
    "videos",
    (0.3, "the last 30% of one episode in one camera"),
    (1, "one episode in one camera"),
    (2, "one episode in both cameras"),
)
def black(copy: Copy, amount: float) -> list[int]:
    """The lens is covered, or the camera gives black pictures with its usual noise."""
    number, episode = copy.one()
    begin = round((1 - min(amount, 1)) * len(episode))
    for camera in CAMERAS if amount == 2 else (str(copy.rng.choice(CAMERAS)),):
        copy.film(number, camera, lambda v: np.concatenate([v[:begin], _dark(v[begin:], copy.rng)]))
    return [number]


@kind(
    "videos",
    (0.25, "the last 25% of one episode in one camera"),
    (0.5, "the last half of one episode in one camera"),
    (0.9, "the last 90% of one episode in one camera"),
)
def camera_frozen(copy: Copy, share: float) -> list[int]:
    """The camera hangs: one picture is repeated."""
    number, episode = copy.one()
    last = round((1 - share) * len(episode))
    rows = np.minimum(np.arange(len(episode)), last)
    copy.film(number, str(copy.rng.choice(CAMERAS)), lambda frames: frames[rows])
    return [number]


@kind(
    "videos",
    (1.5, "one camera of two episodes, 1.5 pixels of 320"),
    (3, "one camera of two episodes, 3 pixels of 320"),
    (6, "one camera of two episodes, 6 pixels of 320"),
)
def blurred(copy: Copy, radius: float) -> list[int]:
    """The focus is off, or the lens is dirty."""
    numbers, camera = copy.draw(2), str(copy.rng.choice(CAMERAS))
    blur = ImageFilter.GaussianBlur(radius)

    def change(frames: Frames) -> Frames:
        return np.stack([np.asarray(Image.fromarray(frame).filter(blur)) for frame in frames])

    for number in numbers:
        copy.film(number, camera, change)
    return numbers


@kind(
    "videos",
    (1, "one episode"),
    (3, "three episodes"),
    (5, "five episodes"),
)
def cameras_swapped(copy: Copy, count: float) -> list[int]:
    """The cameras were plugged in the other way round."""
    numbers = copy.draw(int(count))
    for number in numbers:
        videos = copy.set.episodes[number].videos
        videos["front"], videos["wrist"] = videos["wrist"], videos["front"]
    return numbers


@kind(
    "videos",
    (1, "three episodes in which one camera was bumped: 6 degrees and 8% of the picture"),
    (2, "three episodes with a camera at another place instead"),
    (3, "three episodes with a camera at another place instead, upside down and with other colours"),
)
def other_camera(copy: Copy, amount: float) -> list[int]:
    """A camera was moved or exchanged between two sessions."""
    numbers, camera = copy.draw(3), str(copy.rng.choice(CAMERAS))

    def bump(frames: Frames) -> Frames:
        shift = (round(0.08 * frames.shape[2]), round(0.08 * frames.shape[1]))
        turned = [
            Image.fromarray(frame).rotate(6, Image.Resampling.BILINEAR, translate=shift) for frame in frames
        ]
        margin = [slice(frames.shape[1] // 8, None), slice(frames.shape[2] // 8, None)]
        size = (frames.shape[2], frames.shape[1])
        return np.stack([np.asarray(Image.fromarray(np.asarray(t)[*margin]).resize(size)) for t in turned])

    for number in numbers:
        videos = copy.set.episodes[number].videos
        if amount > 1:
            videos[camera] = videos[SPARE]
        if amount == 1:
            copy.film(number, camera, bump)
        if amount == 3:
            copy.film(number, camera, lambda frames: frames[:, ::-1, ::-1, ::-1])
    return numbers


@kind(
    "videos",
    (0.3, "both cameras of three episodes by 0.3 s"),
    (0.8, "both cameras of three episodes by 0.8 s"),
    (1.6, "both cameras of three episodes by 1.6 s"),
)
def video_late(copy: Copy, seconds: float) -> list[int]:
    """Pictures wait in the driver's queue: they show what was some time ago."""
    numbers = copy.draw(3)
    for number in numbers:
        rows = np.maximum(np.arange(len(copy.set.episodes[number])) - round(seconds * copy.set.fps), 0)
        for camera in CAMERAS:
            copy.film(number, camera, partial(np.take, indices=rows, axis=0))
    return numbers
