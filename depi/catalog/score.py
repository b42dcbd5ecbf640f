"""The usefulness of a dataset for training, as one number that orders the list."""

import math
import re

from depi.catalog.catalogue import Row
from depi.datasets.judging.instructions import is_instruction

WEIGHTS = {
    "length": 0.25,
    "soundness": 0.20,
    "cameras": 0.15,
    "tasks": 0.10,
    "activity": 0.10,
    "smoothness": 0.08,
    "success": 0.06,
    "downloads": 0.06,
}
SMOOTH = 0.9
"""No more is asked of smoothness: above it, tasks differ rather than the quality of recordings."""
# Remarks on a whole dataset that say nothing against its episodes, or that another part counts already.
NEUTRAL = ("approximate_joints", "junk_task_text")
DOUBTS = re.compile(
    r"(?<![a-z])(bad|broken|debug|delete|draft|dummy|fail|failed|failure|failures|old|tmp|temp|test|tests|testing"
    r"|trash|trial|wip|wrong)(?![a-z])"
)


def score(row: Row) -> float:
    """The weighted sum of a dataset's parts, 0..1, rounded to 4 places; see `parts` and WEIGHTS."""
    return round(sum(WEIGHTS[name] * value for name, value in parts(row).items()), 4)


def parts(row: Row) -> dict[str, float]:
    """The parts of the score, each 0..1; an unknown part is 0, or 0.5 for soundness, smoothness and success.

    Nothing that is wrong with a recording raises the sum: only frames of good episodes count, and of these
    only those in which the arm moves; and what a fault may add elsewhere, soundness takes away.

    length: logarithm of the frames of good episodes in which the arm moves, 0 at 100 and 1 at 100,000
    soundness: 1 / (1 + faults for each episode), where a bad episode counts as two faults, a remark as one
    cameras: 3/4 their number, up to 3; 1/4 the resolution of the smallest, up to 640x480
    tasks: share of the task texts that are usable instructions
    activity: share of the time in which the arm moves
    smoothness: of the action, see `depi.catalog.motion.Motion`, 1 from SMOOTH on
    success: 1 with a column of success or reward, 0 with a name such as `test` or `failed`, else 0.5
    downloads: logarithm of the Hub's count, 1 from 1,000 on
    """
    tasks = row.tasks or []
    frames = row.frames if row.good_frames is None else row.good_frames
    moving = (frames or 0) * (1 - (row.idle or 0.0))
    return {
        "length": _clip(math.log10(max(moving, 1) / 100) / 3),
        "soundness": _soundness(row),
        "cameras": 0.75 * min(row.num_cameras or 0, 3) / 3 + 0.25 * _resolution(row.camera_sizes or []),
        "tasks": sum(is_instruction(task) for task in tasks) / len(tasks) if tasks else 0.0,
        "activity": 0.0 if row.idle is None else _clip(1 - row.idle),
        "smoothness": 0.5 if row.smoothness is None else _clip(row.smoothness / SMOOTH),
        "success": _success(row),
        "downloads": _clip(math.log10(1 + max(row.downloads or 0, 0)) / 3),
    }


def _soundness(row: Row) -> float:
    if row.bad_episodes is None or not row.episodes:
        return 0.5
    flags = sum(flag.partition(":")[0] not in NEUTRAL for flag in row.flags)
    return 1 / (1 + (2 * row.bad_episodes + (row.num_remarks or 0) + flags) / row.episodes)


def _success(row: Row) -> float:
    if DOUBTS.search(row.repo_id.rpartition("/")[2].lower()):
        return 0.0
    return 1.0 if row.success_column else 0.5


def _resolution(sizes: list[str]) -> float:
    """Pixels of the smallest camera over those of 640x480, at most 1."""
    pixels = [math.prod(int(side) for side in size.split("x")) for size in sizes]
    return min(1.0, min(pixels) / (640 * 480)) if pixels else 0.0


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
