import json
import os
import subprocess
import sys

import av
import pytest
from huggingface_hub import HfApi
from leaks import leaks

from depi import cli, demo
from depi.errors import UserError
from depi.files import read_json, write_json
from depi.hub.server.serve import serve


def test_the_folder_of_an_earlier_demo_is_replaced(tmp_path):
    root = tmp_path / "demo"
    demo.prepare_root(root)
    (root / "old").write_text("x")
    demo.prepare_root(root)
    assert os.listdir(root) == [demo.MARKER]


def test_a_folder_with_something_else_is_refused_and_kept(tmp_path, capsys):
    (tmp_path / "precious").write_text("x")
    assert cli.main(["demo", "--root", str(tmp_path)]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["precious"]


def test_metrics_leave_out_a_line_that_is_being_written(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 20}\n{"step": 4')
    assert demo.last_logged_step(tmp_path) == 20
    assert demo.last_logged_step(tmp_path / "nothing") == 0


def test_a_failing_step_says_which_command_failed():
    with pytest.raises(UserError, match=r"status 3: .*-c"):
        demo.run([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_demo(tmp_path):
    root = tmp_path / "demo"
    write_json(root / demo.MARKER, {})
    command = [sys.executable, "-m", "depi.cli", "demo", f"--root={root}"]
    result = subprocess.run(
        [*command, "--steps=60", "--eval_episodes=1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    tokens = root / "hub" / "tokens.json"
    found = leaks(read_json(tokens).values(), root, result.stdout, result.stderr)
    assert {place.rpartition(" in ")[2] for place in found} == {str(tokens)}
    steps = read_json(root / demo.MARKER)["steps"]
    assert [step["step"] for step in steps] == [title for title, _, _ in demo.STEPS]
    assert all(command in result.stderr for _, _, command in demo.STEPS)
    assert len(read_json(root / "data_ids" / "dataset_list_valid.json")) == 9
    assert len(read_json(root / "data_ids" / "bad_dataset_ids.json")) == 5
    data = read_json(root / "train" / "data_report.json")
    bad = {
        entry["repo_id"]: set(entry["bad_episodes"]) for entry in data["datasets"] if entry["bad_episodes"]
    }
    assert bad == {"mira/so101_touch_first_try": {"1", "3", "5"}}
    report = read_json(root / "train" / "data_report.json")["stream"]["annotations"]
    assert report["missing"] == []
    assert report["episodes_with_task"] > 0
    lines = [json.loads(line) for line in (root / "train" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 60
    assert lines[-1]["loss"] < lines[0]["loss"]
    with av.open(str(root / "eval" / "videos" / "episode_000.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(video=0)]
    assert abs(frames[0] - frames[-1]).mean() > 0.5, "nothing moves in the video"
    with serve(root / "hub") as hub:
        files = HfApi(endpoint=hub.endpoint, token=hub.read_token).list_repo_files(demo.MODEL_ID)
    assert {"model.safetensors", "config.json", "README.md"} <= set(files)
