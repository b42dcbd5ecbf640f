"""A policy of LeRobot's behind the interface that DePi's trainer calls."""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from safetensors.torch import load_model, save_file
from torch import Tensor

from depi.errors import UserError, one_line
from depi.files import atomic_write
from depi.policies.checkpoint import WEIGHTS
from depi.policies.convert import check_finite, no_larger_than
from depi.policies.trust import never_ask_to_run_code, refusing

SEED = "seed"
"""The key of a batch under which the seed of what the policy draws in `forward` is, an int."""


class LeRobotPolicy(PreTrainedPolicy):
    """LeRobot's own class, `model`, for any configuration of LeRobot.

    The constructor draws weights, or has LeRobot fetch those that the configuration begins with. Files on
    disk are LeRobot's.

    Raises:
        UserError: a package is missing, what the policy begins with cannot be fetched, or LeRobot refuses the
            configuration.
    """

    config_class = PreTrainedConfig
    name = "lerobot"

    def __init__(self, config: Any, **_: Any):
        super().__init__(config)
        self.model: PreTrainedPolicy = _construct(config)
        trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        if any(parameter.dtype != torch.float32 for parameter in trained):
            self.model.float()  # bfloat16, as of smolvla's backbone, would round small steps away

    @classmethod
    def read(cls, config: Any, weights: Path, *, device: str, strict: bool = True) -> Self:
        """The policy with the weights of a file, on `device`.

        Args:
            config: of the policy, with features.
            weights: in LeRobot's layout.
            device: where to put it.
            strict: refuse a file that lacks tensors or has others; else those keep the values drawn.

        Raises:
            UserError: as the class; or the file is missing, damaged, not finite or of another network.
        """
        with no_larger_than(weights), _without_downloads(config):
            policy = cls(config)
        with refusing(f"{weights} does not fit the policy"):
            load_model(policy.model, weights, strict=strict)
        check_finite(weights, dict(policy.model.named_parameters()))
        return policy.to(device)

    def forward(self, batch: Mapping[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a processed batch.

        Everything that LeRobot's policy draws (noise, times, latents, dropout) follows from the batch's seed.

        Args:
            batch: what LeRobot's policy reads; images are float, normalised.
            reduction: "mean"; or "none" for that same mean in place of each sample's own loss, [B], which
                LeRobot's policies do not tell.

        Returns:
            The loss, and the scalars that LeRobot's policy returns beside it.
        """
        if SEED in batch:
            torch.manual_seed(batch[SEED])
        loss, details = self.model({key: value for key, value in batch.items() if key != SEED})
        loss = loss.mean()  # vqbet gives [1]
        scalars = {
            name: torch.as_tensor(value, device=loss.device)
            for name, value in (details or {}).items()
            if isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)
        }
        return loss if reduction == "mean" else loss.expand(len(batch[ACTION])), scalars

    def autocast(self) -> AbstractContextManager:
        """bfloat16 compute if `config.use_amp`; parameters are float32 either way."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.use_amp)

    def get_optim_params(self) -> Any:
        """The parameters to train, in the groups of LeRobot's preset."""
        return self.model.get_optim_params()

    def reset(self) -> None:
        """Forget the episode."""
        self.model.reset()

    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """As LeRobot's policy does."""
        return self.model.predict_action_chunk(batch, **kwargs)

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """As LeRobot's policy does."""
        return self.model.select_action(batch, **kwargs)

    def save_weights(self, path: Path, state: Mapping[str, Tensor]) -> None:
        """Write `state`, a state dict of this policy, in LeRobot's layout, atomically."""
        weights: dict[str, Tensor] = {}
        places = set()
        for name, value in state.items():
            value = value.detach().to("cpu").contiguous()
            if value.data_ptr() in places:  # a file holds a tensor that has two names twice
                value = value.clone()
            places.add(value.data_ptr())
            weights[name.removeprefix("model.")] = value
        with atomic_write(path) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write config.json and model.safetensors."""
        self.config._save_pretrained(save_directory)
        self.save_weights(save_directory / WEIGHTS, state_dict or self.state_dict())


def _construct(config: Any) -> PreTrainedPolicy:
    never_ask_to_run_code()
    backbone = getattr(config, "pretrained_backbone_weights", None)
    with refusing(f"LeRobot makes no {config.type} policy of this"):
        try:
            return get_policy_class(config.type)(config)
        except ImportError as error:
            raise UserError(
                f"policies of type {config.type} need more: {one_line(error)}; "
                f"uv pip install 'lerobot[{config.type}]'"
            ) from None
        except OSError as error:  # of urllib, torchvision and transformers
            remedy = "--policy.pretrained_backbone_weights=null begins with random ones"
            raise UserError(
                f"what a {config.type} policy begins with cannot be fetched"
                + (f", {backbone}: {remedy}" if backbone else "")
                + f" ({one_line(error, 200)})"
            ) from None


@contextlib.contextmanager
def _without_downloads(config: Any) -> Iterator[None]:
    """Build in the body without the weights that the configuration begins with: the checkpoint has them."""
    backbone = getattr(config, "pretrained_backbone_weights", None)
    if backbone is None:
        yield
        return
    config.pretrained_backbone_weights = None
    try:
        yield
    finally:
        config.pretrained_backbone_weights = backbone
