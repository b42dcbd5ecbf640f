"""The null GPU itself: what the other tests here rely on."""

import pytest

pytestmark = pytest.mark.null_gpu


def test_pytorch_believes_in_it(on_null_gpu):
    found = on_null_gpu("smoke")
    assert found["name"] == "NVIDIA H200"
    assert found["capability"] == [9, 0]
    assert found["device"] == "cuda:0"
    assert found["gradient"] == [4096, 1024]
    assert not found["cudnn"]


def test_it_counts_launches_waits_and_memory(on_null_gpu):
    found = on_null_gpu("smoke")
    assert found["layer_bytes"] == 2 * 4096 * (1024 + 1)
    assert found["without_waiting"]["launches"] >= 3  # weights drawn, zeros, a product
    assert found["without_waiting"]["waits"] == 0
    assert found["in_all"]["waits"] == 1
    assert found["refused"]


def test_what_the_host_copies_there_stays(on_null_gpu):
    assert on_null_gpu("smoke")["copied"] == [0, 1, 2, 3, 4]
