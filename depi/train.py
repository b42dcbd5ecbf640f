"""Train pi0 on many LeRobot datasets: `accelerate launch depi/train.py --num_datasets=1500`."""

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    # Launched as a file: Python put `depi/` on the path, where modules would be found twice.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from depi.cli import leave, run
from depi.errors import UserError, message
from depi.files import write_json
from depi.log import never_silent, start_logging

logger = logging.getLogger("depi.train")


def _train(args: list[str]) -> int:
    from depi.training.lerobot_flags import check_train_flags

    try:
        args = check_train_flags(args)
        from depi.training.command_line import parse_train_config
        from depi.training.loop import train

        config = parse_train_config(args)
        logger.info("configuration: %s", json.dumps(config.to_dict(), indent=2))
        return train(config)
    except UserError as error:
        _tell_launcher(f"error: {message(error)}")
        raise


def _tell_launcher(sentence: str) -> None:
    """Leave the sentence for the report with which torchrun and `accelerate launch` end."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        write_json(Path(path), {"message": sentence, "timestamp": int(time.time())})


def main(argv: Sequence[str]) -> int:
    """Parse the flags, train, and return the exit status (2 for a user's error)."""
    start_logging(main_process=os.environ.get("RANK", "0") == "0")
    alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ
    with never_silent("training: loading PyTorch and LeRobot"):
        status = run(_train, argv)
    if status and alone:  # by `accelerate launch`, without torchrun
        print("accelerate launch adds a traceback of its own; `depi train` has none", file=sys.stderr)
    return status


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
