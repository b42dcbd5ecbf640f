"""What all trainings of the arms of `decentralised.py` show together, see `bootstrap`.

python benchmarks/decentralised_summary.py FILE ...     # one table of all that these outcomes.json hold
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bootstrap import Played, Row, compare_all, plot, table
from decentralised_rigs import BLIND, Experiment
from rich.console import Console

from depi.errors import UserError
from depi.evaluation.compare import read_evaluation
from depi.files import read_json

ALONE = "alone, mean"
# The titles of the two splits.
COLUMNS = {"seen": "recorded rigs", "unseen": "other rigs"}


def outcomes(experiment: Experiment) -> dict[str, Any]:
    """Who succeeded in which episode, as JSON.

    Returns:
        `rigs`: of each episode, in the order of their seeds; `seen`: 1 where somebody recorded in that rig,
        else 0; `trainings`: each with the `rows` of the table that it counts for, and a 1 or 0 per episode.

    Raises:
        UserError: one has not been played.
    """
    trainings, seeds = [], []
    for arm in (*experiment.trainings, BLIND):
        episodes = read_evaluation(experiment.played_folder(arm)).rows
        seeds = sorted(episodes)
        successes = "".join(str(int(episodes[seed].success)) for seed in seeds)
        rows = [arm.name, *([ALONE] if arm.only is not None else [])]
        trainings.append({"rows": rows, "training": arm.training, "successes": successes})
    rigs = [experiment.rig_of(seed) for seed in seeds]
    return {
        "rigs": [rig.name for rig in rigs],
        "seen": "".join(str(int(rig.seen)) for rig in rigs),
        "trainings": trainings,
    }


def merge(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The trainings of several `outcomes`, each once, in the order of the rows' first appearance.

    Raises:
        UserError: they are of other episodes, or one training has other outcomes in two of them.
    """
    first = files[0]
    trainings: dict[tuple[str, int], Any] = {}
    for kept in files:
        if (kept["rigs"], kept["seen"]) != (first["rigs"], first["seen"]):
            raise UserError(
                "the files of outcomes are of other rigs or episodes: give those of one seed and scale"
            )
        for training in kept["trainings"]:
            name, number = training["rows"][0], training["training"]
            if trainings.setdefault((name, number), training) != training:
                raise UserError(
                    f"training {number} of {name} has other outcomes in two of the files: give one"
                )
    return {**first, "trainings": list(trainings.values())}


def summarise(files: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Row]]:
    """Row -> `seen` and `unseen` -> what it reached; `ALONE` is the mean of all contributors alone.

    Args:
        files: see `outcomes`; of the same episodes.

    Raises:
        UserError: they do not fit together.
    """
    kept = merge(files)
    groups: dict[str, list[str]] = {}
    for training in kept["trainings"]:
        for name in training["rows"]:
            groups.setdefault(name, []).append(training["successes"])
    groups[BLIND.name] = groups.pop(BLIND.name)  # last
    names = sorted(set(kept["rigs"]))
    rigs = np.array([names.index(name) for name in kept["rigs"]])
    results: dict[str, dict[str, Row]] = {name: {} for name in groups}
    for split, here in {"seen": _bits(kept["seen"]), "unseen": ~_bits(kept["seen"])}.items():
        played = {
            name: Played(np.stack([_bits(each) for each in group])[:, here], rigs[here])
            for name, group in groups.items()
        }
        for name, row in compare_all(played).items():
            results[name][split] = row
    return results


def _bits(text: str) -> np.ndarray:
    return np.array(list(text)) == "1"


def show(results: Mapping[str, Mapping[str, Row]]) -> None:
    """Print the table."""
    Console(width=150).print(table(results, COLUMNS, "union"))
    print("Success and differences in points, with 95% intervals over trainings, rigs and episodes.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One table of kept outcomes.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="as outcomes.json has them")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="where to draw it as well")
    options = parser.parse_args()
    try:
        results = summarise([read_json(path) for path in options.files])
        show(results)
        if options.plot is not None:
            plot(results, COLUMNS, options.plot)
    except UserError as error:
        sys.exit(f"error: {error}")
