"""What all trainings of the arms of `decentralised.py` show together, with intervals.

Two trainings of one arm differ more than most arms do, and episodes in one rig are alike: intervals count
chance in trainings, rigs and episodes. They are percentiles of a bootstrap that draws each with replacement
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8, nested sampling). All arms
are played in the same episodes, so that a difference is taken within the same drawn rigs and episodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from decentralised_rigs import BLIND, Arm, Experiment
from numpy.typing import NDArray
from rich.table import Table

from depi.evaluation.compare import read_evaluation

DRAWS = 4000
PERCENTILES = (2.5, 97.5)
ALONE = "alone, mean"


@dataclass(frozen=True)
class Played:
    """The successes of one split, bool [trainings, episodes], and the rig of each episode, int [episodes]."""

    wins: NDArray[np.bool_]
    rigs: NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """An arm in one split.

    Attributes:
        trainings: success rate of each.
        rate, interval: of all together.
        difference, difference_interval: from the union; the union's are 0.
    """

    trainings: tuple[float, ...]
    rate: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]


def read_played(experiment: Experiment, arms: Sequence[Arm], seen: bool) -> Played:
    """The episodes that some trainings played in recorded rigs, or in those that nobody recorded.

    Raises:
        UserError: one has not been played.
    """
    rows = [read_evaluation(experiment.played_folder(arm)).rows for arm in arms]
    seeds = [seed for seed in sorted(rows[0]) if experiment.rig_of(seed).seen == seen]
    names = sorted({rig.name for rig in experiment.rigs})
    return Played(
        np.array([[row[seed].success for seed in seeds] for row in rows]),
        np.array([names.index(experiment.rig_of(seed).name) for seed in seeds]),
    )


def summarise(experiment: Experiment) -> dict[str, dict[str, Row]]:
    """Arm -> `seen` and `unseen` -> what it reached; `ALONE` is the mean of all contributors alone."""
    groups = {
        arm.name: [each for each in experiment.trainings if each.name == arm.name] for arm in experiment.arms
    }
    alone = [each for each in experiment.trainings if each.only is not None]
    if alone:
        groups[ALONE] = alone
    groups[BLIND.name] = [BLIND]
    results: dict[str, dict[str, Row]] = {name: {} for name in groups}
    for split in ("seen", "unseen"):
        played = {name: read_played(experiment, arms, split == "seen") for name, arms in groups.items()}
        for name, row in compare_all(played).items():
            results[name][split] = row
    return results


def compare_all(played: Mapping[str, Played], draws: int = DRAWS) -> dict[str, Row]:
    """The rows of arms by name, the union first, all of which played the same episodes."""
    rng = np.random.default_rng(0)
    rigs = next(iter(played.values())).rigs
    rates = np.empty((draws, len(played)))
    for draw in range(draws):
        episodes = _drawn_episodes(rigs, rng)
        for column, arm in enumerate(played.values()):
            trainings = rng.integers(len(arm.wins), size=len(arm.wins))
            rates[draw, column] = arm.wins[trainings[:, None], episodes].mean()
    differences = rates - rates[:, :1]
    union = next(iter(played.values())).wins.mean()
    return {
        name: Row(
            tuple(arm.wins.mean(axis=1).tolist()),
            float(arm.wins.mean()),
            _interval(rates[:, column]),
            float(arm.wins.mean() - union),
            _interval(differences[:, column]),
        )
        for column, (name, arm) in enumerate(played.items())
    }


def _drawn_episodes(rigs: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions of episodes: rigs drawn with replacement, and of each as many of its episodes as it has."""
    known = np.unique(rigs)
    chosen = [np.flatnonzero(rigs == rig) for rig in rng.choice(known, len(known))]
    return np.concatenate([rng.choice(places, len(places)) for places in chosen])


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def table(results: Mapping[str, Mapping[str, Row]]) -> Table:
    """The rates with 95% intervals, and the differences from the union in percentage points."""
    made = Table(
        "trained", "recorded rigs", "against union", "other rigs", "against union", "trainings, other rigs"
    )
    for name, splits in results.items():
        cells = [
            cell
            for split in ("seen", "unseen")
            for cell in (_rate(splits[split]), _difference(splits[split]))
        ]
        each = ", ".join(f"{rate:.0%}" for rate in splits["unseen"].trainings)
        made.add_row(name, *cells, each)
    return made


def _rate(row: Row) -> str:
    return f"{row.rate:.0%} ({row.interval[0]:.0%} to {row.interval[1]:.0%})"


def _difference(row: Row) -> str:
    low, high = (100 * bound for bound in row.difference_interval)
    return f"{100 * row.difference:+.0f} ({low:+.0f} to {high:+.0f})"


def figures(results: Mapping[str, Mapping[str, Row]]) -> dict[str, Any]:
    """What the last line of output says: numbers rounded to a tenth of a per cent."""
    return {
        name: {
            split: {
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
