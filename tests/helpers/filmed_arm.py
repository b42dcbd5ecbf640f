"""A drawn arm that moves as its joints say, filmed by two cameras, and what can go wrong with such videos."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from depi.priority import priority_kept

WIDTH, HEIGHT = 160, 120
Film = np.ndarray
"""uint8 [T, HEIGHT, WIDTH, 3]"""


def joints(frames: int, seed: int) -> np.ndarray:
    """Six joints that go from pose to pose and rest there, normalised, float32 [frames, 6]."""
    random = np.random.default_rng(seed)
    path = np.zeros((frames, 6))
    pose, frame = random.uniform(-60, 60, 6), 0
    while frame < frames:
        rest, move = int(random.integers(4, 14)), int(random.integers(9, 22))
        path[frame : frame + rest] = pose
        goal = random.uniform(-75, 75, 6)
        share = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, move))[:, None]
        part = path[frame + rest : frame + rest + move]
        part[:] = (pose + share * (goal - pose))[: len(part)]
        pose, frame = goal, frame + rest + move
    path[:, 2] = np.clip(2.2 * path[:, 2], -100, 100)  # the elbow meets its stops, as real ones do
    path[:, 5] = 50 + path[:, 5] / 2
    return path.astype(np.float32)


def film_front(path: np.ndarray, seed: int) -> Film:
    """The arm before a background that stays, with the noise of a sensor."""
    random = np.random.default_rng(seed)
    background = _texture(seed=7, size=(WIDTH, HEIGHT))
    cube = tuple(random.uniform(0.2, 0.8, 2) * (WIDTH, HEIGHT))
    return _noisy([_with_arm(background.copy(), pose, cube) for pose in path / 100], random)


def film_wrist(path: np.ndarray, seed: int) -> Film:
    """What passes below the gripper, whose fingers stay in the picture; a fast move is blurred."""
    random = np.random.default_rng(seed)
    world = _texture(seed=8, size=(6 * WIDTH, 6 * HEIGHT))
    places = np.stack([2.5 + path[:, 0] / 45, 2.5 + path[:, 1] / 45], axis=1) * (WIDTH, HEIGHT)
    images = []
    for before, place, grip in zip(
        np.concatenate([places[:1], places[:-1]]), places, path[:, 5], strict=True
    ):
        seen = [world.crop(_box(before + share * (place - before))) for share in (0.5, 1.0)]
        image = Image.blend(seen[0], seen[1], 0.5)
        for side in (-1, 1):
            x = WIDTH * (0.5 + side * (0.1 + grip / 600))
            ImageDraw.Draw(image).polygon([(x - 9, HEIGHT), (x + 9, HEIGHT), (x, 70)], fill=(20, 20, 24))
        images.append(image)
    return _noisy(images, random)


@priority_kept()
def encode(film: Film, path: Path, codec: str = "libsvtav1") -> None:
    """Write an mp4 as LeRobot's recorder does."""
    options = {"libsvtav1": {"g": "2", "crf": "30", "preset": "12"}, "libx264": {"g": "2", "crf": "30"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=30, options=options[codec])
        stream.height, stream.width = film.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def black(film: Film, begin: int, end: int) -> Film:
    """Black from one frame to another."""
    return np.concatenate([film[:begin], 0 * film[begin:end], film[end:]])


def frozen(film: Film, begin: int, end: int) -> Film:
    """One picture from one frame to another."""
    return np.concatenate([film[:begin], film[begin : begin + 1].repeat(end - begin, axis=0), film[end:]])


def blurred(film: Film, radius: float) -> Film:
    """Out of focus."""
    blur = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in film])


def turned(film: Film) -> Film:
    """Upside down."""
    return film[:, ::-1, ::-1]


def late(film: Film, frames: int) -> Film:
    """The first picture some frames longer, the end cut off."""
    return np.concatenate([film[:1].repeat(frames, axis=0), film[:-frames]])


CAMERAS: dict[str, Callable[[np.ndarray, int], Film]] = {"front": film_front, "wrist": film_wrist}


def _texture(seed: int, size: tuple[int, int]) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = random.integers(40, 200, (size[1] // 12, size[0] // 12, 3)).astype(np.uint8)
    fine = random.integers(0, 255, (size[1] // 3, size[0] // 3, 3)).astype(np.uint8)
    layers = [Image.fromarray(each).resize(size, Image.Resampling.BICUBIC) for each in (coarse, fine)]
    return Image.blend(layers[0], layers[1], 0.3)


def _with_arm(image: Image.Image, pose: np.ndarray, cube: tuple[float, float]) -> Image.Image:
    draw = ImageDraw.Draw(image)
    draw.rectangle((cube[0] - 5, cube[1] - 5, cube[0] + 5, cube[1] + 5), fill=(200, 30, 30))
    at, angle = np.array([WIDTH / 2, HEIGHT - 4.0]), -np.pi / 2
    for bend, length, width in ((pose[0], 45, 9), (pose[1], 38, 7), (pose[2], 22, 5)):
        angle += 1.3 * bend
        to = at + length * np.array([np.cos(angle), np.sin(angle)])
        draw.line([tuple(at), tuple(to)], fill=(240, 190, 20), width=width)
        at = to
    return image


def _box(place: np.ndarray) -> tuple[int, int, int, int]:
    x, y = (int(value) for value in place)
    return x, y, x + WIDTH, y + HEIGHT


def _noisy(images: list[Image.Image], random: np.random.Generator) -> Film:
    film = np.stack([np.asarray(image) for image in images]).astype(np.int16)
    noise = random.normal(0, 2.5, (len(film), HEIGHT // 2, WIDTH // 2, 1)).repeat(2, axis=1).repeat(2, axis=2)
    return np.clip(film + noise, 0, 255).astype(np.uint8)
