"""LeRobot's own policies, trained through LeRobot's classes: see `Family`."""

from collections.abc import Mapping
from typing import Any, NoReturn

import lerobot.policies  # noqa: F401  registers the configuration classes
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import IMAGENET_STATS
from torch import Tensor

from depi.errors import UserError
from depi.policies.families import TYPES, Family
from depi.policies.lerobot_policy import LeRobotPolicy

_KINDS = tuple(kind for kind, module in TYPES.items() if module == __name__)
# Images are normalised by these, whatever the data, as LeRobot does by default.
_IMAGE_STATS = {
    **{name: torch.tensor(values) for name, values in IMAGENET_STATS.items()},
    "min": torch.zeros(3, 1, 1),
    "max": torch.ones(3, 1, 1),
}


def _processors(config: PreTrainedConfig, stats: Mapping[str, Mapping[str, Tensor]]) -> tuple[Any, Any]:
    of_images = dict.fromkeys(config.image_features, _IMAGE_STATS)
    return make_pre_post_processors(config, dataset_stats={**of_images, **stats})


def _refuse(*_: Any) -> NoReturn:
    raise UserError("the network is LeRobot's: memory and operations are counted of DePi's own networks only")


def _output(config: Any) -> str:
    steps = len(config.action_delta_indices)
    return f"- Action: {steps} steps of {config.action_feature.shape[0]} numbers."


FAMILY = Family(
    name="lerobot",
    configs={kind: PreTrainedConfig.get_choice_class(kind) for kind in _KINDS},
    policy=LeRobotPolicy,
    network=_refuse,
    dimensions=_refuse,
    layout=_refuse,
    processors=_processors,
    allowed=None,
    needs=("seed",),
    own=False,
    stock=_KINDS,
    about="A `{type}` policy of LeRobot's",
    output=_output,
)
