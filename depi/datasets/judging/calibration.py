"""Rules about a joint whose sign or zero in one episode is not that of the others, in action and state alike.

Tasks and places differ between episodes, so where a joint goes proves little. But another zero moves all by
the same angle, the start of the episode and the quantiles of what the joint does; another sign mirrors them
all, and turns over how the joint moves together with others, as lift and elbow do in every reach. Each of it
counts by how much it differs between the other episodes: a task that begins anywhere proves nothing by its
start.
"""

from collections.abc import Iterator

import numpy as np

from depi.datasets.judging.faults import Finding, Recording
from depi.datasets.recording.joints import JOINTS

PLACES = (1, 8, 16, 23, 30)
"""Of 32 samples in order of their value, those that stand for the quantiles 3, 25, 50, 75 and 97%."""
MIRRORED = (0, 5, 4, 3, 2, 1)
"""The start and these quantiles, in the order that they have for a mirrored joint."""
ENOUGH = 6
"""An episode is compared with the rest of its recording where that has at least so many."""
ORDINARY = 2 / 3
"""The share of the episodes, the most usual ones, that tell what differs ordinarily; the others may be of
another calibration."""
LEAST, TIMES = 12.0, 4.5
"""Degrees, and times the ordinary difference, from which a mark is elsewhere. Of 420 clean generated sets of
12 episodes it is said of one episode in two of them..."""
CERTAIN_LEAST, CERTAIN_TIMES = 20.0, 6.5
"""... so only far beyond that an episode is left out for another zero."""
SLACK, SLACK_TIMES = 4.0, 2.0
"""Degrees, and times the ordinary difference, by which marks may miss the others' after zero or sign is put
right."""
MARKS = 3
"""So many of the marks, the start among them, have to be elsewhere. With these numbers nothing is found in
120 real episodes of three tasks, nor in any twelve of them in a row."""
FEW = 0.34
"""Of a larger minority nobody knows whether it is right: that is a remark."""
SIDEWAYS = [0, 4]
"""shoulder_pan and wrist_roll: tasks that go to the left and to the right mirror them. So of half of the
episodes nothing can be said, and a few are a remark."""
REACHING = (1, 2)
"""shoulder_lift and elbow_flex, which hang together in nearly all that an arm does."""
TURNED, TOGETHER, NEARLY_ALL = -0.6, 0.5, 0.95
"""Cosine between an episode's correlations of a joint with the others and the usual ones: of a turned sign,
and of NEARLY_ALL other episodes. In 120 real episodes it was 0.48 and more for the two."""
STRONG = 0.7
"""The length of the usual correlations from which they mean anything."""


def joint_zeros_agree(recording: Recording) -> Iterator[Finding]:
    """No joint is shifted by a large angle, in its start and all it does, against the other episodes."""
    yield from _shifted(recording, certain=True)


def joint_zeros_near(recording: Recording) -> Iterator[Finding]:
    """No joint is shifted by an angle, in its start and all it does, against the other episodes."""
    yield from _shifted(recording, certain=False)


def joint_signs_agree(recording: Recording) -> Iterator[Finding]:
    """No joint is mirrored, in its start and all it does, against the other episodes."""
    for position, joint, share in _mirrored(recording):
        if share <= FEW and joint not in SIDEWAYS:
            yield Finding(position, f"{JOINTS[joint]} has the opposite sign of the other episodes")


def joint_signs_even(recording: Recording) -> Iterator[Finding]:
    """No joint is mirrored in about half of the episodes, nor is pan or roll in a few."""
    for position, joint, share in _mirrored(recording):
        if (share > FEW) != (joint in SIDEWAYS):
            yield Finding(
                position, f"{JOINTS[joint]} has the opposite sign of {1 - share:.0%} of the episodes"
            )


def joints_move_together(recording: Recording) -> Iterator[Finding]:
    """Lift and elbow move together with the other joints in the same directions as in the other episodes."""
    if len(recording.length) < ENOUGH:
        return
    steps = np.diff(recording.movement.samples, axis=1)
    products = np.einsum("ekj,ekl->ejl", steps, steps)
    size = np.sqrt(np.maximum(np.einsum("ejj->ej", products), 1e-9))
    rows = products / (size[:, :, None] * size[:, None]) * (1 - np.eye(6))
    alike = np.stack([_likeness(rows[:, joint]) for joint in REACHING], axis=1)
    worst = alike.min(axis=1)
    for place, joint in enumerate(REACHING):
        # A turned sign of one shows in the other's correlations too, but less.
        for position in np.flatnonzero((alike[:, place] <= TURNED) & (alike[:, place] == worst)):
            yield Finding(
                int(position), f"{JOINTS[joint]} moves against the other joints, as in no other episode"
            )


def _marks(recording: Recording) -> np.ndarray | None:
    """The start of each joint and its quantiles, [E, 6, 6]: marks, then joints; None of too few episodes."""
    if len(recording.length) < ENOUGH:
        return None
    samples = recording.movement.samples
    quantiles = np.sort(samples, axis=1)[:, PLACES]
    return np.concatenate([samples[:, :1], quantiles], axis=1).astype(np.float64)


