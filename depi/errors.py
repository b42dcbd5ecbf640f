"""The ways in which things go wrong for a user: the command was wrong, the disk is full, the data are bad."""

import errno
import os
import re
from pathlib import Path


class UserError(Exception):
    """The user can mend it: the message is one sentence that names the thing and the remedy.

    Commands print the message without a traceback and exit with status 2.
    """


class MachineError(UserError):
    """This machine cannot store more, such as on a full disk; no Hub and no dataset is to blame.

    Jobs over many items end with it: the next items would fail alike.
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


def error_number(error: Exception) -> int | None:
    """The number that the operating system gave an error (see `errno`), from its text if need be."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = _NUMBER.search(str(error))
    return None if match is None else int(match[1])


def machine_error(
    outcome: object, folder: Path | str | None = None, instead: str = "choose another folder"
) -> MachineError | None:
    """The error to raise where a full disk, or rights on it, made something fail; None for all else.

    Args:
        outcome: an exception, or whatever else came out of work on an item.
        folder: where was written; needed for errors that name no file.
        instead: the remedy for those who can make no room there.
    """
    if isinstance(outcome, MachineError):
        return outcome
    if isinstance(outcome, RuntimeError) and outcome.__cause__ is not None:
        return machine_error(outcome.__cause__, folder, instead)
    # The text of other errors may be that of a server.
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
