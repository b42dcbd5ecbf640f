"""Real-time chunking: a new chunk that goes on where the robot will be when the chunk is ready.

While a chunk is computed the robot executes the previous one. Its left-over actions pull the new chunk
towards themselves at every Euler step, firmly where they will have been executed, ever less after that. The
guidance is LeRobot's.
"""

from dataclasses import dataclass

import torch
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor

from depi.errors import UserError
from depi.models.pi0 import Observation, Pi0
from depi.models.sampling import read_scene, velocity


@dataclass
class LeftOver:
    """Inputs of `predict_action_chunk` for real-time chunking, by LeRobot's names."""

    inference_delay: int | None = None  # steps of the left-over that are executed before the chunk is ready
    prev_chunk_left_over: Tensor | None = None  # normalised actions [T, D] or [B, T, D] not executed yet
    execution_horizon: int | None = None  # steps after which the left-over counts no more

    def check(self, config: PI0Config) -> None:
        """Raise a UserError for inputs that would be ignored, or fail half-way."""
        given = [name for name, value in vars(self).items() if value is not None]
        if given and config.rtc_config is None:
            raise UserError(
                f"predict_action_chunk: {', '.join(given)} needs the policy's rtc_config to be set"
            )
        if self.prev_chunk_left_over is None:
            return
        if self.inference_delay is None or self.inference_delay < 0:
            raise UserError(
                "predict_action_chunk: prev_chunk_left_over needs an inference_delay of 0 or more"
            )
        shape = tuple(self.prev_chunk_left_over.shape)
        room = (config.chunk_size, config.max_action_dim)
        if len(shape) not in (2, 3) or any(size > most for size, most in zip(shape[-2:], room, strict=True)):
            raise UserError(
                f"predict_action_chunk: prev_chunk_left_over has shape {list(shape)}; "
                f"at most {room[0]} steps of {room[1]} numbers are possible"
            )


def rtc_processor(config: PI0Config) -> RTCProcessor | None:
    """LeRobot's guidance, None where the configuration has none."""
    return RTCProcessor(config.rtc_config) if config.rtc_config is not None else None


def rtc_enabled(config: PI0Config) -> bool:
    """Whether chunks are guided by their predecessors."""
    return config.rtc_config is not None and config.rtc_config.enabled


@torch.no_grad()
def sample_guided(
    model: Pi0,
    observation: Observation,
    noise: Tensor,
    num_steps: int,
    *,
    processor: RTCProcessor,
    enabled: bool,
    left_over: LeftOver,
    guidance: float = 1.0,
) -> Tensor:
    """`sample_actions` with LeRobot's integration, which lets `processor` change or record every velocity.

    It may differentiate through the velocity. `guidance` is that of `sample_actions`.
    """
    scene = read_scene(model, observation, num_steps, guidance)
    steps = iter(range(num_steps))
    previous = left_over.prev_chunk_left_over
    return euler_integrate(
        lambda x_t, _time: velocity(model, scene, x_t, next(steps)),
        noise,
        num_steps,
        rtc_processor=processor,
        rtc_enabled=enabled,
        inference_delay=left_over.inference_delay,
        prev_chunk_left_over=None if previous is None else previous.to(noise),
        execution_horizon=left_over.execution_horizon,
    )
