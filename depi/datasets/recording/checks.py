"""Checks of what strangers wrote: numbers, paths, texts. What is not acceptable is a `DatasetError`."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from depi.errors import DatasetError
from depi.hub.names import path_problem

MAX_DEPTH = 64
"""Of brackets within brackets in JSON."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def whole_number(value: Any, name: str, low: int, high: int) -> int:
    """`value` as an int within [low, high], or DatasetError."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise DatasetError(f"{name} is {short(value)}, expected a whole number")
    if not low <= value <= high:
        raise DatasetError(f"{name} is {short(value)}, expected {low} to {high}")
    return int(value)


def short(value: Any) -> str:
    """A printable excerpt of a stranger's value, at most 80 characters."""
    text = f"{value:.6g}" if isinstance(value, float) else ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_relative(path: str, name: str) -> str:
    """A path inside the dataset: as `depi.hub` takes it, printable, no `~`; DatasetError otherwise."""
    problem = path_problem(path) if path.isprintable() else "is not printable text"
    if problem or path.startswith("~"):
        problem = problem or "is not a plain relative path"
        raise DatasetError(f"{name} {short(path)} {problem}")
    return path


def resolve_file(root: Path, relative: str) -> Path:
    """The dataset's file `relative`, which must exist and, links followed, lie inside the dataset.

    In the Hub's cache a snapshot's files are links into the repository's `blobs`; these are inside too.
    """
    check_relative(relative, "path")
    base = root.resolve()
    try:
        path = (base / relative).resolve()
    except (OSError, RuntimeError):  # links that lead round in a circle
        raise DatasetError(f"{relative} is a link that leads nowhere") from None
    # A dataset of a collection lies in a folder below the snapshot.
    snapshots = [up for up in (base, *base.parents) if up.parent.name == "snapshots"]
    allowed = [base, *(up.parent.parent / "blobs" for up in snapshots[-1:])]
    if not any(path.is_relative_to(folder) for folder in allowed):
        raise DatasetError(f"{relative} is a link that leaves the dataset's folder")
    if not path.is_file():
        raise DatasetError(f"{relative} is missing")
    return path


def read_text(root: Path, relative: str, limit: int) -> str:
    """A UTF-8 file of at most `limit` bytes."""
    path = resolve_file(root, relative)
    check_bytes(path, relative, limit)
    return decode(path.read_bytes(), relative)


def check_bytes(path: Path, name: str, limit: int) -> None:
    """DatasetError where a file has more bytes than `limit`."""
    if path.stat().st_size > limit:
        raise DatasetError(f"{name} has {path.stat().st_size} bytes, at most {limit} are read")


def decode(content: bytes, name: str) -> str:
    """UTF-8 as text; DatasetError where it is none."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise DatasetError(f"{name} is not UTF-8 text") from None


def parse_json(text: str, name: str) -> Any:
    """`json.loads` whose every failure is a DatasetError; half a surrogate pair, which is no text, is one.

    So is a value nested more than MAX_DEPTH levels deep: what comes back can be walked through and printed.
    """
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{name} is not valid JSON: {short(str(error))}") from None
    # Few brackets cannot be deep; that is much faster than to look.
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise DatasetError(f"{name} is nested more than {MAX_DEPTH} levels deep")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than so many levels deep."""
    level = [value]
    for _ in range(levels + 1):
        level = [
            item
            for each in level
            if isinstance(each, list | dict)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)
