"""What steps sharded by FSDP2 send, in what, and that they never wait."""

import pytest

pytestmark = [pytest.mark.null_gpu, pytest.mark.slow]

# Of eight ranks every way is looked at.
WAYS = ("full", "hybrid", "recompute", "accumulation", "rounded", "compiled", "float8", "float8_compiled")
GATHERED, SCATTERED = "allgather_base bfloat16", "reduce_scatter_base float32"


@pytest.fixture(scope="module", params=WAYS)
def step(request, on_null_gpu):
    """The name of each way, and the findings."""
    return request.param, on_null_gpu("sharded", "8", *WAYS)[request.param]


@pytest.fixture(scope="module", params=[2, 4])
def few(request, on_null_gpu):
    """The number of fewer ranks, and the findings of both ways to shard over them."""
    return request.param, on_null_gpu("sharded", str(request.param), "full", "hybrid")


def test_weights_are_gathered_rounded_and_gradients_added_up_precisely(step):
    """Once each; weights twice where layers are computed again. What stands outside of layers is small."""
    way, found = step
    parameters, sent = found["parameters"], found["bytes"]
    passes = 2 if way in ("recompute", "accumulation") else 1
    assert sent[GATHERED] == pytest.approx(2 * passes * parameters, rel=0.01)
    scattered = sent["reduce_scatter_base bfloat16"] * 2 if way == "rounded" else sent[SCATTERED]
    assert scattered == pytest.approx(4 * parameters, rel=0.01)
    # Between machines the parts of the gradients go.
    between = 4 * parameters / 4 if way == "hybrid" else 0
    assert sent["allreduce float32"] == pytest.approx(between, rel=0.01, abs=100)
    assert sent["allgather_base float32"] < 1e8
    assert len(sent) == 4
    if way == "full":
        assert sum(sent.values()) < 20e9


def test_small_layers_are_sent_together(step):
    way, found = step
    assert sum(found["calls"].values()) < (300 if way == "recompute" else 60)


def test_sharded_steps_never_wait(step):
    _, found = step
    assert found["waits"] == []
    assert found["counted"]["waits"] == 0


def test_memory_is_what_depi_estimate_says(step):
    """Of a rank, which holds an eighth of weights, gradients and moments; by machines, a quarter."""
    _, found = step
    assert found["peak_bytes"] == pytest.approx(found["estimated_bytes"], rel=0.06)


@pytest.mark.parametrize("way", ["compiled", "float8_compiled"])
def test_sharding_compiles_nothing_more(on_null_gpu, way):
    alone = on_null_gpu("training_step", way)[way]["graphs"]
    assert 0 < on_null_gpu("sharded", "8", *WAYS)[way]["graphs"] <= alone


def test_sharded_layers_multiply_in_float8(on_null_gpu):
    """What is gathered in bfloat16: seven products a layer, forward and for two gradients."""
    found = on_null_gpu("sharded", "8", *WAYS)
    assert found["full"]["float8"] == 0
    assert 17 * 7 * 3 <= found["float8"]["float8"] <= 18 * 7 * 3
    assert found["float8"]["bytes"] == found["full"]["bytes"]


def test_few_ranks_send_as_much(few):
    """Two ranks on two machines have the whole network each, and add up whole gradients."""
    ranks, ways = few
    for way, found in ways.items():
        parameters, sent = found["parameters"], found["bytes"]
        parts = ranks // 2 if way == "hybrid" else ranks
        assert found["waits"] == []
        assert found["peak_bytes"] == pytest.approx(found["estimated_bytes"], rel=0.06), way
        if parts > 1:
            assert sent[GATHERED] == pytest.approx(2 * parameters, rel=0.01)
            assert sent[SCATTERED] == pytest.approx(4 * parameters, rel=0.01)
        between = 4 * parameters / parts if way == "hybrid" else 0
        assert sent["allreduce float32"] == pytest.approx(between, rel=0.01, abs=100)
