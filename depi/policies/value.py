"""The value function as a LeRobot policy: batches in, loss or values out. It takes no actions.

Letters in shapes:
    B batch   K bins
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from depi.errors import UserError
from depi.models.sampling import trim
from depi.models.scene import Observation
from depi.models.value import ValueBins, ValueNetwork, value_loss
from depi.policies.batches import observe
from depi.policies.configuration import dimensions_of, freeze_parts
from depi.policies.configuration_value import ValueConfig
from depi.policies.convert import save_weights

# The key of a sample under which its normalised return stands, float32 [] in -1..0.
VALUE_TARGET = "value_target"


class ValuePolicy(PreTrainedPolicy):
    """A value function behind LeRobot's policy interface.

    The constructor leaves weights as PyTorch makes them; use `make_policy` or `load_value`.
    """

    config_class = ValueConfig
    name = "value"

    def __init__(self, config: ValueConfig, **_: Any):
        super().__init__(config)
        config.validate_features()
        self.config: ValueConfig = config
        self.model = ValueNetwork(dimensions_of(config))
        self.bins = ValueBins(config.number_of_bins)
        self.model.set_recompute(float(config.gradient_checkpointing))
        freeze_parts(self.model, config)
        if config.compile_model:
            self.model.compile_layers(mode=config.compile_mode)

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """The parameters to train."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Nothing is remembered between frames."""

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

    def observe(self, batch: dict[str, Any]) -> Observation:
        """Gather the network's inputs from a processed batch."""
        return observe(self.config, batch)

    def predict_distribution(self, batch: dict[str, Any]) -> Tensor:
        """Probabilities of the bins, float32 [B, K], for a processed batch; puts the policy into eval mode.

        A sample's numbers do not depend on what else is in the batch, up to rounding: they agree to about
        1e-6 in float32.
        """
        self.eval()
        with torch.no_grad(), self.autocast():
            logits = self.model(trim(self.observe(batch)))
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

    def autocast(self) -> AbstractContextManager:
        """bfloat16 compute if `config.dtype` says so; parameters are float32 either way."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.dtype == "bfloat16")

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write config.json and model.safetensors; `state_dict` is this policy's, gathered by the caller."""
        self.config._save_pretrained(save_directory)
        save_weights(
            save_directory / "model.safetensors", state_dict or self.state_dict(), self.model.dimensions
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        revision: str | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> "ValuePolicy":
        """`load_value` under the name that LeRobot calls."""
        from depi.policies.factory import load_value

        return load_value(
            pretrained_name_or_path, revision=revision, strict=strict, config=kwargs.get("config")
        )
