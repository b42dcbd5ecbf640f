"""The measured columns of a row, which show why a dataset was judged as it was."""

import numpy as np

from depi.catalog.catalogue import Row
from depi.catalog.duplicates import pack
from depi.catalog.facts import Facts
from depi.catalog.landmarks import episode_hashes, landmark_hashes
from depi.catalog.repository_rules import evaluation_by_name, evaluation_by_task, is_bimanual
from depi.datasets.recording.tables import ACTION

SUCCESS_COLUMNS = ("next.success", "success", "is_success", "next.reward", "reward")


def add_evidence(row: Row, facts: Facts) -> None:
    """Fill in the measured columns, as far as the tiers went."""
    row.path = facts.path
    row.downloads, row.likes = facts.downloads, facts.likes
    row.evaluation = evaluation_by_name(facts) is not None
    if hasattr(facts, "info"):
        features = facts.info.features
        row.bimanual = is_bimanual(facts.info)
        row.success_column = next((name for name in SUCCESS_COLUMNS if name in features), None)
        sizes = [features[key].image_size for key in facts.info.camera_keys[: len(row.cameras or ())]]
        row.camera_sizes = [f"{width}x{height}" for height, width in sizes]
    if hasattr(facts, "tasks"):
        row.num_tasks = len(facts.tasks)
        row.evaluation = row.evaluation or evaluation_by_task(facts.tasks) is not None
    if hasattr(facts, "fingerprint"):
        row.episode_hashes = pack(
            episode_hashes(facts.tables.columns[ACTION], facts.tables.meta.episodes.length)
        )
    if hasattr(facts, "detection"):
        _add_ranges(row, getattr(facts, "good", facts.readable).action)
    if hasattr(facts, "motion"):
        _add_motion(row, facts)


def _add_ranges(row: Row, action: np.ndarray) -> None:
    low, high = np.quantile(action, (0.01, 0.99), axis=0)
    row.action_min, row.action_max = _rounded(action.min(axis=0)), _rounded(action.max(axis=0))
    row.action_q01, row.action_q99 = _rounded(low), _rounded(high)


def _add_motion(row: Row, facts: Facts) -> None:
    motion = facts.motion
    row.motion, row.smoothness = round(motion.motion, 2), round(motion.smoothness, 4)
    row.idle, row.follow = round(motion.idle, 4), round(motion.follow, 4)
    row.lag = None if motion.lag is None else round(motion.lag, 4)
    row.offsets = _rounded(np.array(motion.offsets.value))
    row.gripper_range = round(motion.gripper_range, 2)
    row.landmark_hashes = pack(landmark_hashes(facts.good.action, facts.good.length))


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]
