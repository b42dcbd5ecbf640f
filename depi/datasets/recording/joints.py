"""The units in which people recorded an SO-100 or SO-101 arm, told apart and made one.

Canonical are `degrees`: joints in the order of JOINTS, degrees with zero in the middle of each joint's range,
the gripper 0 (closed) to 100 (open). Every convention is an affine map of it, joint by joint.

How a recording's convention is found: each convention starts as a candidate. Names strike out candidates
(`main_shoulder_pan` is only ever `degrees_v1`, `shoulder_pan.pos` never is), then values do:

- `radians` needs every value within ±3.5, and nothing else fits such values;
- `normalized` needs every value within ±100 (LeRobot clamps) and the gripper within 0..100;
- values that rest exactly on ±100 strike out degrees, except for shoulder_lift, whose own limit is there;
- taken as degrees of either kind, no joint may be outside of the arm's reach (REACH).

One left: that is it. None left: `unknown`. Left in doubt between `normalized` and `degrees`, the encoder
decides: a servo counts 4096 steps a turn, so recorded degrees advance by 360/4096 on every joint, normalised
values by 200 over the joint's calibrated number of steps. Where no encoder steps are visible either
(simulated or filtered recordings), joints named `*.pos` are taken as `normalized`, LeRobot's default when
these names came, and the evidence says so; without names the answer is `unknown`.

The encoder also makes `normalized` exact. A joint that was calibrated over N steps takes the values
200 k / N - 100, so levels in the recorded state give N, and with it the half range, N / 2 * 360 / 4095
degrees as LeRobot itself reads this arm with `use_degrees=True`. Only the state tells: the levels of a
teleoperated action are those of the leader's encoder, while its values mean shares of the follower's range. A
joint without visible levels is converted with its nominal half range, and the evidence says which ones.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from depi.errors import UserError

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CONVENTIONS = ("degrees_v1", "degrees", "normalized", "radians", "native", "unknown")

HALF_RANGE = (110.8, 103.5, 97.4, 101.2, 170.2)
"""Nominal half range of the body joints in degrees: what ±100 means. Single arms differ by about 2%."""

REACH = (140.0, 130.0, 125.0, 130.0, 190.0)
"""No arm gets a body joint farther from the middle, in degrees; about a quarter more than HALF_RANGE."""

GRIPPER_RADIANS = (-0.174533, 1.745329)
"""Closed and open gripper of the SO-101 model, in radians."""

_GRIPPER_SLACK = 30.0
_RADIANS_LIMIT = 3.5
_NORMALIZED_LIMIT = 101.0
_ENCODER_DEGREES = 360 / 4095.5  # LeRobot divided by 4095 or 4096 at different times
_DEGREES_PER_STEP = 360 / 4095  # what it divides by since degrees have their zero mid-range
_CALIBRATED_STEPS = (1000, 4095)
_FEWEST_LEVELS = 30
_NO_CHANGE = (np.ones(6), np.zeros(6))
_TURN = 180 / np.pi
_OPENING = 100 / (GRIPPER_RADIANS[1] - GRIPPER_RADIANS[0])

# degrees = scale * value + offset, per joint
_TO_DEGREES = {
    "degrees": _NO_CHANGE,
    "native": _NO_CHANGE,
    "degrees_v1": (np.array([1.0, -1, 1, 1, 1, 1]), np.array([0.0, 90, -90, 0, 0, 0])),
    "normalized": (np.array([*(half / 100 for half in HALF_RANGE), 1.0]), np.zeros(6)),
    "radians": (
        np.array([_TURN] * 5 + [_OPENING]),
        np.array([0.0] * 5 + [-GRIPPER_RADIANS[0] * _OPENING]),
    ),
}


SPACES = ("degrees", "normalized", "native")
"""The units that a policy can be trained in: `depi.datasets.recording.joints.to_space`."""


@dataclass(frozen=True)
class Detection:
    """A recording's joint convention and why, in one sentence with the numbers.

    half_range: for `normalized`, what ±100 means in degrees on each body joint, where the encoder tells; None
        where the nominal HALF_RANGE has to do.
    """

    convention: str
    evidence: str
    half_range: tuple[float | None, ...] = (None,) * 5


def to_degrees(values: np.ndarray, convention: str | Detection) -> np.ndarray:
    """Recorded joints to canonical degrees.

    Args:
        values: float [..., 6] (any width for `native`).
        convention: one of CONVENTIONS but `unknown`; or a Detection, whose half ranges are then used.

    Returns:
        The same shape and dtype. `native` and `degrees` come back as they are. `normalized` is exact on
        joints whose half range was detected, and on others right to about 2% (6% for a wrist_roll that was
        calibrated over its whole turn), since an arm's calibration is not recorded; the rest is exact.

    Raises:
        ValueError: the convention has no conversion, or the width is not 6.
    """
    conversion = _conversion(values, convention)
    if conversion is None:
        return values
    scale, offset = conversion
    return (np.asarray(values, np.float64) * scale + offset).astype(values.dtype)


def from_degrees(values: np.ndarray, convention: str | Detection) -> np.ndarray:
    """Canonical degrees to a robot's own convention: the inverse of `to_degrees`, same arguments."""
    conversion = _conversion(values, convention)
    if conversion is None:
        return values
    scale, offset = conversion
    return ((np.asarray(values, np.float64) - offset) / scale).astype(values.dtype)


