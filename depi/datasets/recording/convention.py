"""Which convention an SO-100 or SO-101 arm was recorded in: an answer only where the recording shows it.

State and action are judged each by itself, in this order.

1. Names: six numbers that are not called the six joints are `native`; joints in another order are `unknown`.
2. Episodes: those in other units than most are left aside and named (`odd_episodes`); without the half of all
   episodes nothing is known.
3. Numbers: whole numbers up to 4095 are motor ticks, and values within ±3.5 radians or scaled; else degrees
   or normalised.
4. Degrees or normalised: the levels of the encoder decide (`encoder.read_levels`, two joints or more, and at
   least three for each one against them); or values that rest at exactly ±100, where LeRobot clamps
   normalised ones; or values beyond ±101, which normalised ones never have. Where only one of state and
   action shows its unit, the other one has the same if it moves by the same amounts. Where both show one, and
   not the same, both are believed if in degrees they move by the same amounts.
5. Zero and sign: taken as `degrees` or as `degrees_v1`, every joint has to stay within the arm's reach
   (REACH) in both columns; names may not contradict. If both fit, nothing decides.
   Radians are `radians` only if the joints are called by their names, and the folded arm, in which recordings
   start and end, is seen where it has to be: lift and elbow at their ends.

What is left is `unknown`: no library's default is evidence (LeRobot's changed from normalised to degrees in
0.4.4), and a wrong answer costs more than none. A few readings far from all others decide nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from depi.datasets.recording.encoder import DEGREES_PER_STEP, calibrated_steps
from depi.datasets.recording.joints import JOINTS, Detection, to_degrees
from depi.datasets.recording.odd_episodes import Columns, detect_agreeing
from depi.datasets.recording.units import (
    CONTRADICTORY,
    ends,
    is_small,
    joint_ends,
    judge_radians,
    judge_zero,
    outside_reach,
    unit_of,
)
from depi.errors import DatasetError

_MOST_TICKS = 4095
# Amounts of motion in degrees and in -100..100 differ by 11% on the pan and by 70% on the roll. Of unlike
# columns one is converted, where it has to be by the nominal range, which is right to 3%.
_SAME_AMOUNT = 0.05
_SAME_AMOUNT_IN_DEGREES = 0.08
_MOVES = 3.0
# Command and state in degrees are not this far apart in the middle: more than sag and an offset.
_SAME_PLACE = 15.0
# phosphobot writes this robot_type, with joints motor_1..motor_6. Its radians count from the pose into which
# the user puts the arm when calibrating, and their signs are measured then (phospho-app/phosphobot,
# phosphobot/hardware/so100.py, `calibrate`): no two arms have the same zero, and no dataset tells it.
_PHOSPHOBOT = "so-100"


def detect_convention(
    names: Sequence[str] | None,
    action: np.ndarray,
    state: np.ndarray | None = None,
    *,
    robot_type: str | None = None,
    episode_length: np.ndarray | None = None,
) -> Detection:
    """Find a recording's joint convention from the joints' names and all its values.

    For `normalized` the half ranges of the joints too, where the state shows them.

    Args:
        names: the names of the action's elements, or None.
        action: float [F, D], as recorded.
        state: float [F, D], as recorded, or None.
        robot_type: as declared, or None.
        episode_length: int64 [E], frames of each episode; None: one episode.

    Returns:
        `native` for what is no single SO-100 arm; `unknown` where the recording does not show what it is, or
        contradicts itself, with what was seen as the evidence. Else it is that of most episodes, and `unlike`
        names the others; where action and state differ, it is `A/S`.
    """
    if action.ndim != 2 or action.shape[1] != len(JOINTS):
        return Detection(
            "native", f"an action has {action.shape[-1]} numbers, not the six joints of an SO-100"
        )
    kind = _kind_of_names(names)
    if kind == "other":
        return Detection("native", f"the names {_quote(names)} are not the joints of an SO-100")
    if kind == "disordered":
        return Detection("unknown", f"the joints {_quote(names)} are not in the order {', '.join(JOINTS)}")
    if state is not None and state.shape[1:] != action.shape[1:]:
        return Detection("unknown", f"an action is six joints, but a state has {state.shape[-1]} numbers")
    columns = {"action": action} if state is None else {"action": action, "state": state}
    length = np.array([len(action)]) if episode_length is None else episode_length
    return detect_agreeing(columns, length, partial(_detect, names, kind, robot_type))


def _detect(
    names: Sequence[str] | None, kind: str, robot_type: str | None, columns: Columns, length: np.ndarray
) -> Detection:
    """The convention of episodes that are all of one."""
    rows = np.all([np.isfinite(values).all(axis=1) for values in columns.values()], axis=0)
    if not rows.any():
        return Detection("unknown", "no row of finite numbers to judge by")
    finite = {name: values[rows] for name, values in columns.items()}
    length = np.add.reduceat(rows, np.cumsum(length) - length, dtype=int)
    length = length[length > 0]
    low, high = joint_ends(finite)
    seen = (
        f"names {_quote(names)}, body joints {low[:5].min():.4g}..{high[:5].max():.4g}, "
        f"gripper {low[5]:.4g}..{high[5]:.4g}"
    )
    foreign = _foreign(robot_type, columns, low, high)
    if foreign is not None:
        return Detection("unknown", f"{seen}: {foreign}")
    small = {name: is_small(*ends(values)) for name, values in finite.items()}
    if all(small.values()):
        found = judge_radians(kind, finite)
    elif any(small.values()):
        found = _join_unlike(
            finite, {name: _judge_one(kind, name, of, length) for name, of in finite.items()}
        )
    else:
        found = _judge_unit(kind, finite, length)
    if found.convention == "normalized":
        found = _with_half_ranges(found, columns)
    return replace(found, evidence=f"{seen}: {found.evidence}")


def given_convention(
    convention: str, action: np.ndarray, state: np.ndarray, episode_length: np.ndarray | None = None
) -> Detection:
    """The convention that a user gives for a recording, in place of `detect_convention`.

    Episodes in other units than most are `unlike` here too.

    Args:
        convention: one of `joints.GIVEN`, or two of them for action and state.
        action: float [F, 6], as recorded; of any width for `native`.
        state: float [F, 6], as recorded.
        episode_length: int64 [E], frames of each episode; None: one episode.

    Raises:
        DatasetError: joints would be out of the arm's reach.
    """
    found = Detection(convention, "given with --dataset.conventions")
    if convention == "native":
        return found
    for name, values in (("action", action), ("state", state)):
        if values.ndim != 2 or values.shape[1] != len(JOINTS):
            raise DatasetError(f"{convention} is {found.evidence}, but the {name} is not six joints")
    length = np.array([len(action)]) if episode_length is None else episode_length
    return detect_agreeing({"action": action, "state": state}, length, partial(_check_given, found))


def _check_given(given: Detection, columns: Columns, length: np.ndarray) -> Detection:
    parts = {"action": given.action.convention, "state": given.state.convention}
    for name, convention in parts.items():
        outside = outside_reach(*ends(columns[name]), convention)
        if outside:
            raise DatasetError(f"{convention} is {given.evidence}, but in the {name} {outside}")
    return _with_half_ranges(given, columns)


def _kind_of_names(names: Sequence[str] | None) -> str:
    """old (`main_shoulder_pan`), new (`shoulder_pan.pos`), plain, none, other, or disordered."""
    if not names:
        return "none"
    found = [next((joint for joint in JOINTS if joint in name.lower()), None) for name in names]
    if not any(found):
        numbered = all(
            re.search(r"(motor|joint|axis|state|action|dim|pos)?[\W_]*\d+$", name.lower()) for name in names
        )
        return "none" if numbered else "other"
    if tuple(found) != JOINTS:
        return "disordered" if sorted(map(str, found)) == sorted(JOINTS) else "other"
    if all(name.startswith("main_") for name in names):
        return "old"
    return "new" if all(name.endswith(".pos") for name in names) else "plain"


def _foreign(robot_type: str | None, columns: Columns, low: np.ndarray, high: np.ndarray) -> str | None:
    """The name of numbers that no convention here converts; None where there is none."""
    if low.min() >= 0 and 400 < high.max() <= _MOST_TICKS:
        values = np.concatenate(list(columns.values()))
        if np.array_equal(values, np.round(values)):
            return (
                "whole numbers up to 4095: motor ticks, which only the arm's calibration turns into degrees"
            )
    if is_small(low, high) and robot_type == _PHOSPHOBOT:
        return "phosphobot's radians, whose zeros and signs are what its user calibrated"
    return None


def _judge_unit(kind: str, columns: Columns, length: np.ndarray) -> Detection:
    """Degrees or normalised, then the zero of degrees."""
    units = {name: unit_of(values, length) for name, values in columns.items()}
    known = {unit for unit, _ in units.values() if unit}
    why = "; ".join(f"{name}: {reason}" for name, (_, reason) in units.items())
    if CONTRADICTORY in known:
        return Detection("unknown", f"the values contradict each other ({why})")
    if len(known) > 1:
        found = {name: _judge_zero_of(kind, name, values, units[name]) for name, values in columns.items()}
        return _join_unlike(columns, found)
    if not known:
        return Detection("unknown", f"nothing decides between degrees and normalized ({why})")
    if any(unit is None for unit, _ in units.values()) and not _same_amounts(*columns.values()):
        return Detection("unknown", f"action and state may be in different units ({why})")
    if known == {"normalized"}:
        return Detection("normalized", f"normalized, since {why}")
    return judge_zero(kind, columns, why)


def _judge_one(kind: str, name: str, values: np.ndarray, length: np.ndarray) -> Detection:
    """The convention of a column by itself."""
    if is_small(*ends(values)):
        return judge_radians(kind, {name: values})
    return _judge_zero_of(kind, name, values, unit_of(values, length))


def _judge_zero_of(kind: str, name: str, values: np.ndarray, unit: tuple[str | None, str]) -> Detection:
    if unit[0] == "degrees":
        return judge_zero(kind, {name: values}, unit[1])
    return Detection("normalized" if unit[0] == "normalized" else "unknown", unit[1])


def _join_unlike(columns: Columns, found: Mapping[str, Detection]) -> Detection:
    """Action and state of unlike units: each shows its own, and in degrees they have to move alike."""
    why = "; ".join(f"{name}: {each.evidence}" for name, each in found.items())
    unlike = f"action and state are in different units ({why})"
    if any(each.convention == "unknown" for each in found.values()):
        return Detection("unknown", unlike)
    action, state = (each.convention for each in found.values())
    both = _with_half_ranges(
        Detection(f"{action}/{state}", f"{unlike}, and in degrees they move alike"), columns
    )
    degrees = to_degrees(columns["action"], both.action), to_degrees(columns["state"], both.state)
    return (
        both
        if _alike_in_degrees(*degrees)
        else Detection("unknown", f"{unlike}, which move unlike in degrees")
    )


def _same_amounts(action: np.ndarray, state: np.ndarray) -> bool:
    """Whether pan and roll move by the same amounts in both columns; where they rest, at the same place."""
    action, state = (values[:, [0, 4]].astype(np.float64) for values in (action, state))
    place = np.median(action, axis=0), np.median(state, axis=0)
    same_place = np.abs(place[0] - place[1]) < np.maximum(_MOVES, _SAME_AMOUNT * np.abs(place[1]))
    moving, same_motion = _same_motion(action, state, _SAME_AMOUNT)
    return bool(np.where(moving, same_motion, same_place).all())


def _alike_in_degrees(action: np.ndarray, state: np.ndarray) -> bool:
    """Whether command and state are at about the same places, and pan and roll move by the same amounts."""
    apart = np.median(action[:, :5], axis=0) - np.median(state[:, :5], axis=0)
    moving, same_motion = _same_motion(action[:, [0, 4]], state[:, [0, 4]], _SAME_AMOUNT_IN_DEGREES)
    return bool((same_motion | ~moving).all() and (np.abs(apart) < _SAME_PLACE).all())


def _same_motion(action: np.ndarray, state: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Which joints move in both columns, and which of them by the same amount, bool [D] each."""
    moved = np.stack([values.std(axis=0) for values in (action, state)])
    return moved.min(axis=0) > _MOVES, np.abs(moved[0] - moved[1]) < share * moved[1]


def _with_half_ranges(found: Detection, columns: Columns) -> Detection:
    """The same detection with what levels tell about each body joint's calibration, if it is `normalized`.

    A normalised action is a share of the follower's range; of its own, where the state is in other units.
    """
    parts = found.action.convention, found.state.convention
    if "normalized" not in parts:
        return found
    values = columns.get("state" if parts[1] == "normalized" else "action")
    steps = [None] * 5 if values is None else [calibrated_steps(column) for column in values.T[:5]]
    known = ", ".join(f"{JOINTS[joint]} {count}" for joint, count in enumerate(steps) if count)
    nominal = ", ".join(JOINTS[joint] for joint, count in enumerate(steps) if not count)
    text = [f"encoder steps over the range: {known}"] if known else []
    text += [f"nominal half range for {nominal}"] if nominal else []
    half_range = tuple(count / 2 * DEGREES_PER_STEP if count else None for count in steps)
    return Detection(found.convention, "; ".join([found.evidence, *text]), half_range)


def _quote(names: Sequence[str] | None) -> str:
    return ascii(list(names)[:2])[1:-1] + ", ..." if names else "absent"
