"""The units in which people recorded an SO-100 or SO-101 arm, told apart and made one.

Canonical are `degrees`: joints in the order of JOINTS, degrees with zero in the middle of each joint's range,
the gripper 0 (closed) to 100 (open). Every convention is an affine map of it, joint by joint.

Which convention a recording is in, `convention.detect_convention` finds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from depi.errors import UserError

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CONVENTIONS = ("degrees_v1", "degrees", "normalized", "radians", "native", "unknown")
GIVEN = CONVENTIONS[:-1]
"""Those that a user may give for a dataset which does not show its own; of SO-100 joints also two of them, as
`degrees/normalized`, for action and state."""

HALF_RANGE = (110.8, 103.5, 97.4, 101.2, 170.2)
"""Nominal half range of the body joints in degrees: what ±100 means. Single arms differ by about 2%."""

REACH = (126.0, 118.0, 112.0, 117.0, 190.0)
"""No arm gets a body joint farther from the middle, in degrees: the wider one of HALF_RANGE and the SO-101
model's limits (1.92, 1.745, 1.69, 1.658, 2.84 rad), and 15 degrees for the calibration (wrist_roll, which has
no end, 20)."""

GRIPPER_RADIANS = (-0.174533, 1.745329)
"""Closed and open gripper of the SO-101 model, in radians."""

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

    convention: one of CONVENTIONS; `A/S` where the action is in A and the state in S
    half_range: for `normalized`, what ±100 means in degrees on each body joint, where the encoder tells; None
        where the nominal HALF_RANGE has to do.
    unlike: the episodes that are not in this convention, by position, each with what it is in
    """

    convention: str
    evidence: str
    half_range: tuple[float | None, ...] = (None,) * 5
    unlike: tuple[tuple[int, str], ...] = ()

    @property
    def action(self) -> "Detection":
        """What the action is in."""
        return replace(self, convention=self.convention.partition("/")[0])

    @property
    def state(self) -> "Detection":
        """What the state is in."""
        return replace(self, convention=self.convention.rpartition("/")[2])


def may_be_given(convention: object) -> bool:
    """Whether a user may give this convention for a dataset; see GIVEN."""
    parts = convention.split("/") if isinstance(convention, str) else []
    return set(parts) <= set(GIVEN) and (len(parts) == 1 or (len(parts) == 2 and "native" not in parts))


def to_degrees(values: np.ndarray, convention: str | Detection) -> np.ndarray:
    """Recorded joints to canonical degrees.

    Args:
        values: float [..., 6] (any width for `native`).
        convention: one of CONVENTIONS but `unknown`; or a Detection, of action or of state where they differ,
            whose half ranges are then used.

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
        detection: the recording's convention, of action or of state where they differ.
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
