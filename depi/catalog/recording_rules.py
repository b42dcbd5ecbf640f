"""Rules about what was recorded: the values in the tables, and what they mean as joints."""

import numpy as np

from depi.catalog.episodes import too_few_good
from depi.catalog.facts import Facts, Thresholds
from depi.catalog.text import clean
from depi.datasets.recording.tables import ACTION, STATE


def tables_readable(facts: Facts, limits: Thresholds) -> str | None:
    """The parquet tables hold, for each listed episode, as many rows as listed, and some can be used."""
    return facts.tables_error


def timestamps_in_step(facts: Facts, limits: Thresholds) -> str | None:
    """The usual step between frames is that of the declared fps, within a factor of 1.5."""
    step = np.diff(facts.readable.time, prepend=0)[facts.readable.inside]
    usual = float(np.median(step)) if len(step) else 1 / facts.info.fps
    if 1 / 1.5 <= usual * facts.info.fps <= 1.5:
        return None
    return f"frames are {usual:.4g} s apart, {facts.info.fps:g} fps means {1 / facts.info.fps:.4g} s"


def not_frozen(facts: Facts, limits: Thresholds) -> str | None:
    """Neither action nor state is the same number in every frame."""
    for name in (ACTION, STATE):
        values = facts.readable.columns[name]
        if not np.ptp(values, axis=0).any():
            return f"{name} is the same in all {len(values)} frames"
    return None


def joints_known(facts: Facts, limits: Thresholds) -> str | None:
    """The joint convention is certain; the reason states the evidence."""
    if facts.detection.convention not in ("unknown", "native"):
        return None
    return f"joint convention not certain: {clean(facts.detection.evidence, 300)}"


def enough_good_episodes(facts: Facts, limits: Thresholds) -> str | None:
    """No more than `--max_bad_episodes` of the episodes are bad; the others are enough.

    Good ones are at least `--min_episodes` with `--min_frames` frames. Training leaves the bad ones out.
    """
    return too_few_good(facts.episodes, limits)


def motion_present(facts: Facts, limits: Thresholds) -> str | None:
    """Both action and state move: some joint by at least `--min_motion` degrees over the dataset."""
    for name, values in ((ACTION, facts.good.action), (STATE, facts.good.state)):
        moved = float(np.ptp(values, axis=0).max())
        if not moved >= limits.min_motion:
            return f"no joint of {name} moves more than {moved:.2g} degrees (--min_motion)"
    return None


def state_follows(facts: Facts, limits: Thresholds) -> str | None:
    """State and action show the same motion: their speeds correlate by `--min_follow` at some lag."""
    if facts.motion.follow >= limits.min_follow:
        return None
    return (
        f"the motion of state and action correlates by no more than {facts.motion.follow:.2f}, "
        f"{limits.min_follow:g} is expected (--min_follow)"
    )


def lag_plausible(facts: Facts, limits: Thresholds) -> str | None:
    """The state comes with the action or up to `--max_lag` seconds after it, never before it."""
    lag = facts.motion.lag
    if lag is None or facts.motion.follow < limits.min_follow:
        return None
    if lag < -1.5 / facts.info.fps:
        return f"the state moves {-lag:.2f} s before the action that should cause it"
    if lag > limits.max_lag:
        return f"the state follows the action only after {lag:.2f} s (--max_lag)"
    return None


def gripper_used(facts: Facts, limits: Thresholds) -> str | None:
    """The gripper opens or closes by `--min_gripper` (0..100); tasks such as pushing do not need it."""
    moved = facts.motion.gripper_range
    if moved >= limits.min_gripper:
        return None
    return f"the gripper moves by {moved:.2g} of 100 (--min_gripper)"
