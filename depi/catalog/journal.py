"""What an interrupted call has found out, so that the next one goes on where it stopped.

One line per inspected candidate, appended when it is known, beside the catalogue that will hold them all.
Whoever has the journal open is the only one to write into that folder.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from depi.catalog.store import FAILED, Row
from depi.errors import UserError

logger = logging.getLogger(__name__)

JOURNAL_FILE = ".journal.jsonl"
_SYNC_SECONDS = 1.0
_MOMENTS = ("created_at", "last_modified", "checked_at")


class Journal:
    """Rows judged by the same rules and thresholds (`judged_by`) in a call that did not end.

    The file is there from `open` to `finish`. A process that is killed while it writes leaves half a line,
    which the next one drops.
    """

    def __init__(self, folder: Path, judged_by: Mapping[str, Any]):
        self._path = folder / JOURNAL_FILE
        self._header = json.dumps({"judged_by": judged_by}, sort_keys=True)
        self._file: Any = None
        self._new_folder = not folder.exists()
        self._synced = 0.0
        self.rows: list[Row] = []
        if self._path.exists():
            self.open()

    def open(self) -> None:
        """Keep other calls out of the folder, which is made if it is not there.

        Raises:
            UserError: another call is at work there, or the folder cannot be written.
        """
        if self._file is not None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while not self._lock():
                pass
        except BlockingIOError:
            raise UserError(
                f"another depi collect-ids writes into {self._path.parent}: wait for it, or choose another "
                "--output_dir"
            ) from None
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from None
        self._read()

    def add(self, row: Row) -> None:
        """Keep a row; one that could not be inspected is not kept, and so tried again."""
        if row.verdict == FAILED:
            return
        self.open()
        self.rows.append(row)
        self._write(json.dumps(_plain(row)))

    def finish(self) -> None:
        """Remove the file: the catalogue has everything now."""
        self.rows.clear()
        self._new_folder = False
        self.close()

    def close(self) -> None:
        """Leave the file to the next call; of a call that found out nothing, nothing is left."""
        if self._file is None:
            return
        if not self.rows:
            self._path.unlink(missing_ok=True)
            if self._new_folder:
                with contextlib.suppress(OSError):
                    self._path.parent.rmdir()
        self._file.close()
        self._file = None

    def _lock(self) -> bool:
        """Open and lock the file; False where the one who had it locked has just removed it."""
        file = self._path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                self._file = file
        except FileNotFoundError:
            pass
        finally:
            if self._file is None:
                file.close()
        return self._file is not None

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            if number == 0 and line.decode(errors="replace").strip() != self._header:
                break
            if number > 0 and (row := _row(line)) is not None:
                self.rows.append(row)
            whole += len(line)
        self._file.truncate(whole)
        if whole == 0:
            self._write(self._header)

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()


def _plain(row: Row) -> dict[str, Any]:
    values = dataclasses.asdict(row)
    for name, value in values.items():
        if isinstance(value, datetime):
            values[name] = value.isoformat()
        elif isinstance(value, bytes):
            values[name] = value.hex()
    return values


def _row(line: bytes) -> Row | None:
    """The row of a line, or None where it is of another program version or damaged."""
    try:
        values = json.loads(line)
        for name in _MOMENTS:
            if values[name] is not None:
                values[name] = datetime.fromisoformat(values[name])
        for name in _BYTES:
            if values[name] is not None:
                values[name] = bytes.fromhex(values[name])
        return Row(**values)
    except (ValueError, KeyError, TypeError):
        logger.warning("a line of %s is damaged: that candidate is inspected again", JOURNAL_FILE)
        return None


_BYTES = tuple(item.name for item in dataclasses.fields(Row) if item.type in (bytes, bytes | None))
