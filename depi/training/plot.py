"""`depi plot`: loss, learning rate and throughput of one or several runs."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from depi.errors import UserError
from depi.files import atomic_write, write_text
from depi.flags import parse_flags
from depi.journal import read_lines
from depi.page import document

# What is drawn: name in `metrics.jsonl`, label, and whether its axis is logarithmic.
CURVES = (
    ("loss", "training loss", True),
    ("eval/loss", "held-out loss", True),
    ("eval/success_rate", "success rate", False),
    ("lr", "learning rate", False),
    ("samples_per_s", "samples per second", False),
)
BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 24
# More points of a curve than a chart is wide in pixels are not seen.
MOST_POINTS = 1000

# Steps and values of one curve.
Curve = tuple[list[int], list[float]]


@dataclass
class PlotConfig:
    """Draw the metrics of runs: depi plot RUN... [--output=FILE.png or FILE.html]

    RUN is the folder of a training run, finished or not. Several are drawn into the same axes.
    """

    runs: list[Path] = field(default_factory=list)
    # A picture (.png) or a page that tells the values under the pointer (.html). null: both, as metrics.png
    # and metrics.html in the run's folder; of several runs, in outputs/.
    output: Path | None = None


def read_curves(run: Path) -> dict[str, Curve]:
    """The curves of a run by their names in `metrics.jsonl`, those that it has.

    Raises:
        UserError: there are no metrics, or they are not DePi's.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run} is not a training run: it has no metrics.jsonl")
    curves: dict[str, Curve] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            values = json.loads(line)
            step = int(values["step"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: line {number} is not a line of metrics") from None
        for name, _, _ in CURVES:
            value = values.get(name)
            if isinstance(value, (int, float)) and math.isfinite(value):
                steps, numbers = curves.setdefault(name, ([], []))
                steps.append(step)
                numbers.append(float(value))
    if not curves:
        raise UserError(f"{run} has not logged any step yet")
    return curves


def write_page(runs: dict[str, dict[str, Curve]], output: Path) -> None:
    """Write the curves by run and name as a page, one chart for each name."""
    charts = []
    for name, label, logarithmic in CURVES:
        curves = [
            {"name": Path(run).name, "points": _thinned(found[name]), "colour": colour}
            for colour, (run, found) in enumerate(runs.items())
            if name in found
        ]
        if curves:
            charts.append({"label": label, "logarithmic": logarithmic, "curves": curves})
    title = Path(next(iter(runs))).resolve().name if len(runs) == 1 else f"{len(runs)} runs"
    data = {"runs": list(runs), "charts": charts}
    page = document.render(
        data, package="depi.training", name="plot", scripts=("plot.js",), title=title, about="training"
    )
    write_text(output, page)


def _thinned(curve: Curve) -> list[tuple[int, float]]:
    """At most about MOST_POINTS points, evenly taken, and the last one."""
    points = list(zip(*curve, strict=True))
    stride = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


def draw(runs: dict[str, dict[str, Curve]], output: Path) -> None:
    """Draw curves by run and name as PNG, one panel below the other, written whole or not at all."""
    shown = [curve for curve in CURVES if any(curve[0] in curves for curves in runs.values())]
    figure = Figure(figsize=(9, 2.6 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, label, logarithmic) in zip(panels, shown, strict=True):
        for color, (run, curves) in enumerate(runs.items()):
            if name in curves:
                panel.plot(*curves[name], color=f"C{color % 10}", label=run, linewidth=1.2)
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        if logarithmic:
            panel.set_yscale("log")
    panels[-1].set_xlabel("step")
    if len(runs) > 1:
        panels[0].legend(fontsize="small")
    with atomic_write(output) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Values as a row of at most `width` blocks, each for the mean of its part."""
    count = min(width, len(values))
    bounds = [len(values) * part // count for part in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in pairwise(bounds)]
    low, extent = min(means), max(means) - min(means)
    levels = [round((mean - low) / extent * (len(BLOCKS) - 1)) if extent else 0 for mean in means]
    return "".join(BLOCKS[level] for level in levels)


def show(runs: dict[str, dict[str, Curve]], console: Console) -> None:
    """Print a table per run, a line per curve."""
    for run, curves in runs.items():
        table = Table("curve", "first", "steps", "last")
        for name, label, _ in CURVES:
            if name in curves:
                steps, values = curves[name]
                line = f"{steps[0]} {sparkline(values)} {steps[-1]}"
                table.add_row(label, f"{values[0]:.4g}", line, f"{values[-1]:.4g}")
        console.print(run, soft_wrap=True, markup=False, highlight=False)
        console.print(table)


WRITERS = {".png": draw, ".html": write_page}


def main(args: Sequence[str]) -> int:
    """Run the `depi plot` verb."""
    runs = list(takewhile(lambda arg: not arg.startswith("-"), args))
    named = [f"--runs={json.dumps(runs)}"] if runs else []
    config = parse_flags(PlotConfig, [*named, *args[len(runs) :]], "depi plot RUN...")
    if not config.runs:
        raise UserError("name a run: depi plot outputs/train/DATE/TIME_JOB, or several")
    if config.output and config.output.suffix not in WRITERS:
        raise UserError(f"--output must end in {' or '.join(WRITERS)}, not {config.output.name!r}")
    curves = {str(run): read_curves(run) for run in config.runs}
    folder = config.runs[0] if len(curves) == 1 else Path("outputs")
    outputs = [config.output] if config.output else [folder / "metrics.png", folder / "metrics.html"]
    for output in outputs:
        WRITERS[output.suffix](curves, output)
    show(curves, Console())
    print(f"drawn in {' and '.join(map(str, outputs))}")
    return 0
