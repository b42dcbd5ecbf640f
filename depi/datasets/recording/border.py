"""The border for strangers' files: whatever reading one of them raises is a verdict about that file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from depi.datasets.recording.checks import short
from depi.errors import NO_ROOM, DatasetError, UserError, machine_error

logger = logging.getLogger(__name__)


@contextmanager
def reading(name: str | None = None) -> Iterator[None]:
    """Let out of the block only what says whose fault it is; it may also decorate a function.

    A library that reads files (Arrow, FFmpeg, Pillow, torchcodec) promises no kinds of errors for a file that
    was made to do harm, and code of DePi that trusts what such a file claims can fail in any way. Whatever it
    is, only this file, episode or frame is lost by it. Where the block is of a generator, it must be inside,
    not around it.

    Args:
        name: of the file or dataset, for the message.

    Raises:
        DatasetError: one of the block's as it is; any other error, MemoryError included, as
            "NAME is unreadable: KIND: TEXT".
        UserError: one of the block's as it is; MachineError also where the disk is full.
    """
    try:
        yield
    except (DatasetError, UserError):
        raise
    except Exception as error:
        # Of FFmpeg's errors the number may come from the file: only the operating system's own are believed.
        if type(error).__module__ == "builtins" and getattr(error, "errno", None) in NO_ROOM:
            raise machine_error(error) or error from None
        logger.debug("reading %s failed", name or "a dataset", exc_info=error)
        what = "unreadable" if name is None else f"{name} is unreadable"
        raise DatasetError(f"{what}: {type(error).__name__}: {short(str(error)[:200])}") from error
