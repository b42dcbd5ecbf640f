"""Exact statistics of joint data, in the shape that LeRobot's normaliser wants."""

from collections.abc import Mapping
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STD_FLOOR = 1e-3
"""A joint that hardly moves gets at least this share of the liveliest joint's standard deviation, so that
dividing by it does not turn sensor noise into large numbers. A feature that never moves at all gets 1."""


def compute_stats(values: np.ndarray, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Statistics over all frames, computed in float64.

    Args:
        values: float [F, D], finite, F at least 1.
        rows: bool [F], the frames that count, at least 1; None for all.

    Returns:
        mean, std (population, with the floor of STD_FLOOR), min, max, q01, q10, q50, q90, q99 (linear
        interpolation between neighbours), each float32 [D], and count, int64 [1].
    """
    columns = [_column_stats(column if rows is None else column[rows]) for column in values.T]
    stats = {key: np.array([column[key] for column in columns]) for key in columns[0]}
    stats["std"] = floor_std(stats["std"])
    return {
        **{key: value.astype(np.float32) for key, value in stats.items()},
        "count": np.array([len(values) if rows is None else np.count_nonzero(rows)], np.int64),
    }


def stats_to_json(stats: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Statistics per column as JSON-able values, without loss."""
    return {key: {name: value.tolist() for name, value in each.items()} for key, each in stats.items()}


def stats_from_json(stats: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of `stats_to_json`."""
    return {
        key: {
            name: np.array(value, np.int64 if name == "count" else np.float32) for name, value in each.items()
        }
        for key, each in stats.items()
    }


def floor_std(std: np.ndarray) -> np.ndarray:
    """Standard deviations [D] that are safe to divide by; see STD_FLOOR."""
    widest = std.max()
    return np.maximum(std, STD_FLOOR * widest) if widest > 1e-8 else np.ones_like(std)


def _column_stats(column: np.ndarray) -> dict[str, float]:
    # One column at a time: float64 copies and the partial sort of quantile stay small.
    values = column.astype(np.float64)
    moments = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    quantiles = np.quantile(values, list(QUANTILES.values()), overwrite_input=True)
    return {**moments, **dict(zip(QUANTILES, quantiles, strict=True))}
