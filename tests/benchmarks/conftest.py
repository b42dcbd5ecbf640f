from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder of the scripts, importable as they import one another."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return BENCHMARKS
