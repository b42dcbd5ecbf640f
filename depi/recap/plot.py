"""`depi value plot`: the value of an episode's frames over time, as PNG and as mp4."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from depi.errors import DatasetError, UserError
from depi.files import atomic_write
from depi.flags import check_flags, parse_flags

if TYPE_CHECKING:
    from depi.catalog.episode_video import Chart, Episode
    from depi.policies.configuration_value import ValueConfig
    from depi.recap.plot_config import ValuePlotConfig

COMMAND = "depi value plot"
USAGE = """usage: depi value plot --policy.path=VALUE --dataset.repo_id=NAME [--episode=0] [--flag=value ...]

`depi value plot --help` lists the flags."""
SHOWN = 8  # frames of each camera in the PNG
DPI = 100
CHART_HEIGHT = 200
VALUE, RETURN = "#2f4ac4", "#12a08c"


@dataclass(frozen=True)
class Judged:
    """An episode of T frames with the values of the network.

    values: float32 [T] in -1..0, NaN where a frame cannot be read.
    returns: the normalised return of every frame, float64 [T]; None where success is not known.
    success: None where it is not known.
    """

    values: np.ndarray
    returns: np.ndarray | None
    success: bool | None


def main(args: Sequence[str]) -> int:
    """Run `depi value plot` and return the exit status."""
    verb, rest = (args[0], list(args[1:])) if args else ("", [])
    if verb in ("-h", "--help"):
        print(USAGE)
        return 0
    if verb != "plot":
        raise UserError(f"depi value takes plot, not {verb!r}: see `depi value --help`")
    # Help and wrong flags are handled before slow imports.
    rest = check_flags(Path(__file__).with_name("plot_config.py"), "ValuePlotConfig", rest, COMMAND)
    from depi.recap.judging import given_flags
    from depi.recap.plot_config import ValuePlotConfig

    config = parse_flags(ValuePlotConfig, rest, COMMAND)
    for path in plot(config, given_flags(rest)):
        print(f"written to {path}")
    return 0


def plot(config: "ValuePlotConfig", given: Collection[str] = ()) -> tuple[Path, Path]:
    """Write both pictures of the episode, and return where they are.

    Args:
        config: of the command.
        given: the flags that were set; see `depi.recap.judging.as_trained`.

    Raises:
        UserError: network, dataset or episode cannot be used.
    """
    from depi.catalog.episode_video import write_video
    from depi.catalog.view import file_name, find_episode, read_episode
    from depi.datasets.recording.sources import DatasetSource
    from depi.recap.judging import as_trained, load_value_config

    data = config.dataset
    if not data.repo_id:
        raise UserError("name the dataset with --dataset.repo_id=USER/NAME, and a local one's --dataset.root")
    checkpoint, value = load_value_config(config.policy)
    data = as_trained(data, checkpoint, given)
    files, meta = find_episode(DatasetSource(str(data.repo_id), data.revision, data.root), config.episode)
    judged = judge(replace(config, dataset=data), checkpoint, value)
    stem = config.output / f"{file_name(str(data.repo_id))}_episode_{config.episode:06d}"
    try:
        draw_png(stem.with_suffix(".png"), read_episode(files, meta), judged)
        # The images are decoded twice: those of a long episode do not all fit into memory.
        episode = read_episode(files, meta)
        write_video(
            stem.with_suffix(".mp4"), episode, config.height, lambda shown, width: chart(shown, judged, width)
        )
    except DatasetError as error:
        raise UserError(f"episode {config.episode} of {data.repo_id} cannot be shown: {error}") from None
    return stem.with_suffix(".png"), stem.with_suffix(".mp4")


def judge(config: "ValuePlotConfig", checkpoint: Path, value: "ValueConfig") -> Judged:
    """The values of the episode's frames, and its true returns where its success is known.

    Raises:
        UserError: dataset or episode cannot be used, or what is said of its success.
    """
    from depi.datasets.samples.outcomes import UnknownOutcomeError, episode_returns, read_outcomes
    from depi.recap.judging import open_frames
    from depi.recap.values import GROUP, device_for, fill_group, load_network

    data = config.dataset
    one = replace(data, episodes=[config.episode])
    reader = open_frames(one, None, value.image_resolution[0], checkpoint)
    dataset = reader.dataset
    try:
        outcomes = read_outcomes(dataset, file=data.success, assume_success=data.assume_success)
        success = bool(outcomes.success[0])
    except UnknownOutcomeError:
        success = None
    frames = list(reader.read(0, dataset.num_frames))
    predict = load_network(checkpoint, device_for(config.policy.device))
    values = np.full(len(frames), np.nan, np.float32)
    readable = [number for number, frame in enumerate(frames) if isinstance(frame, dict)]
    for first in range(0, len(readable), GROUP):
        group = readable[first : first + GROUP]
        values[group] = predict(fill_group([frames[number] for number in group]))[: len(group)]
    if success is None:
        return Judged(values, None, None)
    returns = episode_returns(len(frames), success, value.c_fail) / value.reward_normalizer
    return Judged(values, returns, success)


def chart(episode: "Episode", judged: Judged, width: int) -> "Chart":
    """The curve for the video, which grows up to the cursor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from depi.catalog.episode_video import Chart

    images = []
    box = (0, 0, 0, 0)
    for drawn in (True, False):
        figure = Figure(figsize=(width / DPI, CHART_HEIGHT / DPI), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        axis = figure.add_axes((60 / width, 0.16, 1 - 80 / width, 0.7))
        _draw_curves(axis, episode, judged, drawn=drawn)
        canvas.draw()
        images.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        extent = axis.get_window_extent()
        box = (
            CHART_HEIGHT - int(extent.y1),
            CHART_HEIGHT - int(extent.y0),
            int(extent.x0) + 1,
            int(extent.x1),
        )
    return Chart(images[0], (box,), ahead=images[1])


def draw_png(path: Path, episode: "Episode", judged: Judged) -> None:
    """Some frames of every camera in a row, each above its time on the curve; written atomically."""
    from matplotlib.figure import Figure

    count = min(SHOWN, len(episode.seconds))
    numbers = np.linspace(0, len(episode.seconds) - 1, count).round().astype(int).tolist()
    rows = len(episode.cameras)
    figure = Figure(figsize=(1.6 * SHOWN, 1.4 * rows + 3), layout="constrained")
    grid = figure.add_gridspec(rows + 1, count, height_ratios=[1.0] * rows + [1.8])
    for row, images in enumerate(episode.cameras.values()):
        chosen = [image.permute(1, 2, 0).numpy() for number, image in enumerate(images) if number in numbers]
        for column, image in enumerate(chosen):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(image)
            axis.set_axis_off()
            axis.set_title(f"{episode.seconds[numbers[column]]:.1f} s", fontsize=8) if row == 0 else None
    axis = figure.add_subplot(grid[rows, :])
    _draw_curves(axis, episode, judged, drawn=True)
    axis.plot(episode.seconds[numbers], judged.values[numbers], "o", color=VALUE, markersize=4)
    axis.set_xlabel("seconds")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _draw_curves(axis: Any, episode: "Episode", judged: Judged, *, drawn: bool) -> None:
    """Value and return over time; with `drawn` False the axes alone."""
    count = min(len(episode.seconds), len(judged.values))
    seconds = episode.seconds[:count]
    if drawn:
        axis.plot(seconds, judged.values[:count], color=VALUE, linewidth=1.6, label="value")
        if judged.returns is not None:
            axis.plot(seconds, judged.returns[:count], ":", color=RETURN, linewidth=1.4, label="true return")
    ended = {None: "", True: " · success", False: " · failure"}[judged.success]
    # Task texts are untrusted: `$` in them must not start a formula.
    axis.set_title(episode.title[:110] + ended, fontsize=9, loc="left", parse_math=False)
    axis.set_ylim(-1.03, 0.03)
    axis.set_xlim(seconds[0], max(seconds[-1], seconds[0] + 1e-3))
    axis.set_ylabel("value")
    axis.tick_params(labelsize=8)
    axis.grid(color="#e6e2da", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if drawn and judged.returns is not None:
        axis.legend(fontsize=8, loc="lower right", frameon=False)
