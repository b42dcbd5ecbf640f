"""pi0 as a LeRobot policy: batches in, loss or actions out.

Letters in shapes:
    B batch   C camera slots   R image side in pixels   T prompt tokens   H action steps
    S, D sizes of the robot's state and action   X, A the room that the policy has for them
"""

from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.policies.common.vla_utils import resize_with_pad_torch
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from depi.errors import UserError
from depi.models.packing import pack
from depi.models.pi0 import Observation, Pi0, sample_noise, sample_time
from depi.policies.adapters import merged_state
from depi.policies.configuration import DepiPi0Config, dimensions_of
from depi.policies.convert import save_weights

# The key of a batch under which `pack_batch` puts the packing.
PACKING = "packing"


class Pi0Policy(PreTrainedPolicy):
    """pi0 behind LeRobot's policy interface, for `pi0` and `depi_pi0` configurations.

    The constructor leaves weights as PyTorch makes them; use `make_policy` or `load_policy`.
    Files on disk have LeRobot's names, whatever the size.
    """

    config_class = DepiPi0Config
    name = "depi_pi0"

    def __init__(self, config: PI0Config, **_: Any):
        super().__init__(config)
        config.validate_features()
        self.config: PI0Config = config
        self.model = Pi0(dimensions_of(config))
        self.model.set_recompute(float(config.gradient_checkpointing))
        self._freeze()
        if config.compile_model:
            self.model.compile_layers(mode=config.compile_mode)
        self.reset()

    def _freeze(self) -> None:
        model = self.model
        frozen = []
        if self.config.freeze_vision_encoder:
            frozen = [model.vision]
        if self.config.train_expert_only:
            frozen = [model.vision, model.image_proj, model.token_embedding, model.prefix]
        for part in frozen:
            part.requires_grad_(False)

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """The parameters to train."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Forget the queued actions: a new episode begins."""
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, Tensor]]:
        """Flow-matching loss of a processed batch.

        Args:
            batch: cameras under the keys of `config.image_features`, [B, 3, h, w], uint8 0..255 or float
                0..1, with an optional bool `<key>_is_pad` [B] beside each (True: the sample has no such one);
                normalised `observation.state` [B, S] and `action` [B, H, D]; optional bool `action_is_pad`
                [B, H]; language tokens and their mask; optional `noise` [B, H, A] and `time` [B], else drawn;
                optional `packing`, see `pack_batch`: the same loss without the work for what is absent.
            reduction: "mean" over the steps that are no padding and the D action dimensions, or "none" for
                one such mean per sample, [B].

        Returns:
            The loss, and `{"loss_per_dim": [D]}` on the same device. Nothing waits for the device.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', not {reduction!r}")
        observation = self.observe(batch)
        action_dim = batch[ACTION].shape[-1]
        actions = pad_last(batch[ACTION], self.config.max_action_dim)
        noise, time = self._noise_and_time(batch, actions)
        errors = self.model(observation, actions, noise, time)[..., :action_dim]  # [B, H, D]
        if "action_is_pad" in batch:
            valid = ~batch["action_is_pad"][..., None]  # [B, H, 1]
        else:
            valid = torch.ones_like(errors[..., :1], dtype=torch.bool)
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

    def observe(self, batch: dict[str, Any]) -> Observation:
        """Gather the network's inputs from a processed batch; see `forward` for its keys."""
        images, image_mask = self._gather_images(batch)
        return Observation(
            images,
            image_mask,
            batch[OBS_LANGUAGE_TOKENS],
            batch[OBS_LANGUAGE_ATTENTION_MASK].bool(),
            pad_last(batch[OBS_STATE].float(), self.config.max_state_dim),
            batch.get(PACKING),
        )

    def _gather_images(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Images [B, C, 3, R, R] and bool [B, C] of the C cameras that the batch has."""
        keys = present_cameras(self.config, batch)
        fitted = [letterbox(batch[key], self.config.image_resolution) for key in keys]
        if len({image.dtype for image in fitted}) > 1:
            fitted = [to_float(image) for image in fitted]
        return torch.stack(fitted, dim=1), camera_mask(self.config, batch)

    @torch.no_grad()
    def predict_action_chunk(
        self, batch: dict[str, Any], noise: Tensor | None = None, *, num_steps: int | None = None, **rtc: Any
    ) -> Tensor:
        """Sample normalised actions [B, H, D] for a processed batch.

        Args:
            batch: as for `forward`, without actions; `noise` in it is used when the argument is not given.
            noise: standard normal [B, H, A] to start from; drawn when absent.
            num_steps: Euler steps; `config.num_inference_steps` when absent.
            rtc: real-time chunking inputs, which must be None.
        """
        if any(value is not None for value in rtc.values()):
            raise UserError(f"predict_action_chunk: {', '.join(rtc)} is not available yet")
        self.eval()
        observation = self.observe(batch)
        if noise is None:
            noise = batch.get("noise")
        if noise is None:
            shape = (len(observation.state), self.config.chunk_size, self.config.max_action_dim)
            noise = sample_noise(shape, observation.state.device)
        with self.autocast():
            actions = self.model.sample_actions(
                observation, noise, num_steps=num_steps or self.config.num_inference_steps
            )
        return actions[..., : self.config.action_feature.shape[0]]

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next normalised action [B, D]; samples a new chunk every `config.n_action_steps` calls."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **kwargs)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.transpose(0, 1))
        return self._queue.popleft()

    def autocast(self) -> AbstractContextManager:
        """bfloat16 compute if `config.dtype` says so; parameters are float32 either way."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.dtype == "bfloat16")

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write config.json and model.safetensors; `state_dict` is this policy's, gathered by the caller.

        Adapters are merged into the weights.
        """
        self.config._save_pretrained(save_directory)
        state = merged_state(state_dict or self.state_dict(), self.model)
        save_weights(save_directory / "model.safetensors", state, self.model.dimensions)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        revision: str | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> "Pi0Policy":
        """`load_policy` under the name that LeRobot calls."""
        from depi.policies.factory import load_policy

        return load_policy(
            pretrained_name_or_path, revision=revision, strict=strict, config=kwargs.get("config")
        )


def present_cameras(config: PI0Config, batch: Mapping[str, Any]) -> list[str]:
    """Which of the policy's cameras a batch has, in the policy's order.

    Raises:
        UserError: none of them.
    """
    keys = list(config.image_features)
    present = [key for key in keys if key in batch]
    if not present:
        found = ", ".join(key for key in batch if key.startswith("observation.image")) or "none"
        raise UserError(f"the batch has none of the policy's cameras ({', '.join(keys)}); it has: {found}")
    return present


def camera_mask(config: PI0Config, batch: Mapping[str, Any]) -> Tensor:
    """Which samples have which of the `present_cameras`: bool [B, C]."""
    masks = []
    for key in present_cameras(config, batch):
        padding = batch.get(f"{key}_is_pad")
        if padding is None:
            padding = torch.zeros(len(batch[key]), dtype=torch.bool, device=batch[key].device)
        masks.append(~padding.reshape(-1))
    return torch.stack(masks, dim=1)


def pack_batch(config: PI0Config, batch: dict[str, Any]) -> dict[str, Any]:
    """A processed batch on the CPU with its packing, so that `Pi0Policy.forward` skips what is absent."""
    token_mask = batch[OBS_LANGUAGE_ATTENTION_MASK].bool()
    patches = dimensions_of(config).patches
    return {**batch, PACKING: pack(camera_mask(config, batch), token_mask, patches)}


def pad_last(values: Tensor, size: int) -> Tensor:
    """Pad the last dimension with zeros up to `size`.

    Raises:
        UserError: it is already larger.
    """
    if values.shape[-1] > size:
        raise UserError(f"a vector of {values.shape[-1]} numbers does not fit into the policy's {size}")
    return F.pad(values, (0, size - values.shape[-1]))


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 0..1; floats stay as they are."""
    return images.float() / 255.0 if images.dtype == torch.uint8 else images.float()


def letterbox(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Fit [B, 3, h, w] into `size` undistorted, with black around it; images of that size are left alone."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"camera images must have shape [batch, 3, height, width], not {list(images.shape)}")
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return resize_with_pad_torch(to_float(images), *size)