def to_space(values: np.ndarray, detection: Detection, space: str) -> np.ndarray:
    """Recorded joints to the units that a policy is trained in.

    Args:
        values: float [..., 6] (any width for a recording of no SO-100).
        detection: the recording's convention.
        space: `degrees`; `normalized`, where ±100 is the nominal HALF_RANGE of every arm; or `native`, the
            recorded numbers.

    Returns:
        The same shape and dtype. A recording of no SO-100 comes back as it is.
    """
    if space not in SPACES:
        raise ValueError(f"joint convention {space!r} of the training data is none of {', '.join(SPACES)}")
    if space == "native" or detection.convention == "native":
        return values
    degrees = to_degrees(values, detection)
    return from_degrees(degrees, "normalized") if space == "normalized" else degrees


def check_native(detections: Mapping[str, Detection]) -> None:
    """Refuse to pool recorded numbers of different conventions.

    Args:
        detections: per repo id.

    Raises:
        UserError: they are not all of one convention.
    """
    found: dict[str, str] = {}
    for repo_id, detection in detections.items():
        found.setdefault(detection.convention, repo_id)
    if len(found) > 1:
        named = ", ".join(f"{convention} ({repo_id})" for convention, repo_id in sorted(found.items()))
        raise UserError(
            f"--dataset.joint_convention=native needs datasets of one convention, these are in {named}: "
            "choose degrees or normalized"
        )


def _conversion(values: np.ndarray, convention: str | Detection) -> tuple[np.ndarray, np.ndarray] | None:
    found = convention if isinstance(convention, Detection) else Detection(convention, "")
    name = found.convention
    if name not in _TO_DEGREES:
        raise ValueError(f"joint convention {name!r} has no conversion to degrees")
    if _TO_DEGREES[name] is _NO_CHANGE:
        return None
    if values.shape[-1] != len(JOINTS):
        raise ValueError(f"joint convention {name!r} needs 6 joints, not {values.shape[-1]}")
    scale, offset = _TO_DEGREES[name]
    if name == "normalized":
        half_range = [exact or nominal for exact, nominal in zip(found.half_range, HALF_RANGE, strict=True)]
        scale = np.array([*(half / 100 for half in half_range), 1.0])
    return scale, offset


