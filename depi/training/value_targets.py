"""What a value function learns: the normalised return that follows each frame."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depi.datasets.samples.outcomes import check_normalizer, normalised_returns, read_outcomes
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.policies.configuration_value import ValueConfig
from depi.policies.value import VALUE_TARGET

logger = logging.getLogger(__name__)


class ValueTargets:
    """The return of every frame of a training set, as the value function's configuration counts it.

    `values` are float32 [F], in -1..0, by a frame's `index`.

    Args:
        dataset: the training set.
        policy: c_fail, reward_normalizer, and whether returns below -1 may be clamped.
        success: a file of success flags; see `read_outcomes`.
        assume_success: of episodes of which nothing is known.

    Raises:
        UserError: the success of an episode is not known, or a return is outside of the bins.
    """

    def __init__(
        self,
        dataset: MultiLeRobotDataset,
        policy: ValueConfig,
        *,
        success: Path | None = None,
        assume_success: bool = False,
    ) -> None:
        outcomes = read_outcomes(dataset, file=success, assume_success=assume_success)
        lengths = np.diff(dataset.episode_start)
        self.clamped = check_normalizer(
            lengths, outcomes.success, policy.c_fail, policy.reward_normalizer, clamp=policy.clamp
        )
        if self.clamped:
            logger.warning(
                "%s of %s returns lie below -1 and are clamped: reward_normalizer=%g, c_fail=%g",
                self.clamped,
                lengths.sum(),
                policy.reward_normalizer,
                policy.c_fail,
            )
        successes = int(outcomes.success.sum())
        logger.info("value targets: %s successes, %s failures", successes, len(lengths) - successes)
        values = normalised_returns(
            lengths, outcomes.success, policy.c_fail, policy.reward_normalizer, clamp=policy.clamp
        )
        self.values = values.astype(np.float32)

    def __call__(self, position: int, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The target of a sample; of the frame that was read, be it in place of another."""
        return {VALUE_TARGET: torch.tensor(self.values[int(sample["index"])])}
