"""What may leave the border for strangers' files, whatever is raised inside."""

import errno
import subprocess
import sys
from types import SimpleNamespace

import av
import pyarrow as pa
import pytest
from PIL import Image

from depi.datasets.judging.examine import FetchedTables
from depi.datasets.recording.border import reading
from depi.errors import DatasetError, MachineError, UserError


def raised(error):
    """What comes out of the border where `error` was raised in it."""
    with pytest.raises(BaseException) as caught, reading("meta/info.json"):  # noqa: PT011
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RecursionError("maximum recursion depth exceeded"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        KeyError("a\nb" * 1000),
        AttributeError("'NoneType' object has no attribute 'codec'"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        pa.ArrowInvalid("Parquet magic bytes not found"),
        Image.DecompressionBombError("Image size exceeds limit"),
        av.error.InvalidDataError(1094995529, "Invalid data found"),
        # A file can make a library say these; no disk is full.
        av.error.FFmpegError(errno.ENOSPC, "No space left on device"),
        RuntimeError("os error 28: No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_error_is_one_sentence_about_the_file(error):
    found = raised(error)
    assert type(found) is DatasetError
    assert str(found).startswith(f"meta/info.json is unreadable: {type(error).__name__}: ")
    assert len(str(found)) < 200
    assert str(found).isprintable()
    assert found.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        DatasetError("no"),
        UserError("no"),
        MachineError("no"),
        KeyboardInterrupt(),
        SystemExit(2),
        GeneratorExit(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_says_whose_fault_it_is_passes(error):
    assert raised(error) is error


def test_a_full_disk_is_the_machines():
    found = raised(OSError(errno.ENOSPC, "No space left on device", "/tmp/a/b"))
    assert type(found) is MachineError
    assert "cannot write /tmp/a: the disk is full" in str(found)


def test_it_decorates_functions_and_may_be_nameless():
    @reading()
    def divide(number):
        return 1 / number

    assert divide(2) == 0.5
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"^unreadable: ZeroDivisionError: 'division by zero'$"):
            divide(0)


def test_it_needs_no_torch():
    code = (
        "import sys, depi.datasets.recording.border; print([m for m in ('torch', 'av') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("frames", "size", "seconds", "megabytes"),
    [
        (30_000, 600_000, 30, 1000),
        (3_000_000, 60_000_000, 60, 2100),  # a large dataset gets more,
        (3_000_000, 6_000_000, 30, 1050),  # where its files can hold what it lists,
        (10**9, 10**11, 200, 7000),  # and never without an end
    ],
)
def test_limits_grow_with_what_files_can_hold(frames, size, seconds, megabytes):
    fetched = FetchedTables(SimpleNamespace(num_frames=frames), SimpleNamespace(), (), size)
    assert (fetched.seconds, fetched.megabytes) == pytest.approx((seconds, megabytes))
