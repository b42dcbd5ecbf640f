"""Run one stage of the loop: it stops with the loop, and runs only once at a time."""

import fcntl
import logging
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from depi.errors import UserError

logger = logging.getLogger(__name__)

STOPPED = {signed for number in (signal.SIGINT, signal.SIGTERM) for signed in (-number, 128 + number)}


@contextmanager
def only_one(folder: Path) -> Iterator[int]:
    """Lock a loop's folder, and yield the descriptor of the lock, which the stages inherit.

    Raises:
        UserError: another loop holds the lock, or a stage that is still running after its loop has ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another `depi recap`, or a stage of one that was killed, is still running in "
                f"{folder.parent}: wait for it or stop it"
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no second loop there", folder, error.strerror)
        yield lock
    finally:
        os.close(lock)


def run_command(command: Sequence[str], lock: int) -> int:
    """Run a command to its end, and return its exit status, below 0 where a signal killed it.

    SIGTERM is forwarded to the command. SIGINT is not: a terminal sends it to both.

    Args:
        command: with its arguments.
        lock: a descriptor that the command inherits.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM stopped it; it has ended by then.
    """
    received: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        logger.warning("%s: waiting for the stage to stop", signal.Signals(number).name)
        if child is not None and number == signal.SIGTERM:
            child.terminate()

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(command, pass_fds=(lock,))
        if signal.SIGTERM in received:
            child.terminate()
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received or status in STOPPED:
        raise KeyboardInterrupt
    return status
