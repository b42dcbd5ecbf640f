"""What recorded numbers of six joints show of their unit, and of the zero of degrees."""

from collections.abc import Mapping

import numpy as np

from depi.datasets.recording.encoder import read_levels
from depi.datasets.recording.joints import JOINTS, REACH, Detection, to_degrees

RADIANS_LIMIT = 3.5
NORMALIZED_LIMIT = 101.0
CONTRADICTORY = "contradictory"
_GRIPPER_SLACK = 30.0
# Lift and elbow of the folded arm in degrees: at the ends, about -103 and 97.
_FOLDED = (-80.0, 70.0)
_FOLDED_FRAMES = 3
_NEAR_END = 90.0
# Less motion of a joint in an episode shows no end.
_MOVES = 5.0
# Lowest and highest lift, elbow and wrist_flex, in radians, of two models with zeros of their own; from
# TheRobotStudio/SO-ARM100, Simulation/SO101/so101_old_calib.urdf and Simulation/SO100/so100.urdf. Neither is
# converted: by its limits so101_old_calib's lift is 90 degrees off, but its elbow 83 to 87, and the zeros of
# so100 are set apart by rounded angles (-1.8, -1) between its links.
_OTHER_MODELS = {
    "so101_old_calib.urdf": ((-3.31613, 0.174533), (-0.174533, 3.14159), (-1.65806, 1.65806)),
    "so100.urdf": ((0.0, 3.5), (-3.14158, 0.0), (-2.5, 1.2)),
}
_MODEL_SLACK = 0.1
# Readings that may be glitches: one, and one more for each so many frames, at either end of every joint.
_FRAMES_PER_GLITCH = 500


def ends(values: np.ndarray, frames_per_glitch: int = _FRAMES_PER_GLITCH) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest value of each joint (float64 [D]) of values [F, D], glitches left out."""
    skipped = min(len(values) // 20, 1 + len(values) // frames_per_glitch)
    ordered = np.partition(values.astype(np.float64), (skipped, len(values) - 1 - skipped), axis=0)
    return ordered[skipped], ordered[len(values) - 1 - skipped]


def is_small(low: np.ndarray, high: np.ndarray) -> bool:
    """Whether values with these ends are small enough for radians, or for values scaled to ±1."""
    return bool(max(-low.min(), high.max()) <= RADIANS_LIMIT)


def outside_reach(low: np.ndarray, high: np.ndarray, convention: str) -> str | None:
    """Which joint would be where no SO-100 or SO-101 gets, if values with these ends were of a convention."""
    found = to_degrees(np.stack([low, high]), convention)
    for joint, reach in enumerate(REACH):
        far = found[np.abs(found[:, joint]).argmax(), joint]
        if abs(far) > reach:
            return f"{JOINTS[joint]} would be at {far:.4g} degrees, out of reach"
    if not gripper_fits(found[0, 5], found[1, 5]):
        return f"the gripper is at {found[0, 5]:.4g}..{found[1, 5]:.4g}"
    return None


def in_reach(low: np.ndarray, high: np.ndarray, convention: str) -> np.ndarray:
    """The same for many pairs of ends, float [E, 6]: where all joints are in reach, bool [E]."""
    pair = to_degrees(np.stack([low, high]), convention)
    within = (np.abs(pair[..., :5]) <= np.array(REACH)).all(axis=(0, 2))
    return within & gripper_fits(pair[0, :, 5], pair[1, :, 5])


def gripper_fits[Number: (float, np.ndarray)](low: Number, high: Number) -> Number:
    """Whether a gripper that goes from `low` to `high` can be one of 0 to 100."""
    return (low >= -_GRIPPER_SLACK) & (high <= 100 + _GRIPPER_SLACK)


def judge_radians(kind: str, columns: Mapping[str, np.ndarray]) -> Detection:
    """`radians`, if columns of small values are canonical ones; `kind` of names, see `convention`."""
    low, high = joint_ends(columns)
    small = f"nothing is beyond ±{RADIANS_LIMIT}"
    if kind == "none":
        return Detection("unknown", f"{small}: radians or scaled, and no names of joints tell zero and signs")
    if kind == "old":
        return Detection("unknown", f"{small}: radians or scaled, but names main_* mean degrees")
    outside = outside_reach(low, high, "radians")
    if outside:
        models = _models_that_fit(low, high)
        fitting = f"; they fit the limits of {models}" if models else ""
        return Detection("unknown", f"{small}: radians of another zero or sign, since {outside}{fitting}")
    for name, values in columns.items():
        degrees = to_degrees(values.astype(np.float64), "radians")
        folded = (degrees[:, 1] < _FOLDED[0]) & (degrees[:, 2] > _FOLDED[1])
        if folded.sum() < _FOLDED_FRAMES:
            return Detection(
                "unknown", f"{small}: radians or scaled, and the {name} never shows the folded arm"
            )
    return Detection("radians", f"radians, since {small}, and the folded arm is where it has to be")


def _models_that_fit(low: np.ndarray, high: np.ndarray) -> str:
    """The models with zeros of their own whose limits hold radians with these ends."""
    return " and ".join(
        name
        for name, limits in _OTHER_MODELS.items()
        if (low[1:4] > np.array(limits)[:, 0] - _MODEL_SLACK).all()
        and (high[1:4] < np.array(limits)[:, 1] + _MODEL_SLACK).all()
    )


def judge_zero(kind: str, columns: Mapping[str, np.ndarray], why: str) -> Detection:
    """`degrees` or `degrees_v1` of columns in degrees: what keeps every joint in reach, if names allow it."""
    low, high = joint_ends(columns)
    struck = {name: outside_reach(low, high, name) for name in ("degrees", "degrees_v1")}
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


def joint_ends(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest value of each joint over all columns, glitches left out."""
    pairs = [ends(values) for values in columns.values()]
    return np.min([low for low, _ in pairs], axis=0), np.max([high for _, high in pairs], axis=0)


