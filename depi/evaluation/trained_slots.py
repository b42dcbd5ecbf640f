"""Which camera a policy was trained to see in which of its slots, for programs that name cameras."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from depi.datasets.recording.cameras import camera_order, numbered_slots
from depi.errors import UserError
from depi.files import read_json
from depi.policies import resolve_checkpoint


def rename_map(
    policy: str | Path, revision: str | None, slots: Sequence[str], cameras: Collection[str]
) -> dict[str, str]:
    """LeRobot's `--rename_map` as a checkpoint's training tells it: the key of a camera -> its slot.

    Args:
        policy, revision: the checkpoint, a folder or a repository; training writes a data report beside its
            weights.
        slots: the keys of the policy's cameras.
        cameras: the keys of the cameras that there are.

    Returns:
        It is empty where training does not tell (see `slots_by_camera`) or one of its cameras is missing
        here: a person has to say then.
    """
    if not numbered_slots(slots):
        return {}
    try:
        report = read_json(resolve_checkpoint(policy, revision) / "data_report.json")
    except UserError:
        return {}
    named = slots_by_camera(report, slots)
    return named if named.keys() <= set(cameras) else {}


def slots_by_camera(report: Any, slots: Sequence[str]) -> dict[str, str]:
    """The key of a recorded camera -> its slot, by the data report of a training.

    Returns:
        It is empty where the policy knows its cameras by name, DePi did not write the report, or the
        datasets had other cameras in the same slot.
    """
    if not numbered_slots(slots):
        return {}
    try:
        order = camera_order(report["stream"]["cameras"])
        if order.by_views and report["stream"]["annotations"] is not None:
            return {}  # each dataset's own annotations have placed them
        found = {
            order.by_slot([str(name) for name in entry["cameras"]], len(slots))
            for entry in report["datasets"]
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    if len(found) != 1:
        return {}
    return {camera: slot for camera, slot in zip(found.pop(), slots, strict=True) if camera is not None}
