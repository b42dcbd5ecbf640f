"""Small real datasets to annotate, and the command that does it."""

from functools import partial
from pathlib import Path

import pytest
from recordings import Recording, write_v2, write_v3

from depi.annotate.annotate import AnnotateConfig, annotate
from depi.annotate.openai_server import ServerConfig
from depi.hub.client.retry import RetryPolicy


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """v2.1: four episodes of two cameras, as mp4."""
    recording = Recording(lengths=(9, 12, 7, 8), tasks=("test", "pick the cube"))
    return write_v2(tmp_path_factory.mktemp("v21") / "videos", recording)


@pytest.fixture(scope="session")
def newer(tmp_path_factory) -> Path:
    """v3.0: three episodes of two cameras in one mp4 each."""
    return write_v3(tmp_path_factory.mktemp("v30") / "newer", Recording(lengths=(9, 12, 7)))


@pytest.fixture
def annotated(tmp_path, monkeypatch):
    """Annotate a local dataset into `tmp_path/out`: annotated(root, url, flag=value ...) -> Summary."""
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))
    quick = partial(ServerConfig, retries=RetryPolicy(attempts=3, first_wait=0.01))
    monkeypatch.setattr("depi.annotate.openai_server.ServerConfig", quick)

    def run(root: Path, url: str = "", **flags):
        backend = flags.pop("backend", "openai")
        config = AnnotateConfig(
            repo_id="ann/box", root=root, base_url=url, backend=backend, annotations=tmp_path / "out", **flags
        )
        return annotate(config)

    return run
