"""Train pi0 on many LeRobot datasets: `accelerate launch depi/train.py --num_datasets=1500`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    # Launched as a file: Python put `depi/` on the path, where modules would be found twice.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from depi.cli import run
from depi.log import start_logging


def _train(args: list[str]) -> int:
    from depi.training.lerobot_flags import check_train_flags

    check_train_flags(args)
    from depi.training.config import parse_train_config
    from depi.training.loop import train

    return train(parse_train_config(args))


def main(argv: Sequence[str]) -> int:
    """Parse the flags, train, and return the exit status (2 for a user's error)."""
    start_logging()
    return run(_train, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
