"""LeRobot's tokenizer step, which also says how long the prompts are, while the host still knows it."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from lerobot.processor import PolicyProcessorPipeline, TokenizerProcessorStep, tokenizer_processor
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# The key of a batch under which the length of its longest prompt is, in tokens; an int.
LONGEST_PROMPT = "observation.language.longest"


class MeasuredTokenizerStep(TokenizerProcessorStep):
    """LeRobot's tokenizer step, saved as such, which also says how long the longest prompt is.

    So a policy need not ask the device where the padding begins. The number, an int, is added to observations
    under LONGEST_PROMPT.
    """

    _longest = 0

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Add the prompts' tokens, their mask, and the length of the longest."""
        self._longest = 0
        observation = super().observation(observation)
        return observation | {LONGEST_PROMPT: self._longest}

    def _tokenize_text(self, text: str | list[str]) -> dict[str, Tensor]:
        encoded = super()._tokenize_text(text)
        self._longest = max(self._longest, last_place(encoded["attention_mask"]))
        return encoded


def last_place(mask: Tensor) -> int:
    """How many places of a mask [B, L] reach to the last one that is set in any row."""
    return int((mask.bool() * torch.arange(1, 1 + mask.shape[1])).amax())


def measured(pre: PolicyProcessorPipeline) -> PolicyProcessorPipeline:
    """The same preprocessing, whose tokenizer also says how long the longest prompt is."""
    steps = []
    for step in pre.steps:
        if type(step) is TokenizerProcessorStep:
            with standing_in(step.input_tokenizer):
                step = MeasuredTokenizerStep(**settings_of(step))
        steps.append(step)
    return dataclasses.replace(pre, steps=steps)


def settings_of(step: TokenizerProcessorStep) -> dict[str, Any]:
    """The arguments that make a tokenizer step like this one."""
    return {field.name: getattr(step, field.name) for field in dataclasses.fields(step) if field.init}


@contextmanager
def standing_in(tokenizer: PreTrainedTokenizerBase | None) -> Iterator[None]:
    """Let LeRobot's functions that make pipelines take this tokenizer, and not load one by its name.

    They take no tokenizer as an argument. With None, nothing changes.
    """
    if tokenizer is None:
        yield
        return
    given = SimpleNamespace(from_pretrained=lambda name: tokenizer)
    with patch.object(tokenizer_processor, "AutoTokenizer", given):
        yield
