"""A chunk of the published size is one CUDA graph, which later ones replay."""

import pytest

pytestmark = [pytest.mark.null_gpu, pytest.mark.slow]

KINDS = ("plain", "compiled", "given", "rtc")


@pytest.fixture(scope="module", params=KINDS)
def chunks(request, on_null_gpu):
    """What each of four chunks took."""
    return on_null_gpu("chunk", *KINDS)[request.param]


def test_a_chunk_is_captured_once_and_replayed(chunks):
    assert all(chunk["shape"] == [1, 50, 6] for chunk in chunks)
    assert sum(chunk["graphs"] for chunk in chunks) <= 2  # without and with a chunk before
    assert [chunk["graphs"] for chunk in chunks[-2:]] == [0, 0]
    last = chunks[-1]
    assert last["replays"] == 1
    assert 2000 < last["graph_nodes"] < 8000
    assert last["launches"] < 40


def test_compiled_it_has_less_than_half_as_many_kernels(on_null_gpu):
    found = on_null_gpu("chunk", *KINDS)
    compiled, plain = (found[kind][-1]["graph_nodes"] for kind in ("compiled", "plain"))
    assert compiled <= 3000
    assert compiled < plain / 2


def test_capturing_copies_nothing_from_the_host(chunks):
    assert sum(chunk["graphs"] for chunk in chunks) >= 1
    assert all(chunk["forbidden"] == 0 for chunk in chunks)


def test_a_replayed_chunk_never_waits(chunks):
    """Its caller does, for the actions."""
    assert chunks[-1]["waits"] == 0
