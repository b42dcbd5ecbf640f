"""Rules about what was recorded: the values in the tables, and what they mean as joints."""

import numpy as np

from depi.catalog.facts import Facts, Thresholds
from depi.catalog.text import clean


def tables_readable(facts: Facts, limits: Thresholds) -> str | None:
    """The parquet tables hold, for each listed episode, as many rows as listed, of the declared shape."""
    return facts.tables_error


def finite_values(facts: Facts, limits: Thresholds) -> str | None:
    """No NaN and no infinity in action, state and timestamps."""
    columns = (("action", facts.action), ("observation.state", facts.state), ("timestamp", facts.timestamp))
    for name, values in columns:
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if bad.any():
            return f"{name} is NaN or infinite in {bad.sum()} of {len(bad)} frames, first in {bad.argmax()}"
    return None


def timestamps_monotonic(facts: Facts, limits: Thresholds) -> str | None:
    """Within each episode time moves forward from frame to frame."""
    step, episode = _time_steps(facts)
    bad = ~(step > 0)
    if not bad.any():
        return None
    return f"time stands still or runs back at {bad.sum()} frames, first in episode {episode[bad.argmax()]}"


def timestamps_in_step(facts: Facts, limits: Thresholds) -> str | None:
    """The usual step between frames is that of the declared fps, within a factor of 1.5."""
    step, _ = _time_steps(facts)
    usual = float(np.median(step)) if len(step) else 1 / facts.info.fps
    if 1 / 1.5 <= usual * facts.info.fps <= 1.5:
        return None
    return f"frames are {usual:.4g} s apart, {facts.info.fps:g} fps means {1 / facts.info.fps:.4g} s"


def timestamps_steady(facts: Facts, limits: Thresholds) -> str | None:
    """Few time steps differ from the usual one by more than half of it (`--max_uneven_steps`)."""
    step, _ = _time_steps(facts)
    if not len(step):
        return None
    usual = float(np.median(step))
    uneven = float((np.abs(step - usual) > usual / 2).mean())
    if uneven <= limits.max_uneven_steps:
        return None
    return f"{uneven:.0%} of the frames come too early or too late (--max_uneven_steps)"


def not_frozen(facts: Facts, limits: Thresholds) -> str | None:
    """Neither action nor state is the same number in every frame."""
    for name, values in (("action", facts.action), ("observation.state", facts.state)):
        if not np.ptp(values, axis=0).any():
            return f"{name} is the same in all {len(values)} frames"
    return None


def joints_known(facts: Facts, limits: Thresholds) -> str | None:
    """The joint convention is certain; the reason states the evidence."""
    if facts.detection.convention not in ("unknown", "native"):
        return None
    return f"joint convention not certain: {clean(facts.detection.evidence, 300)}"


def motion_present(facts: Facts, limits: Thresholds) -> str | None:
    """Both action and state move: some joint by at least `--min_motion` degrees over the dataset."""
    for name, values in (("action", facts.action_degrees), ("observation.state", facts.state_degrees)):
        moved = float(np.ptp(values, axis=0).max())
        if not moved >= limits.min_motion:
            return f"no joint of {name} moves more than {moved:.2g} degrees (--min_motion)"
    return None


def episodes_move(facts: Facts, limits: Thresholds) -> str | None:
    """In most episodes some joint moves by `--min_motion` (`--max_still_episodes` are allowed not to)."""
    still = int((facts.motion.moved < limits.min_motion).sum())
    count = len(facts.motion.moved)
    if still <= limits.max_still_episodes * count:
        return None
    return f"in {still} of {count} episodes no joint moves by {limits.min_motion:g} degrees (--min_motion)"


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


def _time_steps(facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    """Seconds between neighbouring frames of the same episode, and that episode's position; [F - E]."""
    episode = np.repeat(np.arange(len(facts.episode_length)), facts.episode_length)
    same = episode[1:] == episode[:-1]
    return np.diff(facts.timestamp)[same], episode[1:][same]
