"""What a step sharded by FSDP2 over eight ranks sends, and that it never waits."""

import pytest

pytestmark = [pytest.mark.null_gpu, pytest.mark.slow]


def test_every_weight_is_gathered_twice_and_every_gradient_scattered_once(on_null_gpu):
    """In float32, as `depi.training.sharding` says; what stands outside the layers is gathered once."""
    found = on_null_gpu("sharded")
    whole = 4 * found["parameters"]
    assert set(found["bytes"]) == {"allgather_base float32", "reduce_scatter_base float32"}
    assert found["bytes"]["allgather_base float32"] == pytest.approx(2 * whole, rel=0.01)
    assert found["bytes"]["reduce_scatter_base float32"] == pytest.approx(whole, rel=0.01)


def test_sharded_steps_never_wait(on_null_gpu):
    found = on_null_gpu("sharded")
    assert found["waits"] == []
    assert found["counted"]["waits"] == 0


def test_a_rank_holds_an_eighth(on_null_gpu):
    """Of weights, gradients and moments, 16 bytes a parameter; beside that activations."""
    assert on_null_gpu("sharded")["peak_bytes"] < 40e9
