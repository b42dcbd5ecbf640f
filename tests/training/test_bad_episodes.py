"""What the catalogue finds bad is not trained on, unless the user asks for it; the report says why."""

from pathlib import Path

import pytest
from runs import losses, replaced

from depi.catalog.catalogue import Row, write_catalog
from depi.catalog.episodes import EpisodeVerdict, add_verdicts
from depi.datasets.judging.faults import Fault
from depi.files import read_json
from depi.hub.client.api import repo_info
from depi.train import main as train
from depi.training.samples import main as samples

FAULTS = (
    Fault("joints_move", 0, "no joint moves", leaves_out=False),
    Fault("alike", 0, "it is odd", leaves_out=True),
)


@pytest.fixture
def judged(data_ids, tmp_path) -> Path:
    """A catalogue in which episode 0 of alice/pick is bad; nobody judged bob/place."""
    return catalogue(tmp_path / "data_ids", FAULTS)


def catalogue(folder: Path, faults) -> Path:
    row = Row("alice/pick", "accepted", revision=repo_info("alice/pick").sha, score=1.0)
    add_verdicts(row, [EpisodeVerdict(0, 9, faults), EpisodeVerdict(1, 7)])
    write_catalog(folder, [row, Row("bob/place", "accepted", score=0.5)], {})
    return folder


def frames(run: Path) -> int:
    return read_json(run / "data_report.json")["num_frames"]


def test_bad_episodes_are_left_out_and_named(flags, judged, tmp_path, caplog):
    assert train(replaced(flags, **{"dataset.data_ids": judged})) == 0
    report = read_json(tmp_path / "run" / "data_report.json")
    assert report["datasets"][0]["bad_episodes"] == {"0": "alike: it is odd"}
    assert report["datasets"][1]["bad_episodes"] == {}
    assert (report["num_bad_episodes"], report["num_episodes"], report["num_frames"]) == (1, 3, 7 + 8 + 6)
    assert "bad episodes left out: 1, such as episode 0 of alice/pick (alike: it is odd)" in caplog.text


def test_a_user_may_train_on_them(flags, judged, tmp_path):
    changes = {"dataset.data_ids": judged, "dataset.use_bad_episodes": "true", "steps": 1}
    assert train(replaced(flags, **changes)) == 0
    assert frames(tmp_path / "run") == 9 + 7 + 8 + 6


def test_failures_teach_a_value_function(flags, judged, tmp_path):
    flags = [flag for flag in flags if not flag.startswith("--policy.")]
    flags += [
        "--policy.type=value",
        "--policy.size=tiny",
        "--policy.device=cpu",
        "--dataset.assume_success=true",
    ]
    assert train(replaced(flags, **{"dataset.data_ids": judged, "steps": 1})) == 0
    assert frames(tmp_path / "run") == 9 + 7 + 8 + 6


def test_a_resumed_run_keeps_its_episodes_whatever_the_catalogue_says_since(flags, judged, tmp_path):
    run = tmp_path / "run"
    assert train(replaced(flags, **{"dataset.data_ids": judged})) == 0
    whole = losses(run)
    other = replaced(flags, **{"dataset.data_ids": judged, "output_dir": tmp_path / "other"})
    assert train(replaced(other, steps=4)) == 0
    catalogue(judged, ())
    assert train(["--resume=true", f"--output_dir={tmp_path / 'other'}", "--steps=6"]) == 0
    assert losses(tmp_path / "other") == whole
    assert samples([str(run), "--step=1", f"--output={tmp_path / 'sheet.jpg'}"]) == 0
