"""Which convention an SO-100 or SO-101 arm was recorded in: an answer only where the recording shows it.

State and action are judged each by itself, in this order.

1. Names: six numbers that are not called the six joints are `native`; joints in another order are `unknown`.
2. Numbers: whole numbers up to 4095 are motor ticks, and values within ±3.5 radians or scaled; else degrees
   or normalised.
3. Degrees or normalised: the levels of the encoder decide (`encoder.read_levels`, two joints or more, and at
   least three for each one against them); or values that rest at exactly ±100, where LeRobot clamps
   normalised ones; or values beyond ±101, which normalised ones never have. Where only one of state and
   action shows its unit, the other one has the same if it moves by the same amounts.
4. Zero and sign: taken as `degrees` or as `degrees_v1`, every joint has to stay within the arm's reach
   (REACH) in both columns; names may not contradict. If both fit, nothing decides.
   Radians are `radians` only if the joints are called by their names, and the folded arm, in which recordings
   start and end, is seen where it has to be: lift and elbow at their ends.

What is left is `unknown`: no library's default is evidence (LeRobot's changed from normalised to degrees in
0.4.4), and a wrong answer costs more than none. A few readings far from all others decide nothing.
"""

import re
from collections.abc import Sequence

import numpy as np

from depi.datasets.recording.encoder import DEGREES_PER_STEP, calibrated_steps, read_levels
from depi.datasets.recording.joints import JOINTS, REACH, Detection, to_degrees
from depi.errors import DatasetError

_GRIPPER_SLACK = 30.0
_RADIANS_LIMIT = 3.5
_NORMALIZED_LIMIT = 101.0
_MOST_TICKS = 4095
# Lift and elbow of the folded arm in degrees: at the ends, about -103 and 97.
_FOLDED = (-80.0, 70.0)
_FOLDED_FRAMES = 3
# Readings that may be glitches: one, and one more for each so many frames, at either end of every joint.
_FRAMES_PER_GLITCH = 500
# Amounts of motion in degrees and in -100..100 differ by 11% on the pan and by 70% on the roll.
_SAME_AMOUNT = 0.05
_MOVES = 3.0
_CONTRADICTORY = "contradictory"
# phosphobot writes this robot_type, with joints motor_1..motor_6: radians with a zero and signs of its own.
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
        contradicts itself, with what was seen as the evidence.
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
    finite = {name: values[np.isfinite(values).all(axis=1)] for name, values in columns.items()}
    if not all(map(len, finite.values())):
        return Detection("unknown", "no row of finite numbers to judge by")
    ends = {name: _ends(values) for name, values in finite.items()}
    low = np.min([pair[0] for pair in ends.values()], axis=0)
    high = np.max([pair[1] for pair in ends.values()], axis=0)
    seen = (
        f"names {_quote(names)}, body joints {low[:5].min():.4g}..{high[:5].max():.4g}, "
        f"gripper {low[5]:.4g}..{high[5]:.4g}"
    )
    foreign = _foreign(kind, robot_type, columns, low, high, episode_length)
    if foreign is not None:
        return Detection("unknown", f"{seen}: {foreign}")
    if max(-low.min(), high.max()) <= _RADIANS_LIMIT:
        found = _judge_radians(kind, finite, low, high)
    else:
        found = _judge_unit(kind, finite, low, high)
    found = Detection(found.convention, f"{seen}: {found.evidence}")
    return _with_half_ranges(found, state) if found.convention == "normalized" else found


def given_convention(convention: str, action: np.ndarray, state: np.ndarray) -> Detection:
    """The convention that a user gives for a recording, in place of `detect_convention`.

    Args:
        convention: one of `joints.GIVEN`.
        action: float [F, 6], as recorded; of any width for `native`.
        state: float [F, 6], as recorded.

    Raises:
        DatasetError: joints would be out of the arm's reach.
    """
    given = "given with --dataset.conventions"
    if convention == "native":
        return Detection(convention, given)
    for name, values in (("action", action), ("state", state)):
        if values.ndim != 2 or values.shape[1] != len(JOINTS):
            raise DatasetError(f"{convention} is {given}, but the {name} is not six joints")
        outside = _outside_reach(*_ends(values), convention)
        if outside:
            raise DatasetError(f"{convention} is {given}, but in the {name} {outside}")
    found = Detection(convention, given)
    return _with_half_ranges(found, state) if convention == "normalized" else found


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


