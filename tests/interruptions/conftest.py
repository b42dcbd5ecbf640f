"""What long commands work on, and what each of them makes if nothing disturbs it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interruptible import Workplace, set_up, undisturbed


@pytest.fixture(scope="module")
def work(module_hub, tmp_path_factory) -> Workplace:
    return set_up(module_hub, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def expected(work, tmp_path_factory) -> Callable[[str], Any]:
    """expected(name of a task) -> what it makes."""
    found: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in found:
            folder: Path = tmp_path_factory.mktemp("expected")
            found[name] = undisturbed(work, name, folder / f"expected-{name}")
        return found[name]

    return make
