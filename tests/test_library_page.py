"""The loops of docs/library.md run as they stand, on a small dataset and policy under the names they load."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors.torch import load_file
from small_pi0 import SIZES

from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.hub.client.api import upload_folder
from depi.policies import DepiPi0Config, make_policy, make_processors, save_checkpoint
from depi.sim.gym_tasks import GYM_TASKS, record_gym_dataset

PAGE = Path(__file__).parents[1] / "docs" / "library.md"
MAX_LINES = 40
OUTPUT = Path("outputs/pusht")


def block(heading: str) -> str:
    """The Python code under a heading of the page."""
    pattern = rf"^## {heading}$.*?^```python\n(.*?)^```"
    found = re.search(pattern, PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found, f"{PAGE.name} has no Python code under '## {heading}'"
    return found[1]


def run(code: str, folder: Path) -> str:
    (folder / "loop.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "loop.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def published(module_hub, tmp_path_factory) -> Path:
    """On the embedded Hub: `lerobot/pusht`, two episodes of the scripted expert, and a small `pi0_base`."""
    folder = tmp_path_factory.mktemp("library")
    root = folder / "pusht"
    record_gym_dataset(GYM_TASKS["pusht"], "lerobot/pusht", root, episodes=1, seed=14, codec="h264")
    upload_folder(root, "lerobot/pusht", repo_type="dataset", commit_message="Upload", tag="v3.0")
    dataset = MultiLeRobotDataset([DatasetSource("lerobot/pusht", root=root)], image_size=28)
    policy = make_policy(DepiPi0Config(device="cpu", **SIZES), dataset)
    save_checkpoint(folder / "base", policy, *make_processors(policy.config, dataset.stats))
    upload_folder(folder / "base", "lerobot/pi0_base", repo_type="model", commit_message="Upload")
    return folder


def test_the_loops_of_the_page_train_and_roll_out(published, tmp_path):
    training, rollout = block("A training loop"), block("A rollout loop")
    assert max(len(code.splitlines()) for code in (training, rollout)) <= MAX_LINES
    for needed in ("loss.backward()", "save_pretrained", "optimizer.step()"):
        assert needed in training
    for needed in ("gym.make", "select_action", ".mp4"):
        assert needed in rollout

    assert re.search(r"^step 1: loss \d+\.\d+$", run(training, tmp_path), re.MULTILINE)
    before, after = (
        load_file(folder / "model.safetensors") for folder in (published / "base", tmp_path / OUTPUT)
    )
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)

    said = re.search(r"^(\d+) steps, at best \d+% of the goal covered$", run(rollout, tmp_path), re.MULTILINE)
    assert said
    with av.open(str(tmp_path / OUTPUT / "rollout.mp4")) as container:
        frames = [frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == int(said[1]) + 1
    assert np.max([np.abs(after - before).max() for before, after in pairwise(frames)]) > 60
