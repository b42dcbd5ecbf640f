"""Success rates of several trainings of each row, and their differences, with 95% intervals.

Two trainings of one row differ more than most rows do, and episodes in one rig are alike: intervals count
chance in trainings, rigs and episodes. They are percentiles of a bootstrap that draws each with replacement
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8, nested sampling). All rows
have played the same episodes, so that a difference is taken within the same drawn rigs and episodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

from depi.files import atomic_write

INK, FAINT = "#2f4ac4", "#8a93b8"
DRAWS = 4000
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Played:
    """The successes of a row, bool [trainings, episodes], and the rig of each episode, int [episodes]."""

    wins: NDArray[np.bool_]
    rigs: NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """What a row reached.

    Attributes:
        episodes: of each training.
        trainings: success rate of each.
        rate, interval: of all together.
        difference, difference_interval: from the first row, whose own are 0.
    """

    episodes: int
    trainings: tuple[float, ...]
    rate: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]


def compare_all(
    played: Mapping[str, Played], *, together: bool = False, draws: int = DRAWS
) -> dict[str, Row]:
    """The rows by name, all of which played the same episodes; differences are from the first one.

    `together`: the first trainings of all rows have much in common, and so have the second, ...: they are
    drawn together.
    """
    rng = np.random.default_rng(0)
    first = next(iter(played.values()))
    rates = np.empty((draws, len(played)))
    for draw in range(draws):
        episodes = _drawn_episodes(first.rigs, rng)
        common = rng.integers(len(first.wins), size=len(first.wins))
        for column, row in enumerate(played.values()):
            trainings = common if together else rng.integers(len(row.wins), size=len(row.wins))
            rates[draw, column] = row.wins[trainings[:, None], episodes].mean()
    differences = rates - rates[:, :1]
    return {
        name: Row(
            row.wins.shape[1],
            tuple(row.wins.mean(axis=1).tolist()),
            float(row.wins.mean()),
            _interval(rates[:, column]),
            float(row.wins.mean() - first.wins.mean()),
            _interval(differences[:, column]),
        )
        for column, (name, row) in enumerate(played.items())
    }


def _drawn_episodes(rigs: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions of episodes: rigs drawn with replacement, and of each as many of its episodes as it has."""
    known = np.unique(rigs)
    chosen = [np.flatnonzero(rigs == rig) for rig in rng.choice(known, len(known))]
    return np.concatenate([rng.choice(places, len(places)) for places in chosen])


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def table(results: Mapping[str, Mapping[str, Row]], columns: Mapping[str, str], reference: str) -> Table:
    """The rates with 95% intervals, and the differences from the first row in percentage points.

    Args:
        results: name of a row -> split -> what it reached.
        columns: split -> its title. reference: what the first row is called.
    """
    pairs = [title for of_split in columns.values() for title in (of_split, f"against {reference}")]
    made = Table("trained", *pairs, f"each, {list(columns.values())[-1]}")
    for name, splits in results.items():
        cells = [cell for split in columns for cell in (_rate(splits[split]), _difference(splits[split]))]
        each = ", ".join(f"{rate:.0%}" for rate in splits[list(columns)[-1]].trainings)
        made.add_row(name, *cells, each)
    return made


def _rate(row: Row) -> str:
    return f"{row.rate:.0%} ({row.interval[0]:.0%} to {row.interval[1]:.0%})"


def _difference(row: Row) -> str:
    low, high = (100 * bound for bound in row.difference_interval)
    return f"{100 * row.difference:+.0f} ({low:+.0f} to {high:+.0f})"


def plot(results: Mapping[str, Mapping[str, Row]], columns: Mapping[str, str], path: Path) -> None:
    """Draw the table as a PNG: of each row its rate with the 95% interval, and its trainings as small points.

    A dotted line goes through the first row's rate. Arguments as of `table`.
    """
    names = list(results)
    figure = Figure(figsize=(4.5 * len(columns) + 1.5, 0.3 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, (split, title) in zip(axes, columns.items(), strict=True):
        for place, name in enumerate(names):
            row = results[name][split]
            axis.plot(np.multiply(100, row.interval), [place, place], color=INK)
            axis.plot([100 * rate for rate in row.trainings], [place] * len(row.trainings), ".", color=FAINT)
            axis.plot(100 * row.rate, place, "o", color=INK)
        axis.axvline(100 * results[names[0]][split].rate, color=FAINT, linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="success in per cent", xlim=(0, 100))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    with atomic_write(path) as draft:
        figure.savefig(draft, format="png", dpi=100)


def figures(results: Mapping[str, Mapping[str, Row]]) -> dict[str, Any]:
    """What the last line of output says: numbers rounded to a tenth of a per cent."""
    return {
        name: {
            split: {
                "episodes": row.episodes,
                "success_rate": round(row.rate, 3),
                "interval_95": [round(bound, 3) for bound in row.interval],
                "difference": round(row.difference, 3),
                "difference_interval_95": [round(bound, 3) for bound in row.difference_interval],
                "trainings": [round(rate, 3) for rate in row.trainings],
            }
            for split, row in splits.items()
        }
        for name, splits in results.items()
    }
