"""`depi upload` of a recorded dataset: LeRobot and DePi read it, and what is not whole is refused."""

import json

import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from recordings import Recording, write_v3

from depi.catalog.find import find
from depi.cli import main
from depi.hub.client.api import repo_info

REPO = "alice/cube"


@pytest.fixture
def recorded(tmp_path):
    root = write_v3(tmp_path / "cube", Recording())
    info = json.loads((root / "meta" / "info.json").read_text())
    (root / "meta" / "info.json").write_text(json.dumps({**info, "robot_type": "so101_follower"}))
    return root


def test_lerobot_loads_it_and_the_catalogue_finds_it(hub, recorded, capsys):
    (recorded / "images").mkdir(exist_ok=True)
    (recorded / "images" / "left_behind.png").write_bytes(b"")
    assert main(["upload", str(recorded), REPO]) == 0
    assert capsys.readouterr().out.startswith(f"{REPO}@")
    loaded = LeRobotDataset(REPO, root=recorded.parent / "loaded")
    assert loaded.num_episodes == LeRobotDataset("a/b", root=recorded).num_episodes
    assert REPO in [candidate.repo_id for candidate in find()]
    names = {sibling.rfilename for sibling in repo_info(REPO, repo_type="dataset").siblings}
    assert "README.md" in names
    assert "images/left_behind.png" not in names


def test_again_with_more_episodes_moves_the_tag(hub, recorded):
    assert main(["upload", str(recorded), REPO]) == 0
    before = repo_info(REPO, repo_type="dataset", revision="v3.0").sha
    (recorded / "README.md").write_text("---\ntags: [LeRobot]\n---\nMine.\n")
    assert main(["upload", str(recorded), REPO]) == 0
    assert repo_info(REPO, repo_type="dataset", revision="v3.0").sha != before


def test_a_recording_that_was_cut_off_is_refused(hub, recorded, capsys):
    table = next((recorded / "data").rglob("*.parquet"))
    table.write_bytes(table.read_bytes()[:-20])
    assert main(["upload", str(recorded), REPO]) == 2
    assert f"{table} is cut off" in capsys.readouterr().err
    table.unlink()
    assert main(["upload", str(recorded), REPO]) == 2
    assert "has no episodes" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--all", "--weights=raw", "--tag=v9"])
def test_flags_of_checkpoints_are_refused(hub, recorded, flag, capsys):
    assert main(["upload", str(recorded), REPO, flag]) == 2
    assert "is for checkpoints" in capsys.readouterr().err


def test_a_folder_of_something_else_is_named(tmp_path, capsys):
    assert main(["upload", str(tmp_path / "absent"), REPO]) == 2
    assert "nor a dataset" in capsys.readouterr().err
