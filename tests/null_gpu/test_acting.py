"""A policy that acts uses nothing that failed on its kind of GPU, whoever loads it, and checks nothing."""

import pytest

pytestmark = [pytest.mark.null_gpu, pytest.mark.slow]

LOADED = ("as_evaluated", "as_rolled_out")
ALL, LEFT = "varlen,flash,efficient,math", "varlen,flash,math"
FIRST = "the first chunk compiles the network, a minute or two where "
UNCHECKED = (
    "nothing has checked yet what NVIDIA H200 with this driver and PyTorch computes: `depi doctor --gpu` "
    "does so in about two minutes"
)


@pytest.fixture(params=LOADED)
def acting(request, on_null_gpu):
    """What was said and done with what is known of the GPU."""

    def find(known):
        together = ("compiler",) if known == "compiler" else ("right", "wrong", "nothing")
        found = on_null_gpu("acting", *together)
        assert found[known][request.param]["prepared"]
        return found[known][request.param]

    return find


def test_on_a_gpu_that_is_right_chunks_are_compiled_and_replayed(acting):
    found = acting("right")
    assert (found["compiled"], found["attention_backends"]) == (True, ALL)
    assert (found["replays"], found["graphs"], found["waits"]) == (1, 0, 0)
    (message,) = found["messages"]
    assert message.startswith(FIRST)


def test_what_failed_is_left_out_by_name(acting):
    found = acting("wrong")
    assert (found["compiled"], found["attention_backends"]) == (False, LEFT)
    assert found["replays"] == 0
    assert found["launches"] > 500
    assert found["messages"] == [
        f"{name} fails on NVIDIA H200 (off by 1): switched off, as by --policy.{flag}; `depi doctor --gpu` "
        "tells more"
        for name, flag in {
            "attention efficient": f"attention_backends={LEFT}",
            "CUDA graph": "cuda_graphs=false",
            "compiled chunk": "compile_chunks=false",
        }.items()
    ]


def test_nothing_is_checked_for_a_policy_that_acts(acting):
    """A line says so once a process, of which there is one for both."""
    found = acting("nothing")
    assert found["compiled"]
    assert found["replays"] == 1
    *before, message = found["messages"]
    assert before in ([UNCHECKED], [])
    assert message.startswith(FIRST)


def test_a_compiler_that_fails_is_done_without(acting):
    found = acting("compiler")
    assert not found["compiled"]
    assert found["replays"] == 1
    assert found["messages"][-1].startswith("chunks cannot be compiled here (")
    assert "ptxas" in found["messages"][-1].lower()
    assert found["messages"][-1].endswith("computed without, as by --policy.compile_chunks=false")
