"""Logging to stderr: DePi from level INFO, libraries from level WARNING."""

import logging


def start_logging(*, main_process: bool = True) -> None:
    """Set up logging for a command; other processes than the main one log warnings only."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname).1s %(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("depi").setLevel(logging.INFO if main_process else logging.WARNING)
    logging.getLogger("lerobot.configs.policies").addFilter(_no_device_named)


def _no_device_named(record: logging.LogRecord) -> bool:
    """False for LeRobot's warning that the device 'None' is missing: that is a configuration's default."""
    return not record.getMessage().startswith("Device 'None'")
