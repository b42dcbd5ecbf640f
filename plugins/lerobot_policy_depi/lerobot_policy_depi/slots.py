"""`lerobot-rollout` and `lerobot-eval` without `--rename_map`: the checkpoint says what its slots are for.

LeRobot asks no policy for that, so it is filled in when the command's configuration has been read.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

from depi.evaluation.trained_slots import rename_map

logger = logging.getLogger(__name__)


def _cameras_of_robot(config: Any) -> Iterable[str]:
    """`cameras` of LeRobot's robots, `views` of the simulated one."""
    names: Any = getattr(config.robot, "cameras", None) or getattr(config.robot, "views", ())
    return (f"observation.images.{name}" for name in names)


def _cameras_of_env(config: Any) -> Iterable[str]:
    return config.env.features_map.values()


# Where the command has imported it: the module and name of its configuration -> the cameras that there are.
COMMANDS: dict[tuple[str, str], Callable[[Any], Iterable[str]]] = {
    ("lerobot.rollout.configs", "RolloutConfig"): _cameras_of_robot,
    ("lerobot.configs.eval", "EvalPipelineConfig"): _cameras_of_env,
}


def fill_rename_maps() -> None:
    """Let the configurations of the running command fill in a `rename_map` that nobody has given."""
    for (module, name), cameras in COMMANDS.items():
        if module in sys.modules:
            _extend(getattr(sys.modules[module], name), cameras)


def _extend(config_class: Any, cameras: Callable[[Any], Iterable[str]]) -> None:
    check = config_class.__post_init__

    def check_and_fill(config: Any) -> None:
        check(config)
        policy = config.policy
        if config.rename_map or policy is None or policy.pretrained_path is None:
            return
        checkpoint = policy.pretrained_path, policy.pretrained_revision
        config.rename_map = rename_map(*checkpoint, list(policy.image_features), set(cameras(config)))
        if config.rename_map:
            # As a warning: the command sets its logging up later.
            logger.warning("cameras as in training: --rename_map='%s'", json.dumps(config.rename_map))

    config_class.__post_init__ = check_and_fill
