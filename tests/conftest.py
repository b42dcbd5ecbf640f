"""An embedded Hub for every test that asks for one, and no other Hub for any test."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HOME = tempfile.TemporaryDirectory(prefix="depi-tests-")
# huggingface_hub, LeRobot and datasets read these once, when they are imported: so they are set before.
os.environ.update(
    HF_HOME=_HOME.name,
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_ENDPOINT="http://127.0.0.1:9",  # nothing listens there: a test without the fixture reaches no Hub
    HF_TOKEN="",
    TOKENIZERS_PARALLELISM="false",
)
for _name in (
    *("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_LEROBOT_HOME", "HF_TOKEN_PATH"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
):
    os.environ.pop(_name, None)

# A shell starts what it puts in the background with Ctrl-C ignored; commands under test would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

import huggingface_hub  # noqa: E402
import pytest  # noqa: E402
from huggingface_hub import constants, hf_api  # noqa: E402

from depi.hub.server.serve import LocalHub, serve  # noqa: E402


def point_to(hub: LocalHub, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Make this process and its children talk to `hub`, with `home` as an empty HF_HOME."""
    for name, value in hub.environment().items():
        patch.setenv(name, value)
    patch.setenv("HF_HOME", str(home))
    patch.setattr(constants, "ENDPOINT", hub.endpoint)
    patch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    patch.setattr(constants, "HF_HOME", str(home))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        patch.setattr(constants, name, str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(hf_api.api, "endpoint", hub.endpoint)
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("lerobot."):
            for name, path in (("HF_LEROBOT_HOME", "lerobot"), ("HF_LEROBOT_HUB_CACHE", "lerobot/hub")):
                if name in vars(module):
                    patch.setattr(module, name, home / path)


def _running_hub(folder: Path) -> Iterator[LocalHub]:
    huggingface_hub.close_session()
    with serve(folder / "hub-root") as hub, pytest.MonkeyPatch.context() as patch:
        point_to(hub, folder / "hf-home", patch)
        yield hub
    huggingface_hub.close_session()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """An embedded Hub of one test's own; HF_TOKEN is its write token."""
    yield from _running_hub(tmp_path)


@pytest.fixture(scope="module")
def module_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """An embedded Hub that the tests of a module share."""
    yield from _running_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a Ray cluster of this machine, with two workers."""
    import ray

    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()


@dataclass(frozen=True)
class SmallDisk:
    """A file system of 50 MB at `path`."""

    path: Path

    def fill(self, leave: int = 0) -> None:
        """Let no more than `leave` bytes be free."""
        free = shutil.disk_usage(self.path).free
        (self.path / "filler").write_bytes(bytes(free - leave))

    def make_room(self) -> None:
        """Undo `fill`."""
        (self.path / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system that can really be full; where none may be mounted the test is skipped."""
    path = tmp_path / "small-disk"
    path.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root, and not in every container, may mount a small file system")
    yield SmallDisk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)
