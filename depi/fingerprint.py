"""What decides the content of a cache, as one digest: code and settings. Another digest is another cache.

The source of the code counts, so that nobody has to remember to raise a number. A cache takes the digest into
its name or its facts; what other code has made is then built again, or refused where that takes hours.
Exceptions are named where they are: `depi.catalog.rules`, `depi.catalog.videos`, `depi.annotate.templates`.
"""

import hashlib
import inspect
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

# These fetch, run, write and report what others decide.
_CARRIERS = ("depi.hub", "depi.engine", "depi.errors", "depi.files", "depi.log", "depi.fingerprint")
_IMPORT = re.compile(r"^[ \t]*from (depi[\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)


def fingerprint(*facts: object) -> str:
    """A digest of what a content depends on: settings, by their `repr`, and what `code` returned."""
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


@cache
def code(*parts: str | Callable[..., object]) -> str:
    """A digest of source code.

    Args:
        parts: names of modules, each with all modules of DePi that it imports, and those that they import,
            but for those that only carry data; or functions, each by itself.
    """
    waiting = [part for part in parts if isinstance(part, str)]
    if missing := [name for name in waiting if _file(name) is None]:
        raise ValueError(f"there is no module of DePi {missing[0]}")
    sources: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is not None and name not in sources and not name.startswith(_CARRIERS):
            sources[name] = path.read_text(encoding="utf-8")
            waiting += _imports(sources[name])
    functions = [inspect.getsource(part) for part in parts if not isinstance(part, str)]
    return fingerprint(sorted(sources.items()), functions)


def _imports(source: str) -> list[str]:
    """The modules that a source imports, and names in them that may be modules too."""
    found = []
    for module, names in _IMPORT.findall(source):
        found += [module, *(f"{module}.{name}" for name in re.findall(r"\w+", names))]
    return found


def _file(name: str) -> Path | None:
    """The source file of a module of DePi; None for any other name."""
    path = Path(__file__).parent.joinpath(*name.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
