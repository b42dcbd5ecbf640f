"""The advantage indicator: a line of the prompt that says whether what the policy does is better than usual.

The prompt of a policy that was trained with it is `TASK`, a newline, `Advantage: positive` or
`Advantage: negative`, and a newline (RECAP: the pi0.6* paper by Physical Intelligence, 2025). Without
indicator it is the task and a newline, as pi0's prompts always are. With PaliGemma's vocabulary the indicator
takes about 4 of the 48 tokens of `tokenizer_max_length`; of a prompt that is too long the task is cut,
never the indicator.

pi0.5's prompts, in LeRobot as in openpi, are `Task: TASK, State: NUMBERS;`, a newline, and `Action: `; the
indicator is a line before the last. Of a prompt that is too long, what is cut comes before the indicator too.
"""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.lerobot_types import TransitionKey
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor import PolicyProcessorPipeline, TokenizerProcessorStep
from lerobot.utils.constants import (
    OBS_LANGUAGE,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    OBS_STATE,
)
from torch import Tensor

from depi.policies.carried_tokenizer import CarriedTokenizerStep
from depi.policies.measured_tokenizer import LONGEST_PROMPT, last_place, settings_of

INDICATORS = ("negative", "positive")

# The prompt without indicator, for guidance: keys of a processed batch beside those of the prompt.
UNCONDITIONAL_TOKENS = f"{OBS_LANGUAGE}.unconditional_tokens"
UNCONDITIONAL_MASK = f"{OBS_LANGUAGE}.unconditional_mask"

_LINES = tuple(f"Advantage: {indicator}" for indicator in INDICATORS)
# How pi0.5's prompts end.
_ACTION = "\nAction: "


def with_indicator(task: str, positive: bool | None) -> str:
    """The prompt of a task; an indicator at the end of the text is replaced, or with None removed."""
    task, said = _split(task)
    while said is not None:
        task, said = _split(task)
    return task if positive is None else f"{task.rstrip('\n')}\n{_LINES[positive]}"


def plain_prompt(prompt: str) -> str:
    """The prompt in one line of words, as openpi gives it to the tokenizer; an indicator at its end stays.

    The task is stripped, and underscores and line breaks in it become blanks, so that `pick_up_cube` is read
    as words.
    """
    task = with_indicator(prompt, None).strip().replace("_", " ").replace("\n", " ")
    return with_indicator(task, indicator_of(prompt))


def indicator_of(prompt: str) -> bool | None:
    """Whether a prompt says positive or negative; None where it says neither."""
    return _split(prompt)[1]


def _split(prompt: str) -> tuple[str, bool | None]:
    head, _, last = prompt.rstrip().rpartition("\n")
    return (head, last == _LINES[True]) if last in _LINES else (prompt, None)


