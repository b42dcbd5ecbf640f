import errno
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError

from depi.engine import make_runner
from depi.errors import DatasetError, MachineError, UserError, error_number, machine_error, no_room
from depi.files import atomic_write, write_text


def write_table(path) -> None:
    with atomic_write(path) as temporary:
        pq.write_table(pa.table({"number": range(100_000)}), temporary)


@pytest.mark.parametrize(
    ("write", "workers"), [(write_table, 1), (partial(write_text, text="x" * 10_000), 2)]
)
def test_what_arrow_and_a_pool_of_processes_make_of_a_full_disk(small_disk, write, workers):
    small_disk.fill()
    ((_, outcome),) = make_runner("local", workers=workers)(write, [small_disk.path / "file"])
    fault = machine_error(outcome)
    assert str(fault) == (
        f"cannot write {small_disk.path}: the disk is full (No space left on device); make room there, or "
        "choose another folder"
    )
    assert machine_error(fault) is fault
    assert os.listdir(small_disk.path) == ["filler"]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.EDQUOT, "cannot write /data: the disk quota is used up"),
        (errno.EROFS, "cannot use /data/x: the file system is read-only"),
        (errno.EACCES, "cannot use /data/x: permission is denied"),
    ],
)
def test_other_faults_of_a_machine(number, sentence):
    fault = machine_error(OSError(number, os.strerror(number), "/data/x"), instead="set DEPI_CACHE")
    assert str(fault).startswith(f"{sentence} ({os.strerror(number)}); ")
    assert str(fault).endswith(", or set DEPI_CACHE")


def test_wrapped_faults():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    wrapped = RuntimeError("Data processing error")
    wrapped.__cause__ = full
    for error in (full, wrapped, RuntimeError("I/O error: No space left on device (os error 28)")):
        assert str(machine_error(error, "/cache")).startswith("cannot write /cache: the disk is full")
    assert "the disk is full" in no_room(SafetensorError("I/O error: No space left (os error 28)"))
    assert error_number(OSError("Caught OSError in worker: [Errno 28] No space left")) == errno.ENOSPC


@pytest.mark.parametrize(
    "outcome",
    [
        "a result",
        UserError("No space left on device (os error 28)"),
        DatasetError("[Errno 28] No space left on device"),
        LocalEntryNotFoundError("a Hub says: [Errno 28]"),
        FileNotFoundError(errno.ENOENT, "gone", "/data/x"),
        OSError("Consistency check failed: 28 of 30 bytes"),
        ValueError("os error 28"),
    ],
)
def test_what_is_no_fault_of_this_machine(outcome):
    assert machine_error(outcome) is None


def test_a_fault_crosses_processes():
    with ProcessPoolExecutor(1) as pool:
        fault = pool.submit(MachineError, "cannot write /x: the disk is full").result()
    assert str(fault) == "cannot write /x: the disk is full"
