"""Datasets that several tests read; they are written once."""

from pathlib import Path

import pytest
from recordings import Recording, write_v2, write_v3


@pytest.fixture(scope="session")
def v21(tmp_path_factory) -> Path:
    return write_v2(tmp_path_factory.mktemp("v21") / "data", Recording())


@pytest.fixture(scope="session")
def v30(tmp_path_factory) -> Path:
    return write_v3(tmp_path_factory.mktemp("v30") / "data", Recording())
