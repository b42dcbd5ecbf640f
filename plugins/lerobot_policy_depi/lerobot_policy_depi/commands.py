"""The configurations of the running command of LeRobot, changed when they have been read."""

import sys
from collections.abc import Callable
from typing import Any

# Where a command has imported its configuration: its module and name.
ROLLOUT = ("lerobot.rollout.configs", "RolloutConfig")
EVAL = ("lerobot.configs.eval", "EvalPipelineConfig")


def after_reading(command: tuple[str, str], then: Callable[[Any], object]) -> None:
    """Call `then` with the command's configuration once it is read, if it has a checkpoint's policy."""
    module, name = command
    if module not in sys.modules:
        return
    config_class = getattr(sys.modules[module], name)
    check = config_class.__post_init__

    def check_and_change(config: Any) -> None:
        check(config)
        if config.policy is not None and config.policy.pretrained_path is not None:
            then(config)

    config_class.__post_init__ = check_and_change