def _shifted(recording: Recording, certain: bool) -> Iterator[Finding]:
    """Joints that another zero explains, where that is certain, or only where it is not."""
    marks = _marks(recording)
    if marks is None:
        return
    usual, spread = _usual(marks)
    away = marks - usual
    shift = _weighted_median(away, 1 / (spread + 2))
    same = (np.abs(away - shift[:, None]) <= SLACK + SLACK_TIMES * spread).all(axis=1)
    shifts = np.broadcast_to(shift[:, None], away.shape)
    moving = recording.movement.measured.reach > LEAST
    far = _elsewhere(shifts, spread, LEAST, TIMES) & moving
    sure = _elsewhere(shifts, spread, CERTAIN_LEAST, CERTAIN_TIMES)
    for position, joint in _few_joints(same & far):
        if sure[position, joint] == certain:
            angle = f"{shift[position, joint]:.0f} degrees"
            yield Finding(position, f"{JOINTS[joint]} is shifted by {angle} against the other episodes")


def _usual(marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median of each mark, [E, ...], and how far episodes ordinarily are from it; [...] both."""
    usual = np.median(marks, axis=0)
    away = np.sort(np.abs(marks - usual), axis=0)
    return usual, away[int(np.ceil(ORDINARY * len(marks))) - 1]


def _elsewhere(away: np.ndarray, spread: np.ndarray, least: float, times: float) -> np.ndarray:
    """Where the start and enough other marks, [E, 6, ...], are elsewhere than ordinary; bool [E, ...]."""
    far = np.abs(away) > np.maximum(least, times * spread)
    return far[:, 0] & (far.sum(axis=1) >= MARKS)


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Over the marks of [E, 6, joints], with weights [6, joints]; [E, joints]."""
    order = np.argsort(values, axis=1)
    weights = np.take_along_axis(np.broadcast_to(weights, values.shape), order, axis=1)
    passed = np.cumsum(weights, axis=1) >= weights.sum(axis=1, keepdims=True) / 2
    middle = np.take_along_axis(order, passed.argmax(axis=1)[:, None], axis=1)
    return np.take_along_axis(values, middle, axis=1)[:, 0]


def _mirrored(recording: Recording) -> Iterator[tuple[int, int, float]]:
    """Episodes and joints of the opposite sign, each with the share of the episodes that have it."""
    marks = _marks(recording)
    if marks is None:
        return
    shares = np.zeros((len(marks), 6))
    for joint in range(6):
        here = marks[:, :, joint]
        opposite = _opposite(here)
        share = float(opposite.mean())
        if share:
            mirrored = np.where(opposite[:, None], -here[:, MIRRORED], here)
            usual, spread = _usual(mirrored)
            same = (np.abs(mirrored - usual) <= SLACK + SLACK_TIMES * spread).all(axis=1)
            limits = (CERTAIN_LEAST, CERTAIN_TIMES) if joint in SIDEWAYS else (LEAST, TIMES)
            opposite &= same & _elsewhere(here - usual, spread, *limits)
            shares[:, joint] = opposite * share
    # Left and right by turns mirror pan and roll together.
    both = (shares[:, SIDEWAYS] > 0).all(axis=1, keepdims=True)
    shares[:, SIDEWAYS] *= ~both
    for position, joint in _few_joints(shares):
        yield position, joint, float(shares[position, joint])


def _opposite(marks: np.ndarray) -> np.ndarray:
    """The minority of the episodes whose marks, [E, 6], lie on the other side of zero; bool [E]."""
    centres = (marks + marks[:, MIRRORED]) / 2
    main = np.linalg.eigh(centres.T @ centres)[1][:, -1]
    side = centres @ main > 0
    many = int(side.sum())
    # Of two halves the first episode's is taken for right.
    majority = bool(side[0]) if 2 * many == len(side) else 2 * many > len(side)
    return side != majority


def _few_joints(found: np.ndarray) -> Iterator[tuple[int, int]]:
    """Episodes and joints, of [E, 6], that are not 0; an episode with more than two is another task."""
    for position, joint in np.argwhere((found != 0) & ((found != 0).sum(axis=1) <= 2)[:, None]):
        yield int(position), int(joint)


def _likeness(rows: np.ndarray) -> np.ndarray:
    """The cosine between each row, [E, 6], and the usual one; all 1 where there is no usual one."""
    main = np.linalg.eigh(rows.T @ rows)[1][:, -1]
    alike = rows @ main / np.maximum(np.linalg.norm(rows, axis=1), 1e-6)
    if 2 * (alike > 0).sum() < len(alike) or (2 * (alike > 0).sum() == len(alike) and alike[0] < 0):
        alike = -alike
    told = (alike >= TOGETHER) | (alike <= TURNED)
    strong = float(np.linalg.norm(np.median(rows[alike > 0], axis=0))) >= STRONG
    return alike if strong and told.mean() >= NEARLY_ALL else np.ones(len(rows))
