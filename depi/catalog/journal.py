"""What an interrupted call has found out, so that the next one goes on where it stopped.

One line per inspected candidate, appended when it is known, beside the catalogue that will hold them all.
Whoever has the journal open is the only one to write into that folder.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from depi.catalog.catalogue import FAILED, Row
from depi.errors import UserError, machine_error
from depi.journal import LineFile

logger = logging.getLogger(__name__)

JOURNAL_FILE = ".journal.jsonl"
_MOMENTS = ("created_at", "last_modified", "checked_at")


class Journal:
    """Rows judged by the same rules and thresholds (`judged_by`) in a call that did not end.

    The file is there from `open` to `finish`. A process that is killed while it writes leaves half a line,
    which the next one drops.
    """

    def __init__(self, folder: Path, judged_by: Mapping[str, Any]):
        self._path = folder / JOURNAL_FILE
        self._header = json.dumps({"judged_by": judged_by}, sort_keys=True)
        self._file: LineFile | None = None
        self._new_folder = not folder.exists()
        self.rows: list[Row] = []
        if self._path.exists():
            self.open()

    def open(self) -> LineFile:
        """Keep other calls out of the folder, which is made if it is not there.

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
                "--output_dir"
            ) from None
        except OSError as error:
            fault = machine_error(error, self._path.parent, "choose another --output_dir")
            raise fault or UserError(f"cannot write {self._path}: {error.strerror}") from None
        self._read(self._file)
        return self._file

    def add(self, row: Row) -> None:
        """Keep a row; one that could not be inspected is not kept, and so tried again."""
        if row.verdict == FAILED:
            return
        file = self.open()
        self.rows.append(row)
        file.add(json.dumps(_plain(row)))

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
        self.rows += [row for line in lines if (row := _row(line)) is not None]


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
