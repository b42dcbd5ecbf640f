"""`lerobot-rollout` at the rate of the training: its own 30 plays a policy of 10 Hz three times too fast.

LeRobot asks no policy for that, so it is filled in when the command's configuration has been read.
"""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from depi.errors import UserError
from depi.evaluation.as_trained import read_trained
from depi.policies import resolve_checkpoint
from lerobot_policy_depi.commands import ROLLOUT, after_reading

logger = logging.getLogger(__name__)

# A flag with which a person chooses; of a file nobody knows which of its values are LeRobot's own.
CHOOSING = ("--fps", "--dataset.fps", "--config_path")


def follow_the_training() -> None:
    """Let `lerobot-rollout` act as often as most datasets of the training did, unless a flag chooses."""
    after_reading(ROLLOUT, lambda config: fill_rate(config, sys.argv[1:]))


def fill_rate(config: Any, args: Sequence[str]) -> None:
    """Set `fps` and, where a dataset is recorded, `dataset.fps`; or say how they differ from the training.

    Args:
        config: LeRobot's `RolloutConfig`.
        args: the command line that it was read from.
    """
    try:
        trained = read_trained(
            resolve_checkpoint(config.policy.pretrained_path, config.policy.pretrained_revision)
        )
    except UserError:
        return
    rate = trained.usual_rate if trained else None
    places = [place for place in (config, config.dataset) if place is not None]
    if rate is None or all(abs(place.fps / rate - 1) < 0.05 for place in places):
        return
    flags = " ".join(f"--{name}={rate:g}" for name in ("fps", "dataset.fps")[: len(places)])
    chosen = any(arg.partition("=")[0] in CHOOSING for arg in args)
    # As warnings: the command sets its logging up later.
    if chosen or not rate.is_integer():
        logger.warning("the policy was trained at %g actions a second: %s plays it at its speed", rate, flags)
        return
    for place in places:
        place.fps = int(rate)
    logger.warning("actions a second as in training: %s", flags)
