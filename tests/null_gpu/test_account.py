"""What a compiled training step of the published size moves, and the least time that it can take."""

import pytest

pytestmark = [pytest.mark.null_gpu, pytest.mark.slow]

ROWS = ("8,3,depi_eager", "8,3,depi")


@pytest.fixture(scope="module")
def eager(on_null_gpu):
    return on_null_gpu("account", *ROWS)[ROWS[0]]


@pytest.fixture(scope="module")
def compiled(on_null_gpu):
    return on_null_gpu("account", *ROWS)[ROWS[1]]


def test_compiled_code_is_counted_by_its_own_kernels(eager, compiled):
    assert eager["made_kernels"] == 0
    assert compiled["made_kernels"] > 1000
    assert compiled["recompiled"] == 0
    assert compiled["tflop"] == pytest.approx(eager["tflop"], rel=1e-6)
    assert compiled["bound_products_ms"] == pytest.approx(eager["bound_products_ms"], rel=0.01)


def test_compiling_saves_traffic_and_launches(eager, compiled):
    """Seen: 378.8 GB and 153.7 ms eager, 284.9 GB and 133.6 ms compiled."""
    assert compiled["traffic_gb"] < 288 < 0.8 * eager["traffic_gb"]
    assert compiled["bound_ms"] < 135 < 0.9 * eager["bound_ms"]
    assert compiled["launches"] < 3800 < 0.6 * eager["launches"]


def test_the_optimizer_moves_what_it_must(compiled):
    """The norm reads the gradients; AdamW reads and writes them, weights and moments."""
    parameters = 12.5 / 4
    assert compiled["optimizer_gb"] == pytest.approx((1 + 2 * 4) * 4 * parameters, rel=0.01)