@dataclass
class AdvantageTokenizerStep(CarriedTokenizerStep):
    """A tokenizer step that ends every prompt with an advantage indicator.

    Texts that end with an indicator already keep theirs. Beside the prompt's tokens [B, L] and mask it gives
    those of the prompt without indicator, under UNCONDITIONAL_TOKENS and UNCONDITIONAL_MASK.

    Args:
        indicator: `positive` or `negative`; None in training, where texts are taken as they are and each
            sample brings its own indicator, or none.
        state_in_prompt: prompts are pi0.5's; the step stands for LeRobot's that writes them, too.
    """

    indicator: str | None = "positive"
    state_in_prompt: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.indicator not in (None, *INDICATORS):
            raise ValueError(f"indicator {self.indicator!r} is none of {', '.join(INDICATORS)}")
        if (self.padding, self.padding_side, self.truncation) != ("max_length", "right", True):
            raise ValueError("prompts with an indicator are padded on the right, to their greatest length")
        if self.input_tokenizer is not None:
            self._check_room()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `CarriedTokenizerStep`."""
        super().load_state_dict(state)
        self._check_room()

    def _check_room(self) -> None:
        if self.max_length < (least := 2 + max(len(self._tail(positive)) for positive in (False, True))):
            raise ValueError(
                f"tokenizer_max_length {self.max_length} has no room for a task and the indicator: "
                f"at least {least} are needed"
            )

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Add tokens int64 [B, L] and masks bool [B, L] of the transition's task to its observation."""
        tasks = self.get_task(self.transition)
        if tasks is None:
            raise ValueError("the task must be a text or a list of texts")
        default = None if self.indicator is None else self.indicator == "positive"
        said = [indicator_of(task) for task in tasks]
        state = observation[OBS_STATE] if self.state_in_prompt else None
        tokens, mask = self.encode(tasks, [default if each is None else each for each in said], state)
        found = {OBS_LANGUAGE_TOKENS: tokens, OBS_LANGUAGE_ATTENTION_MASK: mask}
        if default is not None:
            tokens, mask = self.encode(tasks, [None] * len(tasks), state)
            found |= {UNCONDITIONAL_TOKENS: tokens, UNCONDITIONAL_MASK: mask}
        masks = [found[key] for key in (OBS_LANGUAGE_ATTENTION_MASK, UNCONDITIONAL_MASK) if key in found]
        device = self._detect_device(self.transition)
        tensors = {key: value.to(device) for key, value in found.items()}
        return observation | tensors | {LONGEST_PROMPT: max(map(last_place, masks))}

    def encode(
        self, tasks: Sequence[str], indicators: Sequence[bool | None], state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens int64 [B, L] and mask bool [B, L] of prompts, each with the indicator given for it or none.

        Indicators that the texts end with are left out. Without indicator the tokens are LeRobot's. `state`
        is normalised, [B, S]; only pi0.5's prompts need it.
        """
        bare = [with_indicator(task, None) for task in tasks]
        if state is None:
            plain = [text if text.endswith("\n") else f"{text}\n" for text in bare]
        else:
            plain = prompts_with_state(bare, state)
        encoded = self._tokenize_text(plain)
        tokens, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        for row, (text, positive) in enumerate(zip(plain, indicators, strict=True)):
            if positive is None:
                continue
            tail = self._tail(positive)
            text = text.removesuffix(self._end).rstrip("\n")
            head = self.input_tokenizer(text)["input_ids"][: self.max_length - len(tail)]
            whole = torch.tensor(head + tail)
            tokens[row] = self.input_tokenizer.pad_token_id
            tokens[row, : len(whole)] = whole
            mask[row] = torch.arange(self.max_length) < len(whole)
        return tokens, mask

    @property
    def _end(self) -> str:
        return _ACTION if self.state_in_prompt else "\n"

    def _tail(self, positive: bool) -> list[int]:
        text = f"\n{_LINES[positive]}{self._end}"
        return self.input_tokenizer(text, add_special_tokens=False)["input_ids"]

    def get_config(self) -> dict[str, Any]:
        """What a checkpoint says of this step."""
        told = {"state_in_prompt": True} if self.state_in_prompt else {}
        return super().get_config() | {"indicator": self.indicator} | told


def prompts_with_state(tasks: Sequence[str], state: Tensor) -> list[str]:
    """pi0.5's prompts of tasks and normalised states [B, S], by LeRobot's own step."""
    transition: Any = {
        TransitionKey.OBSERVATION: {OBS_STATE: state},
        TransitionKey.COMPLEMENTARY_DATA: {"task": list(tasks)},
    }
    told = Pi05PrepareStateTokenizerProcessorStep()(transition)
    return told[TransitionKey.COMPLEMENTARY_DATA]["task"]


def conditioned(pre: PolicyProcessorPipeline) -> PolicyProcessorPipeline:
    """The same preprocessing for a policy that was trained with indicators: positive by default.

    Raises:
        ValueError: prompts of this length have no room for an indicator.
    """
    steps = []
    writes_state = False
    for step in pre.steps:
        if isinstance(step, Pi05PrepareStateTokenizerProcessorStep):
            writes_state = True  # it would take an indicator for a part of the task
            continue
        if isinstance(step, TokenizerProcessorStep):
            step = AdvantageTokenizerStep(**settings_of(step), state_in_prompt=writes_state)
        steps.append(step)
    return dataclasses.replace(pre, steps=steps)


def is_conditioned(pre: PolicyProcessorPipeline) -> bool:
    """Whether prompts get an indicator."""
    return any(isinstance(step, AdvantageTokenizerStep) for step in pre.steps)


def as_told(pre: PolicyProcessorPipeline) -> PolicyProcessorPipeline:
    """The same preprocessing for training: prompts have the indicator that their samples bring, or none."""
    steps = []
    for step in pre.steps:
        if isinstance(step, AdvantageTokenizerStep):
            step = copy.copy(step)
            step.indicator = None
        steps.append(step)
    return dataclasses.replace(pre, steps=steps)
