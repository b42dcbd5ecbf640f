"""`lerobot-rollout` and `lerobot-eval` without `--rename_map`: the checkpoint says what its slots are for.

LeRobot asks no policy for that, so it is filled in when the command's configuration has been read.
"""

import json
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from depi.evaluation.trained_slots import rename_map
from lerobot_policy_depi.commands import EVAL, ROLLOUT, after_reading

logger = logging.getLogger(__name__)


def _cameras_of_robot(config: Any) -> Iterable[str]:
    """`cameras` of LeRobot's robots, `views` of the simulated one."""
    names: Any = getattr(config.robot, "cameras", None) or getattr(config.robot, "views", ())
    return (f"observation.images.{name}" for name in names)


def _cameras_of_env(config: Any) -> Iterable[str]:
    return config.env.features_map.values()


def fill_rename_maps() -> None:
    """Let the configurations of the running command fill in a `rename_map` that nobody has given."""
    after_reading(ROLLOUT, partial(_fill, _cameras_of_robot))
    after_reading(EVAL, partial(_fill, _cameras_of_env))


def _fill(cameras: Callable[[Any], Iterable[str]], config: Any) -> None:
    policy = config.policy
    if config.rename_map:
        return
    checkpoint = policy.pretrained_path, policy.pretrained_revision
    config.rename_map = rename_map(*checkpoint, list(policy.image_features), set(cameras(config)))
    if config.rename_map:
        # As a warning: the command sets its logging up later.
        logger.warning("cameras as in training: --rename_map='%s'", json.dumps(config.rename_map))
