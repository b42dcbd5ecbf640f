"""The first training on a kind of GPU checks it, and leaves out what fails, whatever the fault is."""

import json
import subprocess
import sys

import pytest

from depi.policies.gpus import GROUPS

pytestmark = [pytest.mark.null_gpu, pytest.mark.slow, pytest.mark.timeout(1800)]

FAULTS = ("none", "nan", "raises", "memory", "dies", "compile", "float8", "old", "nothing")
ALL = "varlen,flash,efficient,math"
WITHOUT_LISTS = "flash,efficient,math"
FIRST = "first training on NVIDIA H200"


@pytest.fixture(scope="module")
def contact(on_null_gpu):
    """What a run, and the one after it, did on a GPU with a fault."""
    return lambda fault: on_null_gpu("first_contact", *FAULTS)[fault]


def failed(found):
    return {name for name, check in found["checks"].items() if check["status"] == "fail"}


def test_a_gpu_that_is_right_is_checked_once(contact):
    found = contact("none")
    for run in ("first", "second"):
        assert found[run]["attention_backends"] == ALL
        assert found[run]["compile"]
    assert len(found["first"]["messages"]) == 1
    assert found["first"]["messages"][0].startswith(FIRST)
    assert found["second"]["messages"] == []
    assert set(found["checks"]) == {*GROUPS["kernels"][0], "compile"}
    assert {check["status"] for check in found["checks"].values()} == {"ok"}


@pytest.mark.parametrize(
    ("fault", "name", "says", "left"),
    [
        ("nan", "attention varlen", "the result of the prefix in a list is not finite", WITHOUT_LISTS),
        ("raises", "attention efficient", "CUDA error: invalid argument", "varlen,flash,math"),
        ("dies", "attention varlen", "the process ended with status -11", WITHOUT_LISTS),
    ],
)
def test_a_wrong_kernel_is_left_out_by_name(contact, fault, name, says, left):
    found = contact(fault)
    assert failed(found) == {name}
    for run in ("first", "second"):
        assert found[run]["attention_backends"] == left
        assert found[run]["messages"][-1] == (
            f"{name} fails on NVIDIA H200 ({says}): switched off, as by --policy.attention_backends={left}; "
            "`depi doctor --gpu` tells more"
        )
    assert not any(message.startswith(FIRST) for message in found["second"]["messages"])


def test_a_compiler_that_fails_is_left_out(contact):
    found = contact("compile")
    assert failed(found) == {"compile"}
    assert "ptxas" in found["checks"]["compile"]["detail"].lower()
    for run in ("first", "second"):
        assert not found[run]["compile"]
        assert "switched off, as by --compile=false" in found[run]["messages"][-1]


def test_float8_that_fails_is_left_out_by_name(contact):
    found = contact("float8")
    assert failed(found) == {"float8"}
    for run in ("first", "second"):
        assert not found[run]["float8"]
        assert found[run]["attention_backends"] == ALL
        assert found[run]["messages"][-1] == (
            "float8 fails on NVIDIA H200 (CUDA error: CUBLAS_STATUS_NOT_SUPPORTED): switched off, as by "
            "--policy.float8=false; `depi doctor --gpu` tells more"
        )


def test_an_older_gpu_has_no_float8_and_fails_nothing(contact):
    found = contact("old")
    assert failed(found) == set()
    assert found["checks"]["float8"]["status"] == "skipped"
    assert found["checks"]["float8"]["detail"].startswith("not available")
    assert [message.startswith(FIRST) for message in found["first"]["messages"]] == [True]
    assert found["second"]["messages"] == []


def test_what_memory_did_not_suffice_for_is_tried_again(contact):
    found = contact("memory")
    assert failed(found) == set()
    assert found["checks"]["attention varlen"]["status"] == "skipped"
    for run in ("first", "second"):
        assert found[run]["attention_backends"] == ALL
        assert [message.startswith(FIRST) for message in found[run]["messages"]] == [True]


def test_a_gpu_that_computes_nothing_is_found_out(contact):
    found = contact("nothing")
    assert failed(found) == set(found["checks"])
    assert found["first"]["attention_backends"] == "math"
    assert not found["first"]["compile"]


def test_the_doctor_makes_all_checks(null_gpu, tmp_path):
    """At the published size."""
    environment = null_gpu | {"DEPI_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "depi.cli", "doctor", "--gpu", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-4000:]
    (told,) = json.loads(done.stdout)
    assert told["gpu"] == "NVIDIA H200"
    checks = {check["name"]: check for check in told["checks"]}
    assert list(checks) == [name for names, _ in GROUPS.values() for name in names]
    assert checks["memory"]["status"] == "ok"
    assert checks["memory"]["figures"]["GB allocated at the peak"] > 60
    assert checks["training steps"]["detail"] == "the loss of random weights is 0"
    assert checks["compile"]["switched_off_by"] == "--compile=false"
    assert checks["float8"]["switched_off_by"] == "--policy.float8=false"
    assert checks["compiled chunk"]["status"] == "fail"
    (kept,) = (tmp_path / "gpus").iterdir()
    assert json.loads(kept.read_text()) == told
