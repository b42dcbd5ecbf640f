"""LeRobot's own commands in processes of their own, with plugins installed as an installer does it."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from depi.policies import make_policy, make_processors, save_checkpoint
from depi.policies.families import family

REPOSITORY = Path(__file__).parents[2]
POLICY_PLUGIN = REPOSITORY / "plugins" / "lerobot_policy_depi"
ROBOT_PLUGIN = REPOSITORY / "plugins" / "lerobot_robot_sim_so101"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"

SMALL = {"image_resolution": (28, 28), "vision_depth": 1, "depth": 2, "chunk_size": 8, "n_action_steps": 4}


def install(plugin: Path, site: Path, folder: Path) -> None:
    """Build the wheel with its own build backend, and unpack it."""
    source = shutil.copytree(plugin, folder / plugin.name)
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob(f"{plugin.name}-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """A folder for the module path in which the policy plugin and the robot plugin are installed."""
    site = tmp_path_factory.mktemp("site")
    for plugin in (POLICY_PLUGIN, ROBOT_PLUGIN):
        install(plugin, site, tmp_path_factory.mktemp("build"))
    return site


@pytest.fixture
def lerobot(site):
    """Run one of LeRobot's console scripts to its end; returns what it has printed."""

    def run(command: str, *flags: str) -> str:
        script = Path(sys.executable).with_name(f"lerobot-{command}")
        path = os.pathsep.join(filter(None, (str(site), str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [script, *flags],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def write_checkpoint():
    return _write_checkpoint


def _write_checkpoint(
    folder: Path,
    cameras: Sequence[str],
    values: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    kind: str = "depi_pi0",
    indicator: bool = False,
) -> Path:
    """A small policy with random weights; `values` are mean and standard deviation by key.

    Quantiles are one standard deviation from the mean.
    """
    torch.manual_seed(0)
    sizes = {key: len(mean) for key, (mean, _) in values.items()}
    data = SimpleNamespace(
        state_dim=sizes["observation.state"], action_dim=sizes["action"], camera_slots=tuple(cameras)
    )
    config = family(kind).configs[kind](device="cpu", **SMALL)
    policy = make_policy(config, data)
    stats = {}
    for key, (mean, std) in values.items():
        entry = {"mean": mean, "std": std, "q01": mean - std, "q99": mean + std}
        stats[key] = {name: value.astype(np.float32) for name, value in entry.items()}
    save_checkpoint(folder, policy, *make_processors(config, stats, indicator=indicator))
    return folder