def _ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest value of each joint (float64 [6]), glitches left out."""
    skipped = min(len(values) // 20, 1 + len(values) // _FRAMES_PER_GLITCH)
    ordered = np.partition(values.astype(np.float64), (skipped, len(values) - 1 - skipped), axis=0)
    return ordered[skipped], ordered[len(values) - 1 - skipped]


def _foreign(
    kind: str,
    robot_type: str | None,
    columns: dict[str, np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    episode_length: np.ndarray | None,
) -> str | None:
    """The name of numbers that no convention here converts; None where there is none."""
    if low.min() >= 0 and 400 < high.max() <= _MOST_TICKS:
        values = np.concatenate(list(columns.values()))
        if np.array_equal(values, np.round(values)):
            return (
                "whole numbers up to 4095: motor ticks, which only the arm's calibration turns into degrees"
            )
    small = max(-low.min(), high.max()) <= _RADIANS_LIMIT
    if small and robot_type == _PHOSPHOBOT:
        return "phosphobot's radians have a zero and signs of their own"
    if not small and episode_length is not None:
        start = np.cumsum(episode_length) - episode_length
        largest = np.max([np.abs(values[:, :5]).max(axis=1) for values in columns.values()], axis=0)
        tiny = np.flatnonzero(np.maximum.reduceat(largest, start) <= _RADIANS_LIMIT)
        if len(tiny):
            return f"{len(tiny)} episodes, first number {tiny[0]}, are in another unit than the rest"
    return None


def _judge_radians(kind: str, columns: dict[str, np.ndarray], low: np.ndarray, high: np.ndarray) -> Detection:
    small = f"nothing is beyond ±{_RADIANS_LIMIT}"
    if kind == "none":
        return Detection("unknown", f"{small}: radians or scaled, and no names of joints tell zero and signs")
    if kind == "old":
        return Detection("unknown", f"{small}: radians or scaled, but names main_* mean degrees")
    outside = _outside_reach(low, high, "radians")
    if outside:
        return Detection("unknown", f"{small}: radians of another zero or sign, since {outside}")
    for name, values in columns.items():
        degrees = to_degrees(values.astype(np.float64), "radians")
        folded = (degrees[:, 1] < _FOLDED[0]) & (degrees[:, 2] > _FOLDED[1])
        if folded.sum() < _FOLDED_FRAMES:
            return Detection(
                "unknown", f"{small}: radians or scaled, and the {name} never shows the folded arm"
            )
    return Detection("radians", f"radians, since {small}, and the folded arm is where it has to be")


def _judge_unit(kind: str, columns: dict[str, np.ndarray], low: np.ndarray, high: np.ndarray) -> Detection:
    """Degrees or normalised, then the zero of degrees."""
    units = {name: _unit(values) for name, values in columns.items()}
    known = {unit for unit, _ in units.values() if unit}
    why = "; ".join(f"{name}: {reason}" for name, (_, reason) in units.items())
    if _CONTRADICTORY in known:
        return Detection("unknown", f"the values contradict each other ({why})")
    if len(known) > 1:
        return Detection("unknown", f"action and state are in different units ({why})")
    if not known:
        return Detection("unknown", f"nothing decides between degrees and normalized ({why})")
    if any(unit is None for unit, _ in units.values()) and not _same_amounts(*columns.values()):
        return Detection("unknown", f"action and state may be in different units ({why})")
    if known == {"normalized"}:
        return Detection("normalized", f"normalized, since {why}")
    return _judge_zero(kind, low, high, why)


def _unit(values: np.ndarray) -> tuple[str | None, str]:
    """`degrees`, `normalized`, _CONTRADICTORY, or None where nothing decides; and why."""
    votes = [read_levels(column).unit for column in values[:, :5].T]
    as_degrees, as_normalized = votes.count("degrees"), votes.count("normalized")
    text = f"{as_degrees} joints on encoder steps of degrees, {as_normalized} on those of a calibrated range"
    low, high = _ends(values)
    beyond = max(-low[:5].min(), high[:5].max()) > _NORMALIZED_LIMIT
    resting = _resting_at_100(values[:, :5].astype(np.float64), low[:5], high[:5])
    if beyond and (resting or as_normalized > 1):
        return _CONTRADICTORY, f"values beyond ±101 beside normalised ones ({text})"
    if beyond:
        return "degrees", f"values pass ±101 ({text})"
    if resting and as_degrees < 2:
        return "normalized", f"values rest at exactly ±100 ({', '.join(resting)})"
    if as_degrees >= max(2, 3 * as_normalized) and not resting:
        return "degrees", text
    # A joint that was calibrated over 2275 steps has levels like those of degrees.
    if as_normalized >= max(2, 3 * as_degrees):
        return "normalized", text
    return None, text


def _resting_at_100(body: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[str]:
    """Joints with an end at ±100 in two samples or more; shoulder_lift's own limit is 100 degrees."""
    resting = []
    for joint, name in enumerate(JOINTS[:5]):
        at_end = (np.abs(high[joint] - 100) < 0.005, np.abs(low[joint] + 100) < 0.005)
        count = (np.abs(np.abs(body[:, joint]) - 100) < 0.005).sum()
        if any(at_end) and count >= 2 and name != "shoulder_lift":
            resting.append(name)
    return resting


