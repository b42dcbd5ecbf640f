"""pi0: the state is a token before the actions, and the flow's time is mixed into each action's token.

Letters in shapes as in `flow`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depi.models.flow import FlowDimensions, FlowNetwork, time_embedding
from depi.models.gemma import GemmaPrefix, GemmaSuffix, KeysValues, Rotation
from depi.models.scene import Suffix


@dataclass(frozen=True)
class Pi0Dimensions(FlowDimensions):
    """Every size of the network."""

    state_dim: int = 32

    @property
    def suffix(self) -> Suffix:
        """The state and the actions, through the action expert."""
        steps, width = self.chunk_size, self.expert_width
        products = (
            (steps, self.action_dim, width, False),
            (steps, 2 * width, width, True),
            (steps, width, width, True),
            (steps, width, self.action_dim, True),
        )
        once = ((1, self.state_dim, width, False),)
        return Suffix(1 + steps, width, self.expert_mlp_dim, products, once)


class Pi0(FlowNetwork):
    """The network; see `FlowNetwork`."""

    dimensions: Pi0Dimensions

    def __init__(self, dimensions: Pi0Dimensions):
        super().__init__(dimensions)
        d = dimensions
        self.prefix = GemmaPrefix(width=d.width, mlp_dim=d.mlp_dim, **d.heads)
        self.state_proj = nn.Linear(d.state_dim, d.expert_width)
        self.action_in_proj = nn.Linear(d.action_dim, d.expert_width)
        self.action_time_mlp_in = nn.Linear(2 * d.expert_width, d.expert_width)
        self.action_time_mlp_out = nn.Linear(d.expert_width, d.expert_width)
        self.suffix = GemmaSuffix(width=d.expert_width, mlp_dim=d.expert_mlp_dim, **d.heads)
        self.action_out_proj = nn.Linear(d.expert_width, d.action_dim)

    def embed_state(self, state: Tensor) -> Tensor:
        """State [B, X] -> float32 [B, 1, E]."""
        with torch.autocast(state.device.type, enabled=False):
            return self.state_proj(state)[:, None]

    def embed_time(self, time: Tensor) -> Tensor:
        """Time [B] -> float32 [B, 1, E]; of each step, [B, H] -> [B, H, E]."""
        d = self.dimensions
        embedded = time_embedding(time.flatten(), d.expert_width, d.min_period, d.max_period)
        return embedded.unflatten(0, (len(time), -1))

    def embed_suffix(self, x_t: Tensor, state: Tensor, moment: Tensor) -> Tensor:
        """Suffix tokens, float32 [B, S, E]; they are few, so less precision would save nothing.

        Args:
            x_t: noisy actions, [B, H, A].
            state: `embed_state`, [B, 1, E].
            moment: `embed_time`, [B or 1, 1 or H, E].
        """
        with torch.autocast(x_t.device.type, enabled=False):
            actions = self.action_in_proj(x_t)  # [B, H, E]
            both = torch.cat((actions, moment.expand_as(actions)), dim=2)
            hidden = F.silu(self.action_time_mlp_in(both))
            return torch.cat((state, self.action_time_mlp_out(hidden)), dim=1)

    def expert(
        self,
        x_t: Tensor,
        state: Tensor,
        moment: Tensor,
        rotation: Rotation,
        bias: Tensor,
        keys_values: list[KeysValues],
    ) -> Tensor:
        """As `FlowNetwork.expert`."""
        tokens = self.embed_suffix(x_t, state, moment)
        return self.suffix(tokens.to(keys_values[0][0].dtype), rotation, bias, keys_values)
