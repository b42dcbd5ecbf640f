"""What DePi's own policies have in common, behind LeRobot's policy interface."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from depi.errors import UserError
from depi.models.scene import Observation, SceneReader
from depi.policies.adapters import merged_state
from depi.policies.batches import observe
from depi.policies.checkpoint import WEIGHTS
from depi.policies.choices import attention_backends, choices_of, save_config
from depi.policies.configuration import dimensions_of, freeze_parts
from depi.policies.convert import Layout, save_weights
from depi.policies.factory import load_policy, load_value, ready_to_act
from depi.policies.families import family, family_of

# An attribute that a configuration has when the running command of LeRobot only acts: whether its flags ask
# to compile. LeRobot loads policies that it trains in the same way.
ONLY_ACTS = "only_acts"


class OwnPolicy(PreTrainedPolicy):
    """A network, its configuration, and how both are loaded and saved.

    The constructor leaves weights as PyTorch makes them; use `make_policy`, `load_policy` or `load_value`.
    """

    config_class = PreTrainedConfig
    name = "own"

    def __init__(self, config: Any, **_: Any):
        super().__init__(config)
        config.validate_features()
        self.config = config
        self.model: SceneReader = family_of(config).network(dimensions_of(config))
        self.model.set_recompute(float(config.gradient_checkpointing))
        self.model.set_attention(attention_backends(config))
        if choices_of(config).float8:
            try:
                self.model.use_float8()
            except ValueError as error:
                raise UserError(f"float8: {error}") from None
        freeze_parts(self.model, config)
        if config.compile_model:
            self.model.compile_layers(mode=config.compile_mode)

    def init_weights(self) -> None:
        """Draw random weights."""
        self.model.init_weights()

    @property
    def layout(self) -> Layout:
        """How the weights are named in a file."""
        return family_of(self.config).layout(self.model.dimensions)

    def allow_attention(self, backends: str) -> None:
        """Use these attention kernels alone, as `config.attention_backends` says; the checkpoints keep it.

        Raises:
            UserError: there is no such kernel.
        """
        self.config.attention_backends = backends
        self.model.set_attention(attention_backends(self.config))

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """The parameters to train."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Nothing is remembered between frames."""

    def observe(self, batch: dict[str, Any]) -> Observation:
        """Gather the network's inputs from a processed batch; see `Pi0Policy.forward` for its keys."""
        return observe(self.config, batch)

    def autocast(self) -> AbstractContextManager:
        """bfloat16 compute if `config.dtype` says so; parameters are float32 either way."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.dtype == "bfloat16")

    def save_weights(self, path: Path, state: Mapping[str, Tensor]) -> None:
        """Write `state`, a state dict of this policy, in the family's layout; see `convert.save_weights`."""
        save_weights(path, state, self.layout)

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write config.json, depi.json and model.safetensors.

        `state_dict` is this policy's, gathered by the caller. Adapters are merged into the weights.
        """
        save_config(self.config, save_directory)
        state = merged_state(state_dict or self.state_dict(), self.model)
        self.save_weights(save_directory / WEIGHTS, state)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        revision: str | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> "OwnPolicy":
        """`load_policy` or `load_value` under the name that LeRobot calls; see `ONLY_ACTS`."""
        load = load_policy if family(cls.name).acts else load_value
        config: Any = kwargs.get("config")
        asked = getattr(config, ONLY_ACTS, None)
        if asked is not None:
            config.compile_model = asked
        policy = load(pretrained_name_or_path, revision=revision, strict=strict, config=config)
        # Adapters that LeRobot puts on top fit the layers as they were trained.
        return policy if asked is None or config.use_peft else ready_to_act(policy)
