"""The eight commands of docs/one-robot.md, as they stand there, with a few episodes and steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from lerobot.datasets.lerobot_dataset import LeRobotDataset

ROOT = Path(__file__).parents[1]
SHORTER = {
    "YOU/": "alice/",
    "--episodes=100": "--episodes=3",
    "=1600": "=4",
    "=800": "=2",
    "/000800": "/000002",
    "--eval.n_episodes=20": "--eval.n_episodes=2 --env.episode_length=10",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_of_one_robot(hub, tmp_path):
    (script,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/one-robot.md").read_text("utf-8"), re.DOTALL)
    for long, short in SHORTER.items():
        assert long in script
        script = script.replace(long, short)
    for name in ("depi", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert LeRobotDataset("alice/touch", root=tmp_path / "loaded").num_episodes == 3
    assert (tmp_path / "outputs" / "touch_0.mp4").stat().st_size > 1000
    assert "2 paired seeds" in done.stdout
    assert "step-000004" in {ref.name for ref in HfApi().list_repo_refs("alice/touch-policy").tags}
