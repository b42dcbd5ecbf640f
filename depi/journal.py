"""A file to which lines are appended, so that a killed process loses nothing that it has written.

A process that is killed while it writes leaves an incomplete line: `LineFile` removes it when it opens the
file, and `read_lines` skips it.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from depi.files import naming

_SYNC_SECONDS = 1.0
_BLOCK = 65536


class LineFile:
    """The file, open and locked: other processes cannot open it until `close`.

    Args:
        path: created, with its folder, if needed.
        wait: for another process to close it, instead of raising BlockingIOError.

    Raises:
        BlockingIOError: another process has it open.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.path = path
        self._synced = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        while (file := _locked(path, wait)) is None:
            pass
        self._file = file
        self._drop_half_line()

    def __enter__(self) -> "LineFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lines(self) -> Iterator[bytes]:
        """Every line, without the newline."""
        self._file.seek(0)
        for line in self._file:
            yield line.removesuffix(b"\n")

    def add(self, line: str) -> None:
        """Write a line, which a kill cannot lose; a power failure may lose those of the last second."""
        with naming(self.path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def clear(self) -> None:
        """Remove every line."""
        self._file.truncate(0)

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, so that others can open it."""
        with contextlib.suppress(OSError):  # `add` has raised the same error before
            self._file.close()

    def _drop_half_line(self) -> None:
        end = size = self._file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            self._file.seek(start)
            cut = self._file.read(end - start).rfind(b"\n") + 1
            if cut:
                end = start + cut
                break
            end = start
        if end < size:
            self._file.truncate(end)


def append_whole(path: Path, lines: bytes) -> None:
    """Add lines to a file, which is created if needed; where there is no room for all of them, none is added.

    Raises:
        OSError: it cannot be written.
    """
    with naming(path), path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def read_lines(path: Path) -> Iterator[bytes]:
    """Every complete line of a file, without the newline; none where it does not exist. Others may append."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line[:-1]
    except FileNotFoundError:
        return


def _locked(path: Path, wait: bool) -> Any:
    """Open and lock the file; None where the process that had it locked has just removed it."""
    file = path.open("a+b")
    locked = False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        pass
    finally:
        if not locked:
            file.close()
    return file if locked else None
