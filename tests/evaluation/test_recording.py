"""Rollouts as a dataset: what is read back is what was played, whatever happened while it was recorded."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from evaluations import Steady, choices

from depi import cli
from depi.datasets.samples.outcomes import read_outcomes
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError
from depi.evaluation.evaluate import roll_out
from depi.evaluation.recording import DatasetWriter
from depi.files import read_json

# Of these steps, the expert needs more for some cubes.
LENGTH = 14
PARTS = ("observation.state", "action", "next.reward", "next.success")


def read_back(root: Path) -> MultiLeRobotDataset:
    return MultiLeRobotDataset([DatasetSource("ann/rollouts", root=root)], chunk_size=1, image_size=28)


def columns(root: Path) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    tables = [pq.read_table(path) for path in sorted((root / "data").rglob("*.parquet"))]
    return {
        name: np.concatenate([np.stack(table[name].to_numpy()) for table in tables])
        for name in (*PARTS, "episode_index")
    }


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Six episodes of a dot, one of them an error."""
    kept = []
    config = choices(tmp_path_factory.mktemp("played"), fail=[4], batch_size=2)
    result = roll_out(config, Steady(), on_episode=kept.append)
    return result, kept


def test_a_dataset_has_what_was_played(played, tmp_path):
    result, kept = played
    with DatasetWriter(tmp_path / "rollouts", "ann/rollouts") as writer:
        for trajectory in reversed(kept):
            writer.append(trajectory)
        writer.append(kept[0])  # again
        assert writer.indices == [0, 1, 2, 3, 5]
    assert os.listdir(tmp_path) == ["rollouts"]
    counted = [row for row in result["episodes"] if row["error"] is None]
    dataset = read_back(tmp_path / "rollouts")
    wins = read_outcomes(dataset).success.tolist()
    assert wins == [row["success"] for row in counted]
    assert len(set(wins)) == 2
    found = columns(tmp_path / "rollouts")
    kept = sorted(kept, key=lambda trajectory: trajectory.index)
    for number, (row, trajectory) in enumerate(zip(counted, kept, strict=True)):
        rows = found["episode_index"] == number
        assert rows.sum() == row["length"]
        np.testing.assert_array_equal(found["action"][rows], trajectory.actions)
        np.testing.assert_array_equal(found["observation.state"][rows], trajectory.states)
        assert found["next.reward"][rows].sum() == pytest.approx(row["reward"], rel=1e-5)
        assert np.flatnonzero(found["next.success"][rows]).tolist() == [row["length"] - 1] * row["success"]
    sample = dataset[0]
    bright = float((kept[0].images["observation.image"][0] > 128).mean())
    assert bright > 0
    assert float((sample["observation.images.0"] > 0).float().mean()) > 0


def test_what_cannot_be_one_dataset_is_refused_and_kept(played, tmp_path):
    first, second = played[1][:2]
    writer = DatasetWriter(tmp_path / "rollouts", "ann/rollouts")
    with pytest.raises(UserError, match="no episode has been recorded"):
        writer.finish()
    writer.append(first)
    writer.append(dataclasses.replace(second, fps=second.fps + 1))
    with pytest.raises(UserError, match="another rate"):
        writer.finish()
    assert not (tmp_path / "rollouts").exists()
    writer.append(second)
    writer.finish()
    with pytest.raises(UserError, match="exists already"):
        DatasetWriter(tmp_path / "rollouts", "ann/rollouts")


def command(folder: Path, count: int) -> list[str]:
    size = ["--env.cameras=[front]", "--env.observation_height=48", "--env.observation_width=64"]
    return [
        *("eval", "--policy.path=expert", f"--env.episode_length={LENGTH}", *size, "--eval.batch_size=2"),
        *(f"--eval.n_episodes={count}", "--eval.n_videos=0", f"--output_dir={folder / 'eval'}"),
        *(f"--record.root={folder / 'rollouts'}", "--record.repo_id=ann/rollouts"),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert cli.main(command(folder, 5)) == 0
    return folder


def test_eval_writes_successes_and_failures(whole, capsys):
    result = read_json(whole / "eval" / "eval.json")
    wins = [row["success"] for row in result["episodes"]]
    assert 0 < sum(wins) < 5, "choose another LENGTH"
    assert read_outcomes(read_back(whole / "rollouts")).success.tolist() == wins
    assert not (whole / "eval" / "trajectories").exists()


def test_run_twice_it_changes_nothing_and_more_episodes_need_another_folder(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in (whole / "rollouts").rglob("*")}
    assert cli.main(command(whole, 5)) == 0
    assert {path: path.stat().st_mtime_ns for path in (whole / "rollouts").rglob("*")} == before
    assert cli.main(command(whole, 6)) == 2
    assert "exists already" in capsys.readouterr().err
    assert len(read_json(whole / "eval" / "eval.json")["episodes"]) == 5


def test_killed_and_run_again_it_gives_the_same_dataset(whole, tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "depi.cli", *command(tmp_path, 5)])
    journal = tmp_path / "eval" / "episodes.jsonl"
    end = time.monotonic() + 120
    while not (journal.exists() and journal.read_text()) and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = journal.read_text()
    assert 1 <= kept.count("\n") < 5
    assert not (tmp_path / "rollouts").exists()
    assert cli.main(command(tmp_path, 5)) == 0
    assert journal.read_text().startswith(kept)
    expected, found = columns(whole / "rollouts"), columns(tmp_path / "rollouts")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--env.setups=seen"], "does not go with --env.setups=seen"), (["--record.repo_id=x"], "user/name")],
)
def test_recordings_that_cannot_be_are_said_before_anything_is_played(tmp_path, capsys, flags, says):
    assert cli.main([*command(tmp_path, 2), *flags]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_recorded_is_what_the_arm_was_sent(tmp_path):
    """Targets that no arm could reach would make a dataset's joint convention unknown."""

    class Far:
        batch, expert_steps = 1, 0

        def fit(self, tables):
            pass

        def act(self, observations):
            return [np.tile(np.float32([5, -164, 0, 0, 0, 130]), (4, 1)) for _ in observations]

    kept = []
    config = choices(tmp_path, 1, "so101", n_videos=0, batch_size=1)
    config.env.observation_height, config.env.observation_width = 60, 80
    config.env.episode_length = 4
    result = roll_out(config, Far(), on_episode=kept.append)
    assert result["n_errors"] == 0
    actions = kept[0].actions
    assert actions.shape == (4, 6)
    np.testing.assert_allclose(actions[:, 0], 5, atol=0.05)
    assert (np.abs(actions[:, 1]) < 120).all()
    np.testing.assert_allclose(actions[:, 5], 100, atol=0.1)
