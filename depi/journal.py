"""A file of lines that is only added to, so that work which is killed loses nothing that it wrote.

A process that is killed while it writes leaves half a line: whoever opens the file next drops it, and
whoever only reads it passes it over.
"""

import contextlib
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
    """The file, open and locked: nobody else opens it until `close`.

    Args:
        path: made, with its folder, if it is not there.
        wait: until whoever has it open is through, instead of raising BlockingIOError.

    Raises:
        BlockingIOError: another one has it open.
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
        """Every line, without its end."""
        self._file.seek(0)
        for line in self._file:
            yield line.removesuffix(b"\n")

    def add(self, line: str) -> None:
        """Write a line, which no kill takes back; what a power cut may take is that of the last second."""
        with naming(self.path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def clear(self) -> None:
        """Forget every line."""
        self._file.truncate(0)

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others open it."""
        with contextlib.suppress(OSError):  # of a line that could not be written, as `add` has said
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


def read_lines(path: Path) -> Iterator[bytes]:
    """Every whole line of a file, without its end, also while another process adds some; none if no file."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line[:-1]
    except FileNotFoundError:
        return


def _locked(path: Path, wait: bool) -> Any:
    """Open and lock the file; None where the one who had it locked has just removed it."""
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
