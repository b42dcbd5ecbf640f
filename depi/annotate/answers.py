"""What a model answers at each stage: its JSON schema, and a strict parser."""

import json
import re
from collections.abc import Sequence
from typing import Any

from depi.annotate.templates import INSTRUCTION, REFINEMENT, VIEWS
from depi.datasets.samples.annotations import ANNOTATED_VIEWS

MAX_ANSWER_CHARS = 16_384
MAX_STRING = 600
MAX_ITEMS = 30
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
# Greedy, and on stripped text: `\s*` beside `.*?` would take hours for thousands of empty lines.
_FENCE = re.compile(r"```(?:json)?[ \t\r]*\n(.*)```\Z", re.DOTALL)

_TEXT: dict[str, Any] = {"type": "string", "maxLength": MAX_STRING}
_TEXTS: dict[str, Any] = {"type": "array", "items": _TEXT, "maxItems": MAX_ITEMS}
_SHARE: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
_KEYS: dict[str, dict[str, Any]] = {
    INSTRUCTION: {
        "start": _TEXT,
        "end": _TEXT,
        "objects": _TEXTS,
        "instruction": _TEXT,
        "confidence": _SHARE,
    },
    REFINEMENT: {"seen": _TEXTS, "not_seen": _TEXTS, "instruction": _TEXT, "confidence": _SHARE},
}


class AnswerError(Exception):
    """An answer does not follow its schema; the message says how."""


def schema(stage: str, cameras: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON schema of a stage's answer; `cameras` are the names that VIEWS asks for."""
    if stage == VIEWS:
        return _object({"views": _object({name: _view() for name in cameras})})
    return _object(_KEYS[stage])


def _view() -> dict[str, Any]:
    return {"type": "string", "enum": list(ANNOTATED_VIEWS)}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def parse(stage: str, text: str, cameras: Sequence[str] = ()) -> dict[str, Any]:
    """The answer of a stage, which must be one JSON object with exactly the keys that were asked for.

    A code fence around it and a `<think>` block before it are removed.

    Raises:
        AnswerError: it is not.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise AnswerError(f"the answer has {len(text)} characters")
    text = _THOUGHTS.sub("", text).strip()
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"the answer is not valid JSON: {error}") from None
    _check(value, schema(stage, cameras), "the answer")
    return value


def fits(stage: str, value: Any) -> bool:
    """Whether a value, such as a journal's, is an answer of INSTRUCTION or REFINEMENT."""
    try:
        _check(value, schema(stage), "")
    except AnswerError:
        return False
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key comes twice")
    return value


def _check(value: Any, rule: dict[str, Any], name: str) -> None:
    """Raise an AnswerError where a value does not follow a schema of the kinds used here."""
    kind = rule["type"]
    if kind == "object":
        if not isinstance(value, dict) or set(value) != set(rule["required"]):
            raise AnswerError(f"{name} does not have exactly the keys {', '.join(rule['required'])}")
        for key, inner in rule["properties"].items():
            _check(value[key], inner, key)
    elif kind == "array":
        if not isinstance(value, list) or len(value) > rule["maxItems"]:
            raise AnswerError(f"{name} is no list of at most {rule['maxItems']} texts")
        for item in value:
            _check(item, rule["items"], name)
    elif kind == "number":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise AnswerError(f"{name} is no number")
        if not rule["minimum"] <= value <= rule["maximum"]:  # so is NaN
            raise AnswerError(f"{name} is {value}, expected {rule['minimum']} to {rule['maximum']}")
    elif not isinstance(value, str) or len(value) > rule.get("maxLength", MAX_STRING):
        raise AnswerError(f"{name} is no text of at most {MAX_STRING} characters")
    elif "enum" in rule and value not in rule["enum"]:
        raise AnswerError(f"{name} is none of {', '.join(rule['enum'])}")
    elif not value.isascii() and any(0xD800 <= ord(letter) <= 0xDFFF for letter in value):
        raise AnswerError(f"{name} holds half a character")
