"""Logging to stderr: DePi from level INFO, libraries from level WARNING."""

import logging


def start_logging(*, main_process: bool = True) -> None:
    """Set up logging for a command; other processes than the main one log warnings only."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname).1s %(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("depi").setLevel(logging.INFO if main_process else logging.WARNING)
