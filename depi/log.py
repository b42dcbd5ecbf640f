"""Logging to stderr: DePi from level INFO, libraries from level WARNING."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

_logger = logging.getLogger(__name__)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is now, as a progress bar takes its place, and knows when it last did."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.written = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
        self.written = time.monotonic()


_stderr = _Stderr()


def start_logging(*, main_process: bool = True) -> None:
    """Set up logging for a command; other processes than the main one log warnings only."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(levelname).1s %(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=[_stderr],
    )
    logging.getLogger("depi").setLevel(logging.INFO if main_process else logging.WARNING)
    logging.getLogger("lerobot.configs.policies").addFilter(_no_device_named)


def seconds_silent() -> float:
    """How long ago the last line was logged, or DePi was started."""
    return time.monotonic() - _stderr.written


@contextlib.contextmanager
def never_silent(sentence: str, seconds: float = 1.0) -> Iterator[None]:
    """Log `sentence` where nothing else has been logged after so many seconds, as while libraries load."""
    begun = time.monotonic()

    def speak() -> None:
        if _stderr.written < begun:
            _logger.info("%s", sentence)

    timer = threading.Timer(seconds, speak)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _no_device_named(record: logging.LogRecord) -> bool:
    """False for LeRobot's warning that the device 'None' is missing: that is a configuration's default."""
    return not record.getMessage().startswith("Device 'None'")
