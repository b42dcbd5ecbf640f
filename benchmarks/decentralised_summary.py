"""What all trainings of the arms of `decentralised.py` show together, see `bootstrap`."""

from collections.abc import Sequence

import numpy as np
from bootstrap import Played, Row, compare_all
from decentralised_rigs import BLIND, Arm, Experiment

from depi.evaluation.compare import read_evaluation

ALONE = "alone, mean"
# The titles of the two splits.
COLUMNS = {"seen": "recorded rigs", "unseen": "other rigs"}


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