def _same_amounts(action: np.ndarray, state: np.ndarray) -> bool:
    """Whether pan and roll move by the same amounts in both columns; where they rest, at the same place."""
    pair = [values[:, [0, 4]].astype(np.float64) for values in (action, state)]
    moved = np.stack([values.std(axis=0) for values in pair])
    place = np.stack([np.median(values, axis=0) for values in pair])
    moving = moved.min(axis=0) > _MOVES
    same_motion = np.abs(moved[0] - moved[1]) < _SAME_AMOUNT * moved[1]
    same_place = np.abs(place[0] - place[1]) < np.maximum(_MOVES, _SAME_AMOUNT * np.abs(place[1]))
    return bool(np.where(moving, same_motion, same_place).all())


def _judge_zero(kind: str, low: np.ndarray, high: np.ndarray, why: str) -> Detection:
    """`degrees` or `degrees_v1`: what keeps every joint in reach, if the names allow it."""
    struck = {name: _outside_reach(low, high, name) for name in ("degrees", "degrees_v1")}
    left = [name for name, outside in struck.items() if outside is None]
    if len(left) == 2:
        return Detection("unknown", f"degrees ({why}), but with the zero of before or of after the change")
    if not left:
        reasons = "; ".join(f"not {name}: {outside}" for name, outside in struck.items())
        return Detection("unknown", f"degrees ({why}), {reasons}")
    other = next(outside for outside in struck.values() if outside)
    contradicting = {"old": "degrees", "new": "degrees_v1"}.get(kind)
    if left[0] == contradicting:
        return Detection("unknown", f"{left[0]} by its values ({other}), which its names contradict")
    return Detection(left[0], f"{left[0]}, since {why}; with the other zero {other}")


def _outside_reach(low: np.ndarray, high: np.ndarray, convention: str) -> str | None:
    ends = to_degrees(np.stack([low, high]), convention)
    for joint, reach in enumerate(REACH):
        far = ends[np.abs(ends[:, joint]).argmax(), joint]
        if abs(far) > reach:
            return f"{JOINTS[joint]} would be at {far:.4g} degrees, out of reach"
    if ends[0, 5] < -_GRIPPER_SLACK or ends[1, 5] > 100 + _GRIPPER_SLACK:
        return f"the gripper is at {ends[0, 5]:.4g}..{ends[1, 5]:.4g}"
    return None


def _with_half_ranges(detection: Detection, state: np.ndarray | None) -> Detection:
    """The same detection with what the state's levels tell about each body joint's calibration."""
    steps = [None] * 5 if state is None else [calibrated_steps(column) for column in state.T[:5]]
    known = ", ".join(f"{JOINTS[joint]} {count}" for joint, count in enumerate(steps) if count)
    nominal = ", ".join(JOINTS[joint] for joint, count in enumerate(steps) if not count)
    parts = [f"encoder steps over the range: {known}"] if known else []
    parts += [f"nominal half range for {nominal}"] if nominal else []
    half_range = tuple(count / 2 * DEGREES_PER_STEP if count else None for count in steps)
    return Detection(detection.convention, "; ".join([detection.evidence, *parts]), half_range)


def _quote(names: Sequence[str] | None) -> str:
    return ascii(list(names)[:2])[1:-1] + ", ..." if names else "absent"
