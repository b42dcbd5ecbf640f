"""Images as several datasets' training saw them, for any program that runs a policy of LeRobot's.

DePi's own networks letterbox what they are given. LeRobot's take images as they come, so that an arm's camera
of 640x480 pixels would show them another picture than the square of their training. The step stands in the
checkpoint's preprocessor; whoever runs it needs DePi installed.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import (
    ObservationProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.utils.constants import OBS_IMAGES
from torch import Tensor

from depi.policies.batches import letterbox


@dataclass
class LetterboxStep(ObservationProcessorStep):
    """Scales cameras to a square as training did, to one of 255 levels; slots without a camera are black.

    Attributes:
        side: of the square, in pixels. Images of that size are left as they are.
        cameras: the keys of the policy's slots.
    """

    side: int = 224
    cameras: list[str] = field(default_factory=list)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Images [..., 3, h, w], uint8 0..255 or float 0..1, become float [..., 3, side, side], 0..1.

        Raises:
            ValueError: no slot has a camera, or one has none beside a camera that is for no slot.
        """
        seen = [key for key in self.cameras if key in observation]
        others = [
            key
            for key in observation
            if key.startswith(OBS_IMAGES) and not key.endswith("_is_pad") and key not in self.cameras
        ]
        if not seen or (others and len(seen) < len(self.cameras)):
            raise ValueError(
                f"the policy sees the cameras {', '.join(self.cameras)}, and here are "
                f"{', '.join([*seen, *others]) or 'none'}: say with --rename_map which is which"
            )
        for key in seen:
            observation[key] = self._fitted(observation[key])
        for key in self.cameras:
            observation.setdefault(key, torch.zeros_like(observation[seen[0]]))
        return observation

    def _fitted(self, image: Tensor) -> Tensor:
        if image.shape[-2:] == (self.side, self.side):
            return image
        square = letterbox(image.reshape(-1, *image.shape[-3:]), (self.side, self.side))
        return square.reshape(*image.shape[:-2], self.side, self.side)

    def get_config(self) -> dict[str, Any]:
        """What is saved of it."""
        return {"side": self.side, "cameras": self.cameras}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """The features as the policy has them."""
        return features


def letterboxing(pre: PolicyProcessorPipeline, side: int, cameras: list[str]) -> PolicyProcessorPipeline:
    """The same preprocessing, which letterboxes images once cameras have the names of slots."""
    first = sum(isinstance(step, RenameObservationsProcessorStep) for step in pre.steps[:1])
    steps = [*pre.steps[:first], LetterboxStep(side, cameras), *pre.steps[first:]]
    return dataclasses.replace(pre, steps=steps)


def letterboxes(pre: PolicyProcessorPipeline | None) -> bool:
    """Whether a preprocessor does so."""
    return pre is not None and any(isinstance(step, LetterboxStep) for step in pre.steps)
