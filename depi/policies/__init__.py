"""The LeRobot face of DePi's models.

`families` has a record of each family of policies: all else takes from it what differs between them.
`processors` prepare batches, `convert` translates weights between DePi's names and LeRobot's, `checkpoint`
finds folders, `factory` makes policies.
"""

from depi.policies.batches import pack_batch
from depi.policies.checkpoint import load_config, resolve_checkpoint
from depi.policies.configuration import set_features
from depi.policies.configuration_depi_pi0 import DepiPi0Config
from depi.policies.factory import load_policy, make_policy, save_checkpoint
from depi.policies.families import TYPES, family
from depi.policies.pi0 import Pi0Policy
from depi.policies.processors import (
    load_processors,
    make_processors,
    on_cpu,
    preprocess,
    relative_joints,
)

# LeRobot's parser knows a policy type from when its configuration class is imported.
for _kind in TYPES:
    family(_kind)

__all__ = [
    "DepiPi0Config",
    "Pi0Policy",
    "load_config",
    "load_policy",
    "load_processors",
    "make_policy",
    "make_processors",
    "on_cpu",
    "pack_batch",
    "preprocess",
    "relative_joints",
    "resolve_checkpoint",
    "save_checkpoint",
    "set_features",
]
