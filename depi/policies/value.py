"""The value function as a LeRobot policy: batches in, loss or values out. It takes no actions.

Letters in shapes:
    B batch   K bins
"""

import logging
from typing import Any

import torch
from torch import Tensor

from depi.errors import UserError
from depi.models.value import ValueBins, value_loss
from depi.policies.base import OwnPolicy
from depi.policies.batches import trimmed
from depi.policies.checkpoint import WEIGHTS, resolve_checkpoint
from depi.policies.configuration_value import ValueConfig
from depi.policies.pretrained import take_weights

logger = logging.getLogger(__name__)

# The key of a sample under which its normalised return stands, float32 [] in -1..0.
VALUE_TARGET = "value_target"


class ValuePolicy(OwnPolicy):
    """A value function behind LeRobot's policy interface."""

    config_class = ValueConfig
    name = "value"

    def __init__(self, config: ValueConfig, **_: Any):
        super().__init__(config)
        self.bins = ValueBins(config.number_of_bins)

    def init_weights(self) -> None:
        """Draw random weights, but for those that the checkpoint `init_from` has."""
        super().init_weights()
        if self.config.init_from is not None:
            take_weights(self.model, resolve_checkpoint(self.config.init_from) / WEIGHTS)
            return
        count = sum(parameter.numel() for parameter in self.model.parameters())
        logger.warning(
            "the value function begins with nothing but random weights, %.2f M parameters: "
            "--policy.init_from=lerobot/pi0_base, or another pi0 or value function with the same vision "
            "tower, fills what it has",
            count / 1e6,
        )

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of a processed batch.

        Args:
            batch: cameras, state and prompt as for `Pi0Policy.forward`; `value_target`, the normalised
                return, float32 [B]; optional `packing`, see `pack_batch`. Targets outside of the bins' range
                are clamped.
            reduction: "mean", or "none" for one loss per sample, [B].

        Returns:
            The loss, and scalars on the same device: `absolute_error` of the decoded values, `accuracy` (the
            share of samples whose likeliest bin is the right one), `clamped` (the share of targets that
            were). Nothing waits for the device.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', not {reduction!r}")
        logits = self.model(self.observe(batch))
        target, clamped = self.bins.clamp(batch[VALUE_TARGET].float())
        losses = value_loss(logits, target, self.bins, two_hot=self.config.two_hot)
        with torch.no_grad():
            details = {
                "absolute_error": (self.bins.decode(logits) - target).abs().mean(),
                "accuracy": (logits.argmax(dim=1) == self.bins.index(target)).float().mean(),
                "clamped": clamped.float() / len(target),
            }
        return losses if reduction == "none" else losses.mean(), details

    def predict_distribution(self, batch: dict[str, Any]) -> Tensor:
        """Probabilities of the bins, float32 [B, K], for a processed batch; puts the policy into eval mode.

        A sample's numbers do not depend on what else is in the batch, up to rounding: they agree to about
        1e-6 in float32.
        """
        self.eval()
        with torch.no_grad(), self.autocast():
            logits = self.model(trimmed(self.config, batch, self.observe(batch)))
        return logits.float().softmax(dim=1)

    def predict_value(self, batch: dict[str, Any]) -> Tensor:
        """Values, float32 [B] in -1..0: the means of `predict_distribution`. Batch as for `forward`."""
        return self.bins.mean(self.predict_distribution(batch))

    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """A value function takes no actions.

        Raises:
            UserError: always.
        """
        raise UserError("a value function takes no actions: roll out the policy that it judges")

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """As `predict_action_chunk`."""
        return self.predict_action_chunk(batch)
