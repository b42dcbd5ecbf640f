"""What a network sees of a processed batch: cameras, prompt, state, and which of them are there.

Letters in shapes:
    B batch   C camera slots   R image side in pixels   S size of the robot's state   X the room for it
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from lerobot.policies.common.vla_utils import resize_with_pad_torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from depi.errors import UserError
from depi.models.packing import pack
from depi.models.sampling import trim
from depi.models.scene import Observation
from depi.policies.choices import choices_of
from depi.policies.configuration import dimensions_of
from depi.policies.measured_tokenizer import LONGEST_PROMPT

# The key of a batch under which `pack_batch` puts the packing.
PACKING = "packing"


class InputsConfig(Protocol):
    """The part of a policy's configuration that describes its inputs."""

    image_resolution: tuple[int, int]
    max_state_dim: int

    @property
    def image_features(self) -> dict[str, Any]:
        """Its cameras, by key."""
        ...


def observe(config: InputsConfig, batch: Mapping[str, Any]) -> Observation:
    """Gather a network's inputs from a processed batch; see `Pi0Policy.forward` for its keys.

    Raises:
        UserError: the batch has none of the policy's cameras, no prompt or state, or a larger state than the
            policy's.
    """
    for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK, OBS_STATE):
        if key not in batch:
            raise UserError(f"the batch has no {key}: the policy's preprocessor should have made it")
    images, image_mask = _gather_images(config, batch)
    return Observation(
        images,
        image_mask,
        batch[OBS_LANGUAGE_TOKENS],
        batch[OBS_LANGUAGE_ATTENTION_MASK].bool(),
        pad_last(batch[OBS_STATE].float(), config.max_state_dim),
        batch.get(PACKING),
    )


def _gather_images(config: InputsConfig, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Images [B, C, 3, R, R] and bool [B, C] of the C cameras that the batch has."""
    keys = present_cameras(config, batch)
    antialias = choices_of(config).image_antialias
    fitted = [letterbox(batch[key], config.image_resolution, antialias) for key in keys]
    if len({image.dtype for image in fitted}) > 1:
        fitted = [to_float(image) for image in fitted]
    return torch.stack(fitted, dim=1), camera_mask(config, batch)


def present_cameras(config: InputsConfig, batch: Mapping[str, Any]) -> list[str]:
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


def camera_mask(config: InputsConfig, batch: Mapping[str, Any]) -> Tensor:
    """Which samples have which of the `present_cameras`: bool [B, C]."""
    masks = []
    for key in present_cameras(config, batch):
        padding = batch.get(f"{key}_is_pad")
        if padding is None:
            padding = torch.zeros(len(batch[key]), dtype=torch.bool, device=batch[key].device)
        masks.append(~padding.reshape(-1))
    return torch.stack(masks, dim=1)


def trimmed(config: InputsConfig, batch: Mapping[str, Any], observation: Observation) -> Observation:
    """`trim` an observation of a processed batch; the device is only asked for what the batch does not say.

    A policy's preprocessor says how long prompts are, and a robot's batch marks no camera as absent.
    """
    marked = any(f"{key}_is_pad" in batch for key in config.image_features)
    return trim(observation, batch.get(LONGEST_PROMPT), all_cameras=not marked)


def pack_batch(config: InputsConfig, batch: dict[str, Any]) -> dict[str, Any]:
    """A processed batch on the CPU with its packing, so that a policy's `forward` skips what is absent."""
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


def letterbox(images: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Fit [B, 3, h, w] into `size` undistorted, with black around it; images of that size are left alone.

    With `antialias` as openpi does it, else as LeRobot does.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"camera images must have shape [batch, 3, height, width], not {list(images.shape)}")
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return (_resize_with_pad if antialias else resize_with_pad_torch)(to_float(images), *size)


def _resize_with_pad(images: Tensor, height: int, width: int) -> Tensor:
    """LeRobot's `resize_with_pad_torch` for floats, with antialiasing."""
    ratio = max(images.shape[-1] / width, images.shape[-2] / height)
    inner = [max(1, int(side / ratio)) for side in images.shape[-2:]]
    scaled = F.interpolate(images, inner, mode="bilinear", align_corners=False, antialias=True)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    return F.pad(scaled, (left, width - inner[1] - left, top, height - inner[0] - top))
