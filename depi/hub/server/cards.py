"""A repository's card: the YAML front matter of README.md, and the tags made from it."""

import math
from typing import Any

import yaml

MAX_FRONT_MATTER = 256 * 1024

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
        # With aliases, a few lines can expand to gigabytes.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise ValueError("the front matter uses YAML aliases")
        card = yaml.safe_load(text)
        if card is None:
            return {}
        if not isinstance(card, dict):
            raise ValueError("the front matter is not a mapping")
        return _plain(card)
    except yaml.YAMLError as error:
        raise ValueError(f"the front matter is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("the front matter is nested too deeply") from None


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
