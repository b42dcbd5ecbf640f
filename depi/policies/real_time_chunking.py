"""Real-time chunking: a new chunk that goes on where the robot will be when the chunk is ready.

While a chunk is computed the robot executes the previous one. Its left-over actions pull the new chunk
towards themselves at every Euler step, firmly where they will have been executed, ever less after that. The
guidance is LeRobot's, computed as a part of sampling (`depi.models.sampling.pulled`); LeRobot's own loop runs
only where it is to record each step.

A policy that was trained with `rtc_training_max_delay` needs no guidance: it is given the actions that will
have been executed, and goes on from them exactly. Beyond the longest delay of its training it is guided.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor

from depi.errors import UserError
from depi.models.flow import FlowNetwork
from depi.models.sampling import Given, Pull, first_point, read_scene, velocity
from depi.models.scene import Observation
from depi.policies.choices import choices_of

logger = logging.getLogger(__name__)


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


def repeat_left_over(previous: Tensor, chunks: int) -> Tensor:
    """Left-over actions [T, D] or [B, T, D] for so many chunks of every sample."""
    return previous if previous.ndim == 2 or len(previous) == 1 else previous.repeat(chunks, 1, 1)


def given_actions(config: PI0Config, left_over: LeftOver, noise: Tensor, chunks: int) -> Given | None:
    """The left-over actions that a policy trained for it is given; None where guidance has to do.

    Args:
        config: the policy's.
        left_over: as checked; actions after the inference delay do not count.
        noise: [N B, H, A], for shape and device.
        chunks: N, how many chunks are sampled of each observation.
    """
    most, previous = choices_of(config).rtc_training_max_delay, left_over.prev_chunk_left_over
    if not (most and rtc_enabled(config) and previous is not None):
        return None
    assert left_over.inference_delay is not None
    delay = min(left_over.inference_delay, previous.shape[-2])
    if delay > most:
        _say_guided(delay, most)
        return None
    actions = _with_room(repeat_left_over(previous[..., :delay, :], chunks), noise)
    return Given(actions.expand_as(noise), torch.arange(noise.shape[1], device=noise.device) < delay)


def pulling_actions(processor: RTCProcessor, left_over: LeftOver, noise: Tensor, chunks: int) -> Pull | None:
    """The left-over actions that guide a chunk, weighted as LeRobot does; None where nothing is left.

    See `given_actions` for the arguments.
    """
    previous, config = left_over.prev_chunk_left_over, processor.rtc_config
    if previous is None:
        return None
    horizon = config.execution_horizon if left_over.execution_horizon is None else left_over.execution_horizon
    end = min(horizon, previous.shape[-2])
    weights = processor.get_prefix_weights(left_over.inference_delay, end, noise.shape[1])
    actions = _with_room(repeat_left_over(previous, chunks), noise)
    return Pull(actions, weights.to(noise.device, non_blocking=True), config.max_guidance_weight)


def _with_room(actions: Tensor, noise: Tensor) -> Tensor:
    """Actions [T, D] or [B, T, D], then zeros -> [1 or B, H, A], with the dtype and device of `noise`."""
    steps, size = noise.shape[1] - actions.shape[-2], noise.shape[2] - actions.shape[-1]
    whole = F.pad(actions.to(noise, non_blocking=True), (0, size, 0, steps))
    return whole if whole.ndim == 3 else whole[None]


@lru_cache
def _say_guided(delay: int, most: int) -> None:
    """Once is enough: a robot asks several times a second."""
    logger.warning(
        "an inference delay of %d steps is longer than those of the policy's training, at most %d: such "
        "chunks are only guided; train with a greater --policy.rtc_training_max_delay",
        delay,
        most,
    )


@torch.no_grad()
def sample_recorded(
    model: FlowNetwork,
    observation: Observation,
    noise: Tensor,
    num_steps: int,
    *,
    processor: RTCProcessor,
    enabled: bool,
    left_over: LeftOver,
    guidance: float = 1.0,
    given: Given | None = None,
    action_dim: int | None = None,
) -> Tensor:
    """`sample_actions` with LeRobot's integration, in which `processor` guides and records every step.

    `guidance`, `given` and `action_dim` are those of `sample_actions`; with given actions `processor` only
    records.
    """
    chunks = len(noise) // len(observation.images)
    scene = read_scene(model, observation, noise, num_steps, guidance, given, action_dim)
    steps = iter(range(num_steps))
    previous = left_over.prev_chunk_left_over
    return euler_integrate(
        lambda x_t, _time: velocity(model, scene, x_t, next(steps)),
        first_point(noise, given),
        num_steps,
        rtc_processor=processor,
        rtc_enabled=enabled and given is None,
        inference_delay=left_over.inference_delay,
        prev_chunk_left_over=None if previous is None else repeat_left_over(previous, chunks).to(noise),
        execution_horizon=left_over.execution_horizon,
    )
