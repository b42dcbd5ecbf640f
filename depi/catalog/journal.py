"""The results of a call of `depi collect-ids`, so that the next call continues after an interruption.

One line per inspected candidate, appended when it is inspected, in the folder of the catalogue. The process
that has the journal open is the only one that writes into that folder.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from depi.catalog.catalogue import FAILED, Row, column_types
from depi.errors import UserError, machine_error
from depi.journal import LineFile

JOURNAL_FILE = ".journal.jsonl"
_PARSERS: dict[type, Callable[[str], Any]] = {datetime: datetime.fromisoformat, bytes: bytes.fromhex}


class Journal:
    """Rows judged by the same rules and thresholds (`judged_by`) in a call that was interrupted.

    The file is there from `open` to `finish`. A process that is killed while it writes leaves half a line,
    which the next one drops.
    """

    def __init__(self, folder: Path, judged_by: Mapping[str, Any]):
        self._path = folder / JOURNAL_FILE
        # Rows of another version of DePi may have other columns.
        self._header = json.dumps({"judged_by": judged_by, "columns": list(column_types())}, sort_keys=True)
        self._file: LineFile | None = None
        self._new_folder = not folder.exists()
        self.rows: list[Row] = []
        if self._path.exists():
            self.open()

    def open(self) -> LineFile:
        """Lock the folder against other calls; it is created if needed.

        Raises:
            UserError: another call is at work there, or the folder cannot be written.
        """
        if self._file is not None:
            return self._file
        try:
            self._file = LineFile(self._path)
        except BlockingIOError:
            raise UserError(
                f"another depi collect-ids writes into {self._path.parent}: wait for it, or choose another "
                "--data_ids"
            ) from None
        except OSError as error:
            fault = machine_error(error, self._path.parent, "choose another --data_ids")
            raise fault or UserError(f"cannot write {self._path}: {error.strerror}") from None
        self._read(self._file)
        return self._file

    def add(self, row: Row) -> None:
        """Write a row; one that could not be inspected is not written, and so tried again."""
        if row.verdict == FAILED:
            return
        file = self.open()
        self.rows.append(row)
        file.add(json.dumps(vars(row), default=_plain))

    def finish(self) -> None:
        """Remove the file: the catalogue has everything now."""
        self.rows.clear()
        self._new_folder = False
        self.close()

    def close(self) -> None:
        """Close the file, and remove it where it holds no row."""
        if self._file is None:
            return
        if not self.rows:
            self._file.remove()
            if self._new_folder:
                with contextlib.suppress(OSError):
                    self._path.parent.rmdir()
        self._file.close()
        self._file = None

    def _read(self, file: LineFile) -> None:
        lines = file.lines()
        if next(lines, b"").decode(errors="replace").strip() != self._header:
            file.clear()
            file.add(self._header)
            return
        self.rows += map(_row, lines)


def _plain(value: datetime | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else value.isoformat()


def _row(line: bytes) -> Row:
    values = json.loads(line)
    for name, kind in column_types().items():
        if kind in _PARSERS and values[name] is not None:
            values[name] = _PARSERS[kind](values[name])
    return Row(**values)
