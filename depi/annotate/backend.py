"""The interface of a back end: one question with images in, one text out; many threads may call it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from depi.errors import UserError

MAX_TOKENS = 512


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    stage: one of `depi.annotate.templates.STAGES`
    system: rules, the same for all questions
    images: (label, JPEG) in order, the same for all questions about an episode; they come before `text`, so
        that a server can cache what it computed for them
    text: the question of the stage
    schema: JSON schema of the answer
    max_tokens: of the answer
    """

    stage: str
    system: str
    images: tuple[tuple[str, bytes], ...]
    text: str
    schema: Mapping[str, Any]
    max_tokens: int = MAX_TOKENS


@dataclass(frozen=True)
class Reply:
    """What a model answered, not yet checked; `cut` where it ran out of tokens."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: bool = False


class BackendError(Exception):
    """A question got no usable answer; the message is the reason, in one sentence."""


class UnreachableError(BackendError):
    """The server cannot be reached, or keeps failing: the next question will probably fail too."""


class HopelessError(UserError):
    """No question of this call will ever be answered: a wrong key, no such model."""


class Backend(Protocol):
    """A vision-language model.

    name: of the back end
    model: id of the model
    """

    name: str
    model: str

    def ask(self, question: Question) -> Reply:
        """Answer a question; any thread may call it.

        Raises:
            BackendError: there is no answer.
            HopelessError: there will never be one.
        """

    def close(self) -> None:
        """Free connections or memory."""