def detect_convention(
    names: Sequence[str] | None, action: np.ndarray, state: np.ndarray | None = None
) -> Detection:
    """Find a recording's joint convention from the joints' names and all its values.

    For `normalized` the half ranges of the joints too, where the state shows them.

    Args:
        names: the names of the action's elements, or None.
        action: float [F, D], as recorded.
        state: float [F, D], as recorded, or None.

    Returns:
        `native` for what is no single SO-100 arm; `unknown` where the evidence contradicts itself.
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
        state = None
    recorded = [action] if state is None else [action, state]
    values = np.concatenate(recorded).astype(np.float64)
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return Detection("unknown", "no row of finite numbers to judge by")
    low, high = values.min(axis=0), values.max(axis=0)
    ranges = (
        f"names {_quote(names)}, body joints {low[:5].min():.4g}..{high[:5].max():.4g}, "
        f"gripper {low[5]:.4g}..{high[5]:.4g}"
    )
    struck = _strike_out(kind, values, low, high)
    left = [name for name in ("degrees_v1", "degrees", "normalized", "radians") if name not in struck]
    if not left:
        reasons = "; ".join(f"not {name}: {why}" for name, why in struck.items())
        return Detection("unknown", f"{ranges}: {reasons}")
    if len(left) == 1:
        reasons = "; ".join(dict.fromkeys(struck.values()))
        found = Detection(left[0], f"{ranges}: {left[0]}, since {reasons}")
    else:
        found = _decide(kind, left, ranges, recorded)
    return _with_half_ranges(found, state) if found.convention == "normalized" else found


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


def _strike_out(kind: str, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, str]:
    """The conventions that the recording cannot be in, each with the reason."""
    struck = {}
    if kind == "old":
        struck = dict.fromkeys(("degrees", "normalized", "radians"), "names main_* are of before the change")
    if kind == "new":
        struck = {"degrees_v1": "names *.pos are of after the change"}
    widest = np.abs(values).max()
    if widest <= _RADIANS_LIMIT:
        small = f"nothing is beyond ±{_RADIANS_LIMIT}"
        return {**dict.fromkeys(("degrees_v1", "degrees", "normalized"), small), **_only(struck, "radians")}
    struck.setdefault("radians", f"values reach {widest:.4g}")
    body = max(-low[:5].min(), high[:5].max())
    if body > _NORMALIZED_LIMIT or low[5] < -1 or high[5] > _NORMALIZED_LIMIT:
        struck.setdefault("normalized", "values pass ±100 or the gripper 0..100")
    resting = _resting_at_100(values[:, :5], low[:5], high[:5])
    if resting:
        for name in ("degrees_v1", "degrees"):
            struck.setdefault(name, f"values rest at exactly ±100 ({', '.join(resting)})")
    for name in ("degrees_v1", "degrees"):
        outside = _outside_reach(low, high, name)
        if outside:
            struck.setdefault(name, outside)
    return struck


def _only(struck: dict[str, str], name: str) -> dict[str, str]:
    return {name: struck[name]} if name in struck else {}


def _resting_at_100(body: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[str]:
    """Joints with an end at ±100 in two samples or more; shoulder_lift's own limit is 100 degrees."""
    resting = []
    for joint, name in enumerate(JOINTS[:5]):
        at_end = (np.abs(high[joint] - 100) < 0.005, np.abs(low[joint] + 100) < 0.005)
        count = (np.abs(np.abs(body[:, joint]) - 100) < 0.005).sum()
        if any(at_end) and count >= 2 and name != "shoulder_lift":
            resting.append(name)
    return resting


def _outside_reach(low: np.ndarray, high: np.ndarray, convention: str) -> str | None:
    ends = to_degrees(np.stack([low, high]), convention)
    for joint, reach in enumerate(REACH):
        far = ends[np.abs(ends[:, joint]).argmax(), joint]
        if abs(far) > reach:
            return f"{JOINTS[joint]} would be at {far:.4g} degrees, out of reach"
    if ends[0, 5] < -_GRIPPER_SLACK or ends[1, 5] > 100 + _GRIPPER_SLACK:
        return f"the gripper is at {ends[0, 5]:.4g}..{ends[1, 5]:.4g}"
    return None


