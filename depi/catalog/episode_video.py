"""One episode as an mp4: cameras side by side, under them the curves of state and action with a cursor."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from torch import Tensor

from depi.catalog.text import clean
from depi.datasets.judging.faults import Fault
from depi.errors import DatasetError, UserError
from depi.files import atomic_write
from depi.progress import tracked

MAX_WIDTH, MIN_WIDTH = 1920, 720
MAX_CURVES = 18
COLUMNS = 3
ROW_HEIGHT = 120
TITLE_HEIGHT = 56
FAULT_HEIGHT = 18
MAX_FAULTS = 6
DPI = 100
CURSOR = (224, 40, 24)
SHADES = {True: "#d9480f", False: "#e8a100"}  # a fault that leaves the episode out, a remark
COLOURS = {"state": "#2f4ac4", "action": "#12a08c"}


@dataclass(frozen=True)
class Episode:
    """What is shown of an episode of n frames.

    title: one line of printable text
    fps: frames per second
    seconds: float64 [n], times of the frames, increasing
    curves: "state", "action" -> numbers [n, D], as recorded; either may be missing
    names: the names of their D columns, None where not recorded
    cameras: camera key -> its n images, uint8 [3, H, W]
    faults: what is wrong with it; their frames are shaded in the curves
    """

    title: str
    fps: float
    seconds: np.ndarray
    curves: dict[str, np.ndarray]
    names: dict[str, tuple[str, ...] | None]
    cameras: dict[str, Iterator[Tensor]]
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Chart:
    """The drawn curves, and where the cursor goes.

    image: uint8 [H, W, 3]
    boxes: (top, bottom) and (left, right) of each curve's axes in pixels, right and bottom exclusive
    """

    image: np.ndarray
    boxes: tuple[tuple[int, int, int, int], ...]
    # The image without curves, shown right of the cursor, so that curves grow with time.
    ahead: np.ndarray | None = None

    def at(self, share: float) -> np.ndarray:
        """The chart uint8 [H, W, 3] with the cursor at this share, 0..1, of the time axis."""
        image = self.image.copy()
        for top, bottom, left, right in self.boxes:
            x = left + round(share * (right - left - 2))
            if self.ahead is not None:
                image[top:bottom, x:right] = self.ahead[top:bottom, x:right]
            image[top:bottom, x : x + 2] = CURSOR
        return image


def write_video(
    path: Path, episode: Episode, height: int, draw: Callable[[Episode, int], Chart] | None = None
) -> None:
    """Write the episode as H.264, a frame per recorded frame; the file appears whole or not at all.

    Args:
        path: the mp4.
        episode: what to show.
        height: of the cameras in pixels; less where they would be wider than 1920 together.
        draw: draws the image under the cameras, as wide as they are; by default `draw_chart`.

    Raises:
        DatasetError: an image cannot be decoded, or a camera has no image for a frame.
        UserError: the file cannot be written.
    """
    try:
        with atomic_write(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
            options = {"crf": "20", "preset": "veryfast", "movflags": "faststart"}
            stream = container.add_stream("h264", _rate(episode.fps), options=options)
            for number, image in enumerate(compose(episode, height, draw or draw_chart)):
                if number == 0:
                    stream.height, stream.width = image.shape[:2]
                    stream.pix_fmt = "yuv420p"
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def compose(episode: Episode, height: int, draw: Callable[[Episode, int], Chart]) -> Iterator[np.ndarray]:
    """The frames of the video, uint8 [H, W, 3], H and W even, in an array that is reused."""
    chart = None
    sizes: list[tuple[int, int]] = []
    canvas = np.zeros((0, 0, 3), np.uint8)
    first, last = episode.seconds[0], episode.seconds[-1]
    for number in tracked(range(len(episode.seconds)), "Writing", len(episode.seconds)):
        images = {key: _next(key, images) for key, images in episode.cameras.items()}
        if chart is None:
            sizes = tile_sizes([image.shape[1:] for image in images.values()], height)
            width = max(MIN_WIDTH, sum(tile_width for _, tile_width in sizes))
            chart = draw(episode, width)
            tiles_height = max((tile_height for tile_height, _ in sizes), default=0)
            canvas = np.full((tiles_height + chart.image.shape[0], width, 3), 16, np.uint8)
        x = (canvas.shape[1] - sum(tile_width for _, tile_width in sizes)) // 2
        for image, (tile_height, tile_width) in zip(images.values(), sizes, strict=True):
            canvas[:tile_height, x : x + tile_width] = _fit(image, tile_height, tile_width)
            x += tile_width
        share = (episode.seconds[number] - first) / (last - first) if last > first else 0.0
        canvas[canvas.shape[0] - chart.image.shape[0] :] = chart.at(float(share))
        yield canvas


def tile_sizes(shapes: list[tuple[int, int]], height: int) -> list[tuple[int, int]]:
    """Even (height, width) of each camera of [H, W]: as high as asked, smaller if too wide together."""
    widths = [height * shape[1] / shape[0] for shape in shapes]
    scale = min(1.0, MAX_WIDTH / max(sum(widths), 1))
    return [(_even(height * scale), _even(width * scale)) for width in widths]


def draw_chart(episode: Episode, width: int) -> Chart:
    """Draw the curves once: one box per joint, state and action in the same."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    joints = min(MAX_CURVES, max((values.shape[1] for values in episode.curves.values()), default=0))
    rows = max(1, -(-joints // COLUMNS))
    faults = episode.faults[:MAX_FAULTS]
    height = TITLE_HEIGHT + FAULT_HEIGHT * len(faults) + rows * ROW_HEIGHT
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    drawing = FigureCanvasAgg(figure)
    axes = [_draw_joint(figure, episode, joint, rows, height) for joint in range(joints)]
    # Task texts are untrusted: `$` in them must not start a formula.
    figure.text(12 / width, 1 - 17 / height, episode.title, fontsize=10, va="center", parse_math=False)
    for place, (name, values) in enumerate(episode.curves.items()):
        more = f" ({joints} of {values.shape[1]})" if values.shape[1] > joints else ""
        x, y = (12 + 110 * place) / width, 1 - 38 / height
        figure.text(x, y, f"— {name}{more}", color=COLOURS[name], fontsize=9, va="center")
    for line, fault in enumerate(faults):
        y = 1 - (TITLE_HEIGHT + FAULT_HEIGHT * line) / height
        colour = SHADES[fault.leaves_out]
        figure.text(12 / width, y, clean(fault, 150), color=colour, fontsize=8, va="center", parse_math=False)
    keys = ", ".join(key.removeprefix("observation.images.") for key in episode.cameras)
    if keys:
        x, y = (width - 12) / width, 1 - 38 / height
        text = f"cameras: {keys}"[:100]
        figure.text(x, y, text, color="#5f646e", fontsize=9, va="center", ha="right", parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        drawing.draw()
    image = np.asarray(drawing.buffer_rgba())[..., :3].copy()
    boxes = []
    for axis in axes:
        box = axis.get_window_extent()
        boxes.append((height - int(box.y1), height - int(box.y0), int(box.x0) + 1, int(box.x1)))
    return Chart(image, tuple(boxes))


def _draw_joint(figure: Any, episode: Episode, joint: int, rows: int, height: int) -> Any:
    row, column = divmod(joint, COLUMNS)
    bottom = (rows - 1 - row) * ROW_HEIGHT + 20
    left = (column + 0.12) / COLUMNS
    axis = figure.add_axes((left, bottom / height, 0.85 / COLUMNS, (ROW_HEIGHT - 42) / height))
    for name, values in episode.curves.items():
        if joint < values.shape[1]:
            shown = np.where(np.abs(values[:, joint]) < 1e30, values[:, joint], np.nan)
            style = "--" if name == "action" else "-"
            axis.plot(episode.seconds, shown, style, color=COLOURS[name], linewidth=1.2)
    names = next((names for names in episode.names.values() if names and joint < len(names)), None)
    title = names[joint] if names else f"{joint}"
    axis.set_title(title[:40], fontsize=8, loc="left", pad=3, parse_math=False)
    for fault in episode.faults:
        frames = slice(fault.begin or 0, fault.end or len(episode.seconds))
        shown = episode.seconds[frames]
        axis.axvspan(shown[0], shown[-1], color=SHADES[fault.leaves_out], alpha=0.15, linewidth=0)
    axis.set_xlim(episode.seconds[0], max(episode.seconds[-1], episode.seconds[0] + 1e-3))
    axis.tick_params(labelsize=7, length=2, pad=2)
    axis.grid(color="#e6e2da", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def _next(key: str, images: Iterator[Tensor]) -> Tensor:
    image = next(images, None)
    if image is None:
        raise DatasetError(f"camera {key} has fewer images than the episode has frames")
    return image


def _fit(image: Tensor, height: int, width: int) -> np.ndarray:
    pixels = image.permute(1, 2, 0).numpy()
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def _even(pixels: float) -> int:
    return max(2, 2 * round(pixels / 2))


def _rate(fps: float) -> Fraction:
    return max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
