"""pi0 as a LeRobot policy: batches in, loss or actions out.

Letters in shapes:
    B batch   C camera slots   R image side in pixels   T prompt tokens   H action steps
    S, D sizes of the robot's state and action   X, A the room that the policy has for them
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.utils.constants import ACTION
from torch import Tensor

from depi.errors import UserError, innermost_line
from depi.models.capture import Captured
from depi.models.flow import prefix_times, sample_noise, sample_time
from depi.models.inference import prepare_for_inference
from depi.models.sampling import Given, Pull, sample_actions
from depi.models.scene import Observation
from depi.policies.base import OwnPolicy
from depi.policies.batches import pad_last, trimmed
from depi.policies.choices import check_choices, choices_of
from depi.policies.configuration_depi_pi0 import DepiPi0Config
from depi.policies.gpus import is_checked, keep_compiled
from depi.policies.indicator import UNCONDITIONAL_MASK, UNCONDITIONAL_TOKENS
from depi.policies.real_time_chunking import (
    LeftOver,
    given_actions,
    pulling_actions,
    rtc_enabled,
    rtc_processor,
    sample_recorded,
)

logger = logging.getLogger(__name__)

STRONGEST_GUIDANCE = 100.0
# The key of a batch under which each sample has its simulated inference delay, in steps.
INFERENCE_DELAY = "inference_delay"


def nearest_to_mean(chunks: Tensor) -> Tensor:
    """Of N chunks [B, N, H, D] of each sample the one with the least squared distance to their mean.

    The mean itself may lie between two ways to do the task, where no demonstration went.

    Returns:
        [B, H, D].
    """
    if chunks.shape[1] == 1:
        return chunks[:, 0]
    distance = (chunks - chunks.mean(dim=1, keepdim=True)).square().sum(dim=(2, 3))  # [B, N]
    return chunks[torch.arange(len(chunks), device=chunks.device), distance.argmin(dim=1)]


class Pi0Policy(OwnPolicy):
    """pi0 behind LeRobot's policy interface, for `pi0` and `depi_pi0` configurations.

    Files on disk have LeRobot's names, whatever the size.
    """

    config_class = DepiPi0Config
    name = "depi_pi0"

    def __init__(self, config: PI0Config, **_: Any):
        check_choices(config)
        super().__init__(config)
        self._inference_only = False
        self._compiler_is_new = False
        self._captured = Captured(self._sample)
        self.set_guidance(getattr(config, "guidance", 1.0))
        self.init_rtc_processor()
        self.reset()

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """The parameters to train."""
        self._refuse_after_for_inference("trained")
        return super().get_optim_params()

    def reset(self) -> None:
        """Forget the queued actions: a new episode begins."""
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, Tensor]]:
        """Flow-matching loss of a processed batch.

        Args:
            batch: cameras under the keys of `config.image_features`, [B, 3, h, w], uint8 0..255 or float
                0..1, with an optional bool `<key>_is_pad` [B] beside each (True: the sample has no such one);
                normalised `observation.state` [B, S] and `action` [B, H, D]; language tokens and their mask;
                optional bool `action_is_pad` [B, H], which matters with `do_mask_loss_for_padding` alone;
                optional `noise` [B, H, A] and `time` [B], else drawn; optional `packing`, see `pack_batch`:
                the same loss without the work for what is absent. With `rtc_training_max_delay` an optional
                int `inference_delay` [B], else drawn: so many steps are given, and are no part of the loss.
            reduction: "mean" over the steps that count and the D action dimensions, or "none" for one such
                mean per sample, [B].

        Returns:
            The loss, and `{"loss_per_dim": [D]}` on the same device. Nothing waits for the device.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', not {reduction!r}")
        self._refuse_after_for_inference("trained")
        observation = self.observe(batch)
        action_dim = batch[ACTION].shape[-1]
        actions = pad_last(batch[ACTION], self.config.max_action_dim)
        noise, time = self._noise_and_time(batch, actions)
        valid = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device)
        if (delay := self._delay(batch, len(actions))) is not None:
            time = prefix_times(time, delay, actions.shape[1])
            valid = time > 0
        if "action_is_pad" in batch and choices_of(self.config).do_mask_loss_for_padding:
            valid = valid & ~batch["action_is_pad"]
        errors = self.model(observation, actions, noise, time)[..., :action_dim]  # [B, H, D]
        valid = valid[..., None]
        errors = errors.masked_fill(~valid, 0.0)
        steps = valid.sum().clamp(min=1)
        per_dim = errors.detach().sum(dim=(0, 1)) / steps
        if reduction == "none":
            loss = errors.sum(dim=(1, 2)) / (valid.sum(dim=(1, 2)).clamp(min=1) * action_dim)
        else:
            loss = errors.sum() / (steps * action_dim)
        return loss, {"loss_per_dim": per_dim}

    def _noise_and_time(self, batch: dict[str, Any], actions: Tensor) -> tuple[Tensor, Tensor]:
        noise, time, config = batch.get("noise"), batch.get("time"), self.config
        if noise is None:
            noise = sample_noise(tuple(actions.shape), actions.device)
        if time is None:
            time = sample_time(
                len(actions),
                actions.device,
                alpha=config.time_sampling_beta_alpha,
                scale=config.time_sampling_scale,
                offset=config.time_sampling_offset,
            )
        return noise, time

    def _delay(self, batch: dict[str, Any], size: int) -> Tensor | None:
        """Of each sample the steps that are given, int64 [B]; None where the policy is trained without."""
        most = choices_of(self.config).rtc_training_max_delay
        if not most:
            return None
        delay = batch.get(INFERENCE_DELAY)
        device = next(self.parameters()).device
        return torch.randint(most + 1, (size,), device=device) if delay is None else delay

    def for_inference(self) -> "Pi0Policy":
        """Turn this policy, in place, into one that only samples, with low latency; returns itself.

        With dtype bfloat16 the large matrices are rounded to bfloat16 once, which halves their memory and
        gives the actions that autocast gives, up to rounding; norms and the layers around the action expert
        stay in float32. What multiplies the same vectors becomes one matrix. On a CUDA device the first chunk
        compiles layers and Euler steps, unless `config.compile_chunks` is off (elsewhere, if
        `config.compile_model` is on); and the first one of each shape is captured as a CUDA graph, which
        later ones replay, unless `config.cuda_graphs` is off. Where the compiler fails, a warning says so and
        nothing is compiled. Where the batch says how long its prompts are, as the policy's preprocessor does,
        nothing waits for the device.

        Afterwards it can neither be trained nor saved: no float32 weights are kept.

        Raises:
            UserError: the policy has adapters that are not merged.
        """
        if self._inference_only:
            return self
        dtype = torch.bfloat16 if self.config.dtype == "bfloat16" else torch.float32
        try:
            prepare_for_inference(self.model, dtype)
        except TypeError as error:
            raise UserError(f"for_inference: {error}") from None
        self._inference_only = True
        by_default = choices_of(self.config).compile_chunks and is_checked(next(self.parameters()).device)
        if by_default or self.config.compile_model:
            # By default nothing is tried out, which takes minutes.
            self.model.compile_for_sampling(self.config.compile_mode if self.config.compile_model else None)
            self._compiler_is_new = True
            logger.info(
                "the first chunk compiles the network, a minute or two where %s has nothing of it yet "
                "(else --policy.compile_chunks=false)",
                keep_compiled(),
            )
        return self.eval()

    def _refuse_after_for_inference(self, verb: str) -> None:
        if self._inference_only:
            raise UserError(
                f"this policy cannot be {verb}: for_inference rounded its weights; load the checkpoint again"
            )

    # `lerobot-rollout --use_torch_compile=true` compiles whatever has this name as a whole.
    @torch.compiler.disable
    def predict_action_chunk(
        self, batch: dict[str, Any], noise: Tensor | None = None, **choices: Any
    ) -> Tensor:
        """Sample normalised actions, float32 [B, H, D], for a processed batch.

        With `num_samples` above 1 the chunk of `sample_chunks` that is nearest to their mean. See there for
        the arguments, and for the errors.
        """
        return nearest_to_mean(self.sample_chunks(batch, noise, **choices))

    def sample_chunks(
        self,
        batch: dict[str, Any],
        noise: Tensor | None = None,
        *,
        num_steps: int | None = None,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """Sample `config.num_samples` chunks, N, of normalised actions, float32 [B, N, H, D].

        The images and the prompt of a sample are read once for all its chunks. Cameras that are absent in
        every sample, and words beyond the longest prompt, take no work.

        Args:
            batch: as for `forward`, without actions; `noise` in it is used when the argument is not given.
                Guidance needs the prompts without indicator too, which the policy's processor gives.
            noise: standard normal to start from, [B, N, H, A], or [B, H, A] where N is 1; drawn when absent.
            num_steps: Euler steps; `config.num_inference_steps` when absent.
            inference_delay: for real-time chunking, how many steps the robot will have executed of the
                previous chunk when this one is ready. A policy trained with `rtc_training_max_delay` starts
                with exactly these; others are guided by what is left.
            prev_chunk_left_over: the previous chunk's normalised actions [T, D] or [B, T, D] that are not
                executed yet, T <= H; without them nothing guides the chunk.
            execution_horizon: after this many steps they count no more; `config.rtc_config` says it when
                absent.

        Raises:
            UserError: the batch does not fit the policy or its guidance, or the last three arguments do not
                fit together or are given to a policy without `rtc_config`.
        """
        left_over = LeftOver(inference_delay, prev_chunk_left_over, execution_horizon)
        left_over.check(self.config)
        self.eval()
        num_steps = num_steps or self.config.num_inference_steps
        # A caller's inference mode would compile everything once more, and could not record.
        with torch.inference_mode(False), torch.no_grad(), self.autocast():
            observation = trimmed(self.config, batch, self._observe(batch))
            noise = self._noise_to_sample_from(batch if noise is None else {"noise": noise}, observation)
            chunks = len(noise) // len(observation.state)
            actions = self._compiled_or_not(
                lambda: self._sample_after(left_over, observation, noise, num_steps)
            )
        actions = actions[..., : self._action_dim]
        return actions.unflatten(0, (chunks, -1)).transpose(0, 1)

    def _compiled_or_not(self, sample: Callable[[], Tensor]) -> Tensor:
        """Sample; where the compiler fails at the first chunk, once more and from now on without it."""
        if not self._compiler_is_new:
            return sample()
        self._compiler_is_new = False
        try:
            return sample()
        except (torch.OutOfMemoryError, UserError):
            raise
        except Exception as error:  # compilers raise what they like
            self.model.leave_uncompiled()
            self._captured.clear()
            actions = sample()
            logger.warning(
                "chunks cannot be compiled here (%s): they are computed without, as by "
                "--policy.compile_chunks=false",
                innermost_line(error),
            )
            return actions

    def _sample_after(
        self, left_over: LeftOver, observation: Observation, noise: Tensor, num_steps: int
    ) -> Tensor:
        """Sample chunks, [N B, H, A], that go on from what is left of the one before, if anything is."""
        processor, chunks = self.rtc_processor, len(noise) // len(observation.state)
        given = given_actions(self.config, left_over, noise, chunks)
        if processor is not None and processor.is_debug_enabled():
            return sample_recorded(
                self.model,
                observation,
                noise,
                num_steps,
                processor=processor,
                enabled=rtc_enabled(self.config),
                left_over=left_over,
                guidance=self.guidance,
                given=given,
                action_dim=self._action_dim,
            )
        pull = None
        if processor is not None and rtc_enabled(self.config) and given is None:
            pull = pulling_actions(processor, left_over, noise, chunks)
        if not self._captures(noise, observation):
            return sample_actions(
                self.model, observation, noise, num_steps, self.guidance, given, pull, self._action_dim
            )
        limit = None if pull is None else pull.limit
        known = given or (() if pull is None else pull[:2])
        return self._captured(*observation[:5], noise, *known, variant=(num_steps, self.guidance, limit))

    @property
    def _action_dim(self) -> int:
        """D, how many numbers an action of the robot has."""
        return self.config.action_feature.shape[0]

    def _captures(self, noise: Tensor, observation: Observation) -> bool:
        """Whether a chunk is replayed as a CUDA graph."""
        wanted = self._inference_only and choices_of(self.config).cuda_graphs
        return wanted and noise.is_cuda and observation.packing is None

    def _noise_to_sample_from(self, batch: dict[str, Any], observation: Observation) -> Tensor:
        """Noise [N B, H, A] for N chunks of each sample: all samples, then all once more."""
        config, size = self.config, len(observation.state)
        shape = (size, choices_of(config).num_samples, config.chunk_size, config.max_action_dim)
        noise = batch.get("noise")
        if noise is None:
            noise = sample_noise(shape, observation.state.device)
        elif noise.ndim == 3:
            noise = noise[:, None]
        if noise.shape != shape:
            raise UserError(f"noise has shape {list(noise.shape)}, and {list(shape)} is needed")
        return noise.transpose(0, 1).flatten(0, 1)

    def set_guidance(self, strength: float) -> None:
        """Follow the advantage indicator with this strength, beta, from the next chunk on.

        1 is the policy as it was trained, 0 the policy without indicator; what is above 1 goes beyond what
        was seen, and computes both. See `depi.models.sampling`.

        Raises:
            UserError: it is not between 0 and 100.
        """
        if not 0 <= strength <= STRONGEST_GUIDANCE:
            raise UserError(f"the policy's guidance must be 0 to {STRONGEST_GUIDANCE:g}, not {strength}")
        self.guidance = float(strength)

    def _observe(self, batch: dict[str, Any]) -> Observation:
        """What `sample_actions` wants: with guidance all prompts, then all without their indicator."""
        observation = self.observe(batch)
        if self.guidance == 1.0:
            return observation
        if UNCONDITIONAL_TOKENS not in batch:
            raise UserError(
                f"guidance {self.guidance:g} needs a policy that was trained with an advantage indicator "
                "(--advantage.mode), and batches that its own processor has made"
            )
        tokens = torch.cat((observation.tokens, batch[UNCONDITIONAL_TOKENS]))
        token_mask = torch.cat((observation.token_mask, batch[UNCONDITIONAL_MASK].bool()))
        return observation._replace(tokens=tokens, token_mask=token_mask, packing=None)

    def _sample(self, *inputs: Any) -> Tensor:
        """What is captured: `sample_actions`.

        The inputs are an observation's tensors, noise, those of any `Given` or `Pull`, and (Euler steps,
        guidance, limit of the `Pull`).
        """
        observation, noise, known = Observation(*inputs[:5]), inputs[5], inputs[6:-1]
        num_steps, guidance, limit = inputs[-1]
        pull = None if limit is None else Pull(known[0], known[1], limit)
        given = Given(*known) if known and pull is None else None
        # Casts must not outlive the capture, which reuses their memory.
        with torch.autocast(noise.device.type, torch.bfloat16, self.config.dtype == "bfloat16", False):
            return sample_actions(
                self.model, observation, noise, num_steps, guidance, given, pull, self._action_dim
            )

    def _apply(self, *args: Any, **kwargs: Any) -> "Pi0Policy":
        """What moves or casts the weights; graphs of the old ones are worthless."""
        self._captured.clear()
        return super()._apply(*args, **kwargs)

    def supports_rtc(self) -> bool:
        """LeRobot asks before it chunks in real time."""
        return True

    def init_rtc_processor(self) -> None:
        """Follow `config.rtc_config`, which LeRobot's commands set after loading."""
        self.rtc_processor = rtc_processor(self.config)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next normalised action [B, D]; samples a new chunk every `config.n_action_steps` calls.

        Raises:
            UserError: real-time chunking is on, which needs to know what is left of the previous chunk; or
                actions are relative to the state at a chunk's first step, which a caller of later steps would
                no longer have.
        """
        if self.config.use_relative_actions and self.config.n_action_steps > 1:
            raise UserError(
                "select_action cannot give relative actions one by one, each would be added to the state of "
                "its own step: call predict_action_chunk, use depi eval or lerobot-rollout with "
                "--inference.type=rtc, or set n_action_steps to 1"
            )
        if rtc_enabled(self.config):
            raise UserError("select_action cannot chunk in real time: set rtc_config to null")
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **kwargs)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.transpose(0, 1))
        return self._queue.popleft()

    def _save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As `OwnPolicy`, unless weights were rounded."""
        self._refuse_after_for_inference("saved")
        super()._save_pretrained(*args, **kwargs)