def _decide(kind: str, left: list[str], ranges: str, recorded: list[np.ndarray]) -> Detection:
    """Several conventions fit the values: ask the encoder, then the names, then give up."""
    steps = [step for values in recorded for step in map(_encoder_step, values[:, :5].T) if step]
    as_degrees = sum(abs(step / _ENCODER_DEGREES - 1) < 5e-4 for step in steps)
    text = f"{as_degrees} of {len(steps)} columns advance by encoder steps of 360/4096"
    if len(steps) >= 3 and as_degrees < len(steps) / 2 and "normalized" in left:
        return Detection("normalized", f"{ranges}: normalized, since only {text}")
    if len(steps) >= 3 and as_degrees > len(steps) / 2:
        left = [name for name in left if name != "normalized"]
        if len(left) == 1:
            return Detection(left[0], f"{ranges}: {left[0]}, since {text}")
    if kind == "new" and "normalized" in left:
        return Detection(
            "normalized",
            f"{ranges}: nothing decides between {' and '.join(left)}, taken as normalized, "
            "LeRobot's default when the names *.pos came",
        )
    return Detection("unknown", f"{ranges}: fits {' and '.join(left)} alike")


def _with_half_ranges(detection: Detection, state: np.ndarray | None) -> Detection:
    """The same detection with what the state's levels tell about each body joint's calibration."""
    steps = [None] * 5 if state is None else [_calibrated_steps(column) for column in state.T[:5]]
    known = ", ".join(f"{JOINTS[joint]} {count}" for joint, count in enumerate(steps) if count)
    nominal = ", ".join(JOINTS[joint] for joint, count in enumerate(steps) if not count)
    parts = [f"encoder steps over the range: {known}"] if known else []
    parts += [f"nominal half range for {nominal}"] if nominal else []
    half_range = tuple(count / 2 * _DEGREES_PER_STEP if count else None for count in steps)
    return Detection(detection.convention, "; ".join([detection.evidence, *parts]), half_range)


def _calibrated_steps(values: np.ndarray) -> int | None:
    """The number N of encoder steps over a joint's range, if its values are levels 200 k / N - 100."""
    levels = np.unique(values[:50_000].astype(np.float64))
    levels = levels[np.abs(levels) < 99.99]  # at the ends LeRobot clamps
    if len(levels) < _FEWEST_LEVELS:
        return None
    some = levels[np.linspace(0, len(levels) - 1, _FEWEST_LEVELS).astype(int)]
    candidates = np.arange(_CALIBRATED_STEPS[0], _CALIBRATED_STEPS[1] + 1)
    # A few levels rule out nearly all of them: what is within 0.05 over all is within sqrt(5) times that
    # over every fifth.
    likely = candidates[_distance_to_levels(some[::5], candidates) < 0.05 * 5**0.5]
    likely = likely[_distance_to_levels(some, likely) < 0.05]
    fitting = likely[[_distance_to_levels(levels, count[None])[0] < 0.02 for count in likely]].tolist()
    # Levels of N are also levels of its multiples; anything else that fits leaves N open.
    return fitting[0] if fitting and not any(count % fitting[0] for count in fitting) else None


def _distance_to_levels(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Root mean square distance of values [L] to the nearest level, in steps, per number of steps [S]."""
    position = (values + 100) * (steps[:, None] / 200)
    return np.sqrt(np.mean((position - np.round(position)) ** 2, axis=1))


def _encoder_step(values: np.ndarray) -> float | None:
    """The distance between neighbouring levels of a quantised column, None for a continuous one."""
    column = values[:50_000].astype(np.float64)
    levels = np.unique(column[np.isfinite(column)])
    gaps = np.diff(levels)
    gaps = gaps[gaps > 1e-3]
    if len(gaps) < 30:
        return None
    step = np.quantile(gaps, 0.05)
    counts = np.round(gaps / step)
    if step < 0.03 or (np.abs(gaps / step - counts) > 0.05).mean() > 0.02:
        return None
    return float(gaps.sum() / counts.sum())


def _quote(names: Sequence[str] | None) -> str:
    return ascii(list(names)[:2])[1:-1] + ", ..." if names else "absent"
