"""What no flag says, and what the device of a run decides: compiled layers, and bfloat16."""

import logging
from typing import Any

import torch

from depi.policies.families import family_of
from depi.policies.gpus import keep_compiled
from depi.training.config import TrainConfig

logger = logging.getLogger(__name__)


def settle(config: TrainConfig, device: torch.device) -> None:
    """Decide what `config` leaves open; what is compiled is kept in DePi's cache from now on.

    On a CUDA device DePi's own networks are compiled and compute in bfloat16, elsewhere neither. A run that
    is resumed has decided before.
    """
    policy: Any = config.policy
    own = family_of(policy).own
    fast = own and device.type == "cuda" and torch.version.hip is None
    chosen = []
    if config.compile is None:
        config.compile = fast
        chosen += ["compiled layers (else --compile=false)"] if fast else []
    if fast and config.precision_open and policy.dtype != "bfloat16":
        with torch.cuda.device(device):
            known = torch.cuda.is_bf16_supported(including_emulation=False)
        if known:
            policy.dtype = "bfloat16"
            chosen.append("bfloat16 beside float32 weights (else --policy.dtype=float32)")
    config.precision_open = False
    if chosen:
        logger.info("on this GPU: %s", " and ".join(chosen))
    if config.compile:
        logger.info(
            "the first steps compile each kind of layer, a minute or two where %s has nothing of it yet",
            keep_compiled(),
        )
