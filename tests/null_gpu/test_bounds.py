"""The account of work and traffic that stands beside the times of training steps."""

import pytest

pytestmark = pytest.mark.null_gpu

X, WEIGHT, OUT = 2 * 64 * 1024, 2 * 4096 * 1024, 2 * 64 * 4096


def test_operations_and_bytes_of_single_calls(on_null_gpu):
    found = on_null_gpu("bound")
    assert found["product"] == [2 * 64 * 1024 * 4096, X + WEIGHT + OUT, True]
    assert found["product in float8"] == [2 * 64 * 1024 * 4096, (X + WEIGHT) // 2 + 8 + OUT, True]
    assert found["sum"] == [0, X + X + X, False]
    assert found["broadcast"] == [0, X + 2 * 1024 + X, False]
    assert found["in place"] == [0, 2 * X, False]
    assert found["view"] == [0, 0, True]
    assert found["cast"] == [0, X + 2 * X, False]
    assert found["rows"] == [0, 2 * X, False], "not the whole table"
    read, written = 4 * 4 * 1000, 3 * 4 * 1000
    assert found["adam"][1] == pytest.approx(read + written, rel=0.01), "the counter of steps is small"
    assert found["adam"][2]
