"""A repository's card: the YAML front matter of README.md, and the tags made from it."""

import json
import math
from typing import Any

import yaml

MAX_FRONT_MATTER = 256 * 1024
# A token costs up to 0.1 ms, and on one line as many more as there are open brackets around it.
MAX_TOKENS = 30_000
MAX_DEPTH = 64

# The Hub turns these card fields into `field:value` tags, for filters.
_PREFIXED_FIELDS = ("task_categories", "task_ids", "size_categories", "language", "license", "base_model")


def parse_card(readme: str) -> dict[str, Any]:
    """Return the front matter of a README.md as plain JSON-able values; {} when there is none.

    Raises:
        ValueError: the front matter is not a YAML mapping, or is too large.
    """
    lines = readme.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    closing = next((i for i, line in enumerate(lines[1:], start=1) if line.rstrip() == "---"), None)
    if closing is None:
        return {}
    text = "\n".join(lines[1:closing])
    if len(text) > MAX_FRONT_MATTER:
        raise ValueError(f"the front matter is larger than {MAX_FRONT_MATTER} characters")
    try:
        _check_tokens(text)
        card = yaml.safe_load(text)
        if card is None:
            return {}
        if not isinstance(card, dict):
            raise ValueError("the front matter is not a mapping")
        card = _plain(card)
        # Half a surrogate pair, or a number of 5,000 digits, could not be sent to anybody.
        json.dumps(card, ensure_ascii=False).encode()
        return card
    except UnicodeEncodeError:
        raise ValueError("the front matter is not valid text") from None
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # PyYAML's constructors raise all of these, for values such as `!!int ""` and `!!bool x`.
        text = " ".join(str(error).split()).encode(errors="replace").decode()
        raise ValueError(f"the front matter is not valid YAML: {text}") from None
    except RecursionError:
        raise ValueError("the front matter is nested too deeply") from None


def _check_tokens(text: str) -> None:
    """Refuse what costs more than it weighs, before anything is built from it."""
    depth = 0
    for number, token in enumerate(yaml.scan(text, Loader=yaml.SafeLoader)):
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if isinstance(token, yaml.AliasToken):  # with these a few lines can expand to gigabytes
            raise ValueError("the front matter uses YAML aliases")
        if number >= MAX_TOKENS:
            raise ValueError("the front matter has too many entries")
        if depth > MAX_DEPTH:
            raise ValueError("the front matter is nested too deeply")


_OPENING = (
    *(yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken),
    *(yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken),
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def card_tags(card: dict[str, Any], repo_type: str) -> list[str]:
    """Return the tags that a repository with this card carries, without repetition.

    `tags` stand as they are, other fields as `field:value`; a model's library, pipeline and training
    datasets are tags too.
    """
    tags = _strings(card.get("tags"))
    for field in _PREFIXED_FIELDS:
        tags += [f"{field}:{value}" for value in _strings(card.get(field))]
    if repo_type == "model":
        tags += _strings(card.get("library_name")) + _strings(card.get("pipeline_tag"))
        tags += [f"dataset:{value}" for value in _strings(card.get("datasets"))]
    return list(dict.fromkeys(tags))


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str) and item]
