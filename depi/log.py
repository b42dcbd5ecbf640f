"""The one way to log: DePi speaks from INFO on, libraries from WARNING on, to stderr."""

import logging


def start_logging(*, main_process: bool = True) -> None:
    """Set up logging for a command; other processes than the main one keep to warnings."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname).1s %(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("depi").setLevel(logging.INFO if main_process else logging.WARNING)
