"""The share of the device's speed, and the memory, that training uses."""

from dataclasses import dataclass
from typing import Any

import psutil
import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK

from depi.models.flops import sample_flops
from depi.policies.batches import camera_mask
from depi.policies.configuration import dimensions_of
from depi.policies.factory import AnyPolicy


@dataclass(frozen=True)
class Card:
    """What a GPU does a second by its vendor's datasheet: dense bfloat16 operations, and bytes if noted."""

    operations: float
    bytes: float | None = None


# Where one name contains another, the longer one is taken.
CARDS = {
    "A10": Card(125e12),
    "A100": Card(312e12),
    "H100": Card(989e12, 3.35e12),
    "H100 NVL": Card(835e12),
    "H100 PCIe": Card(756e12),
    "H200": Card(989e12, 4.8e12),
    "H200 NVL": Card(835e12),
    "GH200": Card(989e12),
    "B200": Card(2250e12),
    "L4": Card(121e12),
    "L40S": Card(362e12),
    "RTX 3090": Card(71e12),
    "RTX 4090": Card(165e12),
    "RTX A6000": Card(155e12),
    "RTX 5090": Card(209e12),
}


def card_of(name: str) -> Card | None:
    """The card that a device's name names, None where its figures are not known."""
    words = f" {name} ".replace("-", " ")
    known = [card for card in CARDS if f" {card} " in words]
    return CARDS[max(known, key=len)] if known else None


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 operations per second of a device, None where that is not known."""
    card = card_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if card is None else card.operations


def memory_gb(device: torch.device) -> float:
    """The peak of allocated memory on a GPU, or the resident memory of this process now, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9


class FlopsCounter:
    """Counts the operations of the model without padding and without recomputation.

    Frozen parts need fewer than `sample_flops` counts, so it is for policies that are trained whole.
    """

    def __init__(self, policy: AnyPolicy) -> None:
        self.config, self.dimensions = policy.config, dimensions_of(policy.config)
        self.reset()

    def reset(self) -> None:
        """Start again from zero."""
        # By number of cameras: samples and prompt tokens.
        self.counts = torch.zeros(len(self.config.image_features) + 1, 2, dtype=torch.int64)

    def add(self, batch: dict[str, Any]) -> None:
        """Count the samples of a batch that is still on the CPU."""
        cameras = camera_mask(self.config, batch).sum(dim=1)
        tokens = batch[OBS_LANGUAGE_ATTENTION_MASK].sum(dim=1)
        self.counts.index_add_(0, cameras, torch.stack([torch.ones_like(tokens), tokens], dim=1))

    def total(self) -> float:
        """Operations of forward and backward passes; prompts of a number of cameras count as their mean."""
        return sum(
            samples * float(sample_flops(self.dimensions, cameras, round(tokens / samples)).training())
            for cameras, (samples, tokens) in enumerate(self.counts.tolist())
            if samples
        )
