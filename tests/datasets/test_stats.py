import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from depi.datasets.union.statistics import STD_FLOOR, compute_stats, floor_std

VALUES = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.floats(-200, 200, width=32)
)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_equals_numpy_on_the_pooled_data(values):
    stats = compute_stats(values)
    exact = values.astype(np.float64)
    np.testing.assert_array_equal(stats["mean"], exact.mean(0).astype(np.float32))
    np.testing.assert_array_equal(stats["min"], values.min(0))
    np.testing.assert_array_equal(stats["max"], values.max(0))
    for key, share in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
        np.testing.assert_array_equal(stats[key], np.quantile(exact, share, axis=0).astype(np.float32))
    std = exact.std(0)
    lively = std > STD_FLOOR * std.max()
    if std.max() > 1e-8:
        np.testing.assert_array_equal(stats["std"][lively], std[lively].astype(np.float32))
    assert stats["count"].tolist() == [len(values)]
    assert all(stats[key].dtype == np.float32 for key in stats if key != "count")


def test_only_some_rows_may_count():
    values = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    rows = np.arange(20) % 3 == 0
    part, alone = compute_stats(values, rows), compute_stats(values[rows])
    assert part.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_array_equal(part[name], value)


def test_a_large_offset_costs_no_precision():
    values = np.array([[16_777_216.0], [16_777_218.0]] * 500_000, np.float32)
    assert compute_stats(values)["std"].tolist() == [1.0]


def test_std_is_safe_to_divide_by():
    assert floor_std(np.array([10.0, 0.0, 1e-5])).tolist() == [10.0, 0.01, 0.01]
    assert floor_std(np.zeros(2)).tolist() == [1.0, 1.0]
