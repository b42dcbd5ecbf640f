"""The kinds of errors: a mistake in the command, a full disk, bad data."""

import errno
import os
import re
import unicodedata
from pathlib import Path


class UserError(Exception):
    """An error that the user can fix: the message is one sentence that names the thing and the remedy.

    Commands print the message without a traceback and exit with status 2.
    """


class MachineError(UserError):
    """This machine cannot store more, as on a full disk; the Hub and the datasets are not the cause.

    It ends jobs over many items: the next items would fail too.
    """


class DatasetError(Exception):
    """A dataset, episode or frame cannot be used: the message is the reason, in one sentence.

    Jobs over many datasets catch it, quarantine the item, and report the reason.
    """


NO_ROOM = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_CLOSED = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
}
# Rust (safetensors, Xet) and torch's worker processes give the number only in the text.
_NUMBER = re.compile(r"\b(?:os error|errno) (\d+)", re.IGNORECASE)

# Characters of a printed message.
_LONGEST = 4000


def error_number(error: Exception) -> int | None:
    """The number that the operating system gave an error (see `errno`), from its text if need be."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = _NUMBER.search(str(error))
    return None if match is None else int(match[1])


def no_room(error: Exception) -> str | None:
    """The reason where an error means that there is no room for a file; None for all other errors."""
    number = error_number(error)
    return "file size limit" if number == errno.EFBIG else NO_ROOM.get(number or 0)


def machine_error(
    outcome: object, folder: Path | str | None = None, instead: str = "choose another folder"
) -> MachineError | None:
    """The error to raise where a full disk or missing permissions caused a failure; None for other failures.

    Args:
        outcome: an exception, or the result of work on an item.
        folder: to which was written; needed for errors that name no file.
        instead: the remedy where no room can be made.
    """
    if isinstance(outcome, MachineError):
        return outcome
    if isinstance(outcome, RuntimeError) and outcome.__cause__ is not None:
        return machine_error(outcome.__cause__, folder, instead)
    # The text of other errors may come from a server.
    if not isinstance(outcome, OSError) and type(outcome) is not RuntimeError:
        return None
    if type(outcome) not in (OSError, RuntimeError) and getattr(outcome, "errno", None) is None:
        return None
    number = error_number(outcome) or 0
    named = getattr(outcome, "filename", None)
    if number in NO_ROOM:
        place = folder or (Path(os.fsdecode(named)).absolute().parent if named else "a file")
        what, remedy = f"cannot write {place}: {NO_ROOM[number]}", "make room there"
    elif number in _CLOSED:
        what, remedy = f"cannot use {named or folder or 'a file'}: {_CLOSED[number]}", "change that"
    else:
        return None
    return MachineError(f"{what} ({os.strerror(number)}); {remedy}, or {instead}")


def one_line(text: object, most: int = 500) -> str:
    """A text on one line, cut where it is longer than `most` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def without_controls(text: str) -> str:
    """A text with blanks for control and formatting characters, such as those of terminal escapes."""
    return "".join(
        letter if letter == "\n" or not unicodedata.category(letter).startswith("C") else " "
        for letter in text
    )


def message(error: Exception) -> str:
    """What to print of an error: a part may be a stranger's, so no terminal escapes and no endless texts."""
    text = str(error)
    return without_controls(text[:_LONGEST]) + ("..." if len(text) > _LONGEST else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def innermost_line(error: BaseException) -> str:
    """The first line of an error; of one that quotes others, as compilers' do, the innermost of these."""
    quoted = re.findall(r"^[\w.]+(?:Error|Exception): .+", str(error), re.MULTILINE)
    return quoted[-1] if quoted else first_line(error)
