"""A training step of the published size: where it computes, in what, and that the host never waits for it."""

import pytest

pytestmark = [pytest.mark.null_gpu, pytest.mark.slow]

# Micro-batches of each step.
VARIANTS = {
    "plain": 1,
    "recompute": 1,
    "accumulation": 2,
    "ema": 1,
    "lora": 1,
    "switched_off": 1,
    "float8": 1,
    "float8_lora": 1,
}


@pytest.fixture(scope="module", params=VARIANTS)
def step(request, on_null_gpu):
    """Of each variant: micro-batches, and the findings."""
    return VARIANTS[request.param], on_null_gpu("training_step", *VARIANTS)[request.param]


def test_the_host_never_waits(step):
    _, found = step
    assert found["waits"] == []
    assert found["counted"]["waits"] == 0
    assert found["counted"]["launches"] > 2000


def test_everything_is_on_the_device(step):
    """Only the batch comes from the processor, once."""
    micro_batches, found = step
    assert found["mixed"] == []
    assert found["from_host"] == found["tensors"] * micro_batches


def test_large_products_are_in_bfloat16(step):
    """Or in float8: the language model's, three quarters of all operations where it is trained."""
    _, found = step
    assert found["operations"] > 5e13
    assert found["wide"].keys() <= {"aten::_scaled_mm"}


@pytest.mark.parametrize(
    ("variant", "least", "most"), [("plain", 0, 0), ("float8", 0.75, 0.8), ("float8_lora", 0.8, 0.85)]
)
def test_the_language_model_multiplies_in_float8(on_null_gpu, variant, least, most):
    found = on_null_gpu("training_step", *VARIANTS)[variant]
    assert least <= found["wide"].get("aten::_scaled_mm", 0) / found["operations"] <= most


def test_memory_is_what_depi_estimate_says(step):
    """The peak of what PyTorch allocates, which its own allocator counts."""
    _, found = step
    assert found["peak_bytes"] == pytest.approx(found["estimated_bytes"], rel=0.05)


@pytest.mark.parametrize(
    ("variant", "forward", "backward"),
    [
        ("plain", (27, 17, 18), (27, 17, 18)),
        # Every second layer is computed again.
        ("recompute", (27 + 13, 17 + 8, 18 + 9), (27, 17, 18)),
        ("accumulation", (2 * 27, 2 * 17, 2 * 18), (2 * 27, 2 * 17, 2 * 18)),
        # No gradient goes beyond the language model.
        ("lora", (27, 17, 18), (0, 17, 18)),
        ("switched_off", (0, 0, 27 + 17 + 18), (0, 0, 27 + 17 + 18)),
    ],
)
def test_attention_calls_the_kernels_that_are_named(on_null_gpu, variant, forward, backward):
    """SigLIP flash attention, the prefix the same over its list, the suffix the memory-efficient one."""
    found = on_null_gpu("training_step", *VARIANTS)[variant]
    names = ("scaled_dot_product_flash", "flash", "scaled_dot_product_efficient")
    expected = {
        **{f"{name}_attention": count for name, count in zip(names, forward, strict=True)},
        **{f"{name}_attention_backward": count for name, count in zip(names, backward, strict=True)},
    }
    expected["flash_attention_forward"] = expected.pop("flash_attention")
    assert found["attention"] == {name: count for name, count in expected.items() if count}