def unit_of(values: np.ndarray, length: np.ndarray) -> tuple[str | None, str]:
    """The unit that one column shows.

    Args:
        values: float [F, 6], in degrees or normalised.
        length: int64 [E], frames of each episode.

    Returns:
        `degrees`, `normalized`, CONTRADICTORY, or None where nothing decides; and why.
    """
    votes = [read_levels(column).unit for column in values[:, :5].T]
    as_degrees, as_normalized = votes.count("degrees"), votes.count("normalized")
    text = f"{as_degrees} joints on encoder steps of degrees, {as_normalized} on those of a calibrated range"
    low, high = ends(values)
    beyond = max(-low[:5].min(), high[:5].max()) > NORMALIZED_LIMIT
    body = values[:, :5].astype(np.float64)
    resting = _resting_at_100(body, low[:5], high[:5])
    if beyond and (resting or as_normalized > 1):
        return CONTRADICTORY, f"values beyond ±101 beside normalised ones ({text})"
    if beyond:
        return "degrees", f"values pass ±101 ({text})"
    if resting and as_degrees < 2 and (as_normalized > 1 or _always_at_end(body[:, resting], length)):
        names = ", ".join(JOINTS[joint] for joint in resting)
        return "normalized", f"values rest at exactly ±100 ({names})"
    if as_degrees >= max(2, 3 * as_normalized) and not resting:
        return "degrees", text
    # A joint that was calibrated over 2275 steps has levels like those of degrees.
    if as_normalized >= max(2, 3 * as_degrees):
        return "normalized", text
    return None, text


def _resting_at_100(body: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[int]:
    """Joints with an end at ±100 in two samples or more; shoulder_lift's own limit is 100 degrees."""
    resting = []
    for joint, name in enumerate(JOINTS[:5]):
        at_end = (np.abs(high[joint] - 100) < 0.005, np.abs(low[joint] + 100) < 0.005)
        count = at_100(body[:, joint]).sum()
        if any(at_end) and count >= 2 and name != "shoulder_lift":
            resting.append(joint)
    return resting


def _always_at_end(values: np.ndarray, length: np.ndarray) -> bool:
    """Whether joints [F, J] that move near ±100 in an episode rest there: in degrees they may end at 97."""
    start = np.cumsum(length) - length
    low, high = np.minimum.reduceat(values, start), np.maximum.reduceat(values, start)
    near = np.maximum(-low, high) > _NEAR_END
    moving = near & (high - low > _MOVES)
    at_end = np.add.reduceat(at_100(values), start, dtype=int) >= 2
    return bool(at_end[moving if moving.any() else near].mean() >= 0.9)


def at_100(values: np.ndarray) -> np.ndarray:
    """Where values are exactly ±100, to which LeRobot clamps normalised ones."""
    return np.abs(np.abs(values) - 100) < 0.005
