"""pi0.5: the state stands in the prompt, and the flow's time modulates the norms of the action expert.

Letters in shapes as in `flow`; M = 2 * depth + 1 norms of the expert.

The paper is pi0.5 (Physical Intelligence, 2025); what is computed is openpi's: `time_mlp_in` and
`time_mlp_out`, each followed by a SiLU, make a condition of the time, and every norm of the expert has a
matrix that makes its scale, shift and gate of it. openpi's JAX code computes with these matrices in the type
of the activations, as is done here; LeRobot always in float32. With dtype bfloat16 they differ by rounding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depi.models.flow import FlowDimensions, FlowNetwork, time_embedding
from depi.models.gemma import AdaptiveSuffix, GemmaPrefix, KeysValues, Rotation
from depi.models.scene import Suffix


@dataclass(frozen=True)
class Pi05Dimensions(FlowDimensions):
    """Every size of the network."""

    @property
    def suffix(self) -> Suffix:
        """The actions, through the action expert; and the time, to its norms."""
        steps, width, norms = self.chunk_size, self.expert_width, 2 * self.depth + 1
        products = (
            (steps, self.action_dim, width, False),
            (1, width, width, False),
            (1, width, width, True),
            *[(1, width, 3 * width, True)] * norms,
            (steps, width, self.action_dim, True),
        )
        return Suffix(steps, width, self.expert_mlp_dim, products)


class Pi05(FlowNetwork):
    """The network; see `FlowNetwork`. It does not look at the state of an observation."""

    dimensions: Pi05Dimensions
    suffix: AdaptiveSuffix

    def __init__(self, dimensions: Pi05Dimensions):
        super().__init__(dimensions)
        d = dimensions
        self.prefix = GemmaPrefix(width=d.width, mlp_dim=d.mlp_dim, **d.heads)
        self.action_in_proj = nn.Linear(d.action_dim, d.expert_width)
        self.time_mlp_in = nn.Linear(d.expert_width, d.expert_width)
        self.time_mlp_out = nn.Linear(d.expert_width, d.expert_width)
        self.suffix = AdaptiveSuffix(width=d.expert_width, mlp_dim=d.expert_mlp_dim, **d.heads)
        self.action_out_proj = nn.Linear(d.expert_width, d.action_dim)

    def embed_state(self, state: Tensor) -> Tensor:
        """State [B, X] -> nothing, float32 [B, 0, E]."""
        return state.new_zeros(len(state), 0, self.dimensions.expert_width)

    def embed_time(self, time: Tensor) -> Tensor:
        """Time [B] -> modulations of all norms, [B, 1, M, 3 E]; of each step, [B, H] -> [B, H, M, 3 E]."""
        d = self.dimensions
        with torch.autocast(time.device.type, enabled=False):
            waves = time_embedding(time.flatten(), d.expert_width, d.min_period, d.max_period)
            condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(waves))))
        return self.suffix.modulation(condition).unflatten(0, (len(time), -1))

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
        with torch.autocast(x_t.device.type, enabled=False):
            tokens = self.action_in_proj(x_t)  # [B, H, E]
        return self.suffix(tokens.to(keys_values[0][0].dtype), rotation, bias, keys_values, moment)

    def blocks(self) -> tuple[nn.Module, ...]:
        """Every layer of the stacks, and the matrices of the expert's norms."""
        return *super().blocks(), self.suffix.modulation
