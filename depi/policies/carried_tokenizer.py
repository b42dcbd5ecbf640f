"""A tokenizer that a checkpoint carries: whoever has the checkpoint needs no other repository."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from lerobot.processor import PolicyProcessorPipeline, TokenizerProcessorStep
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from depi.hub.server.tokenizer import SETTINGS, build_tokenizer
from depi.policies.measured_tokenizer import MeasuredTokenizerStep, settings_of

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
# PaliGemma's takes 34 MB as text.
MOST_BYTES = 100_000_000
# The names of its two documents, both JSON, among a step's tensors.
_VOCABULARY, _SPECIAL = "tokenizer", "special_tokens"


@dataclass
class CarriedTokenizerStep(MeasuredTokenizerStep):
    """LeRobot's tokenizer step; a tokenizer that it is given, and not named, is saved with it.

    Without name and tokenizer it waits for `load_state_dict`, by which LeRobot brings back what was saved.
    """

    # LeRobot imports a step without a registered name by its class: nobody has to register it first. The name
    # of LeRobot's step would be inherited.
    _registry_name: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if self.tokenizer is not None or self.tokenizer_name is not None:
            super().__post_init__()

    def state_dict(self) -> dict[str, Tensor]:
        """The tokenizer as two JSON documents, each uint8 (bytes,); nothing where it goes by its name."""
        return {} if self.tokenizer is None else pack_tokenizer(self.tokenizer)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a tokenizer that was saved.

        Raises:
            ValueError: it is none.
        """
        self.tokenizer = self.input_tokenizer = unpack_tokenizer(state)

    def _tokenize_text(self, text: str | list[str]) -> dict[str, Tensor]:
        with _panics_as_errors():
            return super()._tokenize_text(text)


def small_tokenizer() -> PreTrainedTokenizerFast:
    """DePi's own tokenizer of 1,024 tokens, for networks with fewer words than PaliGemma has."""
    return PreTrainedTokenizerFast(tokenizer_object=build_tokenizer(), **SETTINGS)


def carrying(pre: PolicyProcessorPipeline) -> PolicyProcessorPipeline:
    """The same preprocessing, but its tokenizer is saved with it."""
    steps = []
    for step in pre.steps:
        if isinstance(step, TokenizerProcessorStep):
            settings = {**settings_of(step), "tokenizer_name": None, "tokenizer": step.input_tokenizer}
            step = CarriedTokenizerStep(**settings)
        steps.append(step)
    return dataclasses.replace(pre, steps=steps)


def carried_by(pre: PolicyProcessorPipeline) -> PreTrainedTokenizerBase | None:
    """The tokenizer that is saved with a preprocessor; None where it goes by its name."""
    return next((step.tokenizer for step in pre.steps if isinstance(step, CarriedTokenizerStep)), None)


def pack_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """A tokenizer as tensors of bytes, the inverse of `unpack_tokenizer`."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()  # both are left behind by the last call, and set by the next
    backend.no_truncation()
    special = {name: str(value) for name in SPECIAL_TOKENS if (value := getattr(tokenizer, name)) is not None}
    documents = {_VOCABULARY: backend.to_str(), _SPECIAL: json.dumps(special)}
    return {
        name: torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())
        for name, text in documents.items()
    }


def unpack_tokenizer(state: dict[str, Tensor]) -> PreTrainedTokenizerFast:
    """The tokenizer in the tensors of `pack_tokenizer`; only data is read, and no code is loaded.

    Raises:
        ValueError: they hold none.
    """
    if state.keys() != {_VOCABULARY, _SPECIAL}:
        raise ValueError("the tensors of a tokenizer are missing")
    special = json.loads(_text(state[_SPECIAL]))
    known = isinstance(special, dict) and special.keys() <= set(SPECIAL_TOKENS)
    if not known or not all(isinstance(token, str) for token in special.values()):
        raise ValueError("the special tokens of the tokenizer are malformed")
    if "pad_token" not in special:
        raise ValueError("the tokenizer has no token for padding")
    text = _text(state[_VOCABULARY])
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("the tokenizer is no JSON object")
    for part in ("normalizer", "pre_tokenizer"):
        _check_patterns(content.get(part))
    with _panics_as_errors():
        backend = Tokenizer.from_str(text)
        missing = [token for token in special.values() if backend.token_to_id(token) is None]
        if missing:
            raise ValueError("the vocabulary of the tokenizer lacks its special tokens")
        return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _check_patterns(content: Any) -> None:
    """Refuse regular expressions: a text can be found for which a stranger's takes for ever."""
    if isinstance(content, dict):
        if "Regex" in content:
            raise ValueError(
                "the tokenizer splits by a regular expression, which is not taken from a checkpoint"
            )
        content = list(content.values())
    if isinstance(content, list):
        for each in content:
            _check_patterns(each)


def largest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest number that a text can be turned into, where special tokens in it are only words.

    Special tokens count where the tokenizer adds them by itself.
    """
    backend = tokenizer.backend_tokenizer
    words = backend.get_vocab(with_added_tokens=False).values()
    added = [number for number, token in backend.get_added_tokens_decoder().items() if not token.special]
    return max([*words, *added, *tokenizer("")["input_ids"], tokenizer.pad_token_id])


def _text(tensor: Tensor) -> str:
    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or len(tensor) > MOST_BYTES:
        raise ValueError("the tensors of a tokenizer are not what they should be")
    return tensor.numpy().tobytes().decode()


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """Turn a panic of the tokenizers library, which is no `Exception`, into a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError("the tokenizer is malformed") from None
