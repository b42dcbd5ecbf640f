"""The LeRobot face of DePi's models.

`configuration` describes a policy, `pi0` is the policy, `processors` prepare its batches, `convert`
translates weights between DePi's names and LeRobot's, `checkpoint` finds folders, `factory` makes policies.
"""

from depi.policies.batches import pack_batch
from depi.policies.checkpoint import load_config, resolve_checkpoint
from depi.policies.configuration import DepiPi0Config, set_features
from depi.policies.factory import load_policy, make_policy, save_checkpoint
from depi.policies.pi0 import Pi0Policy
from depi.policies.processors import load_processors, make_processors, on_cpu, preprocess

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
    "resolve_checkpoint",
    "save_checkpoint",
    "set_features",
]
