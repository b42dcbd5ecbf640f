import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from browsing import OpenedPage, chromium
from huggingface_hub import HfApi
from leaks import leaks
from playwright.sync_api import Browser
from rich.console import Console

from depi import cli
from depi.catalog.catalogue import Row, write_catalog
from depi.demo import hobbyist
from depi.demo.commands import Demo, DemoConfig, last_logged_step, run, run_side_by_side
from depi.demo.run import MARKER, STEPS, prepare_root
from depi.demo.summary import PAGE, write_page
from depi.errors import UserError
from depi.evaluation.films import write_video
from depi.files import read_json, write_json, write_text
from depi.hub.server.serve import serve

NO_PICTURE = "no picture: it was rejected by its numbers"
HOSTILE = "</script><img src=x onerror=\"window.hacked='img'\">"


def test_the_folder_of_an_earlier_demo_is_replaced(tmp_path):
    root = tmp_path / "demo"
    prepare_root(root)
    (root / "old").write_text("x")
    prepare_root(root)
    assert os.listdir(root) == [MARKER]


def test_a_folder_with_something_else_is_refused_and_kept(tmp_path, capsys):
    (tmp_path / "precious").write_text("x")
    assert cli.main(["demo", "--root", str(tmp_path)]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["precious"]


def test_metrics_leave_out_a_line_that_is_being_written(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 20}\n{"step": 4')
    assert last_logged_step(tmp_path) == 20
    assert last_logged_step(tmp_path / "nothing") == 0


def test_a_failing_step_says_which_command_failed():
    with pytest.raises(UserError, match=r"status 3: .*-c"):
        run([sys.executable, "-c", "raise SystemExit(3)"])


def test_of_commands_side_by_side_a_failing_one_says_why():
    works = [sys.executable, "-c", "print('yes')"]
    assert run_side_by_side([works, works]) == ["yes\n", "yes\n"]
    with pytest.raises(UserError, match=r"status 1: .*-c.*: it is broken"):
        run_side_by_side([works, [sys.executable, "-c", "raise SystemExit('first\\nit is broken')"]])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a demo whose steps were made up."""
    root = tmp_path_factory.mktemp("demo")
    demo = Demo(DemoConfig(root=root), Console(), [("collect", HOSTILE, 3.2), ("train", "1600 steps", 93.0)])
    write_catalog(
        demo.data_ids,
        [
            Row(repo_id="amelie/so101_pick", verdict="accepted", revision="0" * 40, score=0.9, episodes=3),
            Row(repo_id="jakub/five_joints", verdict="rejected", reasons=[f"six_joints: {HOSTILE}"]),
        ],
        {},
    )
    for trained, losses in ((demo.own_run, (2.0, 0.5, 0.05)), (demo.community_run, (1.5, 1.0))):
        lines = [json.dumps({"step": 10 * number, "loss": loss}) for number, loss in enumerate(losses, 1)]
        write_text(trained / "metrics.jsonl", "\n".join([*lines, ""]))
    episodes = [{"index": index, "success": index != 1, "length": 12} for index in range(3)]
    rates = {"success_rate": 2 / 3, "success_interval_95": [0.2, 0.94], "n_successes": 2, "n_episodes": 3}
    write_json(demo.evaluation / "eval.json", {"episodes": episodes, **rates})
    for index in range(2):
        frames = [np.full((96, 96, 3), 20 * shade, np.uint8) for shade in range(12)]
        (demo.evaluation / "videos").mkdir(exist_ok=True)
        write_video(demo.evaluation / "videos" / f"episode_{index:03d}.mp4", frames, 10)
    return write_page(demo, 251.0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from chromium()


def test_the_page_shows_what_happened_without_a_network(browser: Browser, written: Path):
    opened = OpenedPage(browser, written.as_uri())
    page = opened.page
    totals = page.locator("#totals").inner_text()
    assert all(text in totals for text in ("67%", "2 of 3 rollouts", "20% to 94%", "0.05", "4:11"))
    assert page.locator("#films .badge").all_inner_texts() == ["touched", "missed"]
    page.wait_for_function("[...document.querySelectorAll('video')].every((film) => film.currentTime > 0)")
    assert page.locator("#loss polyline").count() == 2
    assert page.locator("#steps tbody tr").count() == 2
    assert page.locator("#verdicts .badge").all_inner_texts() == ["accepted", "rejected"]
    assert HOSTILE in page.locator("#verdicts").inner_text()
    assert HOSTILE in page.locator("#steps").inner_text()
    assert page.evaluate("window.hacked") is None
    assert str(written.parent) in page.locator("#begin").inner_text()
    assert page.locator("#next .command").count() == 9
    assert opened.complaints == []
    page.close()


@pytest.mark.parametrize("width", [380, 800, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_sideways(browser: Browser, written: Path, width: int, scheme: str):
    opened = OpenedPage(
        browser, written.as_uri(), viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.close()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_whole_demo_and_what_to_type_next(tmp_path, browser):
    root = tmp_path / "demo"
    write_json(root / MARKER, {})
    command = [sys.executable, "-m", "depi.cli", "demo", f"--root={root}"]
    small = ["--community_steps=20", "--own_episodes=4", "--steps=60", "--eval_episodes=2"]
    result = subprocess.run([*command, *small], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    tokens = root / "hub" / "tokens.json"
    found = leaks(read_json(tokens).values(), root, result.stdout, result.stderr)
    assert {place.rpartition(" in ")[2] for place in found} == {str(tokens)}
    steps = read_json(root / MARKER)["steps"]
    assert [step["step"] for step in steps] == [title for title, _, _ in STEPS]
    assert all(command in result.stderr for _, _, command in STEPS)
    check_community(root)
    check_hobbyist(root)
    opened = OpenedPage(browser, (root / PAGE).as_uri())
    opened.page.wait_for_function("document.querySelector('video').currentTime > 0")
    assert opened.page.locator("#verdicts img").count() == 9
    assert opened.page.locator("#verdicts .blank").all_inner_texts() == [NO_PICTURE] * 5
    assert opened.complaints == []
    commands = opened.page.locator("#next .command").all_inner_texts()
    begin = opened.page.locator("#begin").inner_text()
    opened.page.close()
    for line in commands[:-1]:
        type_it(begin, line)
    assert (root / "train_night" / "checkpoints" / "last").exists()
    assert last_logged_step(root / "train") == 160


def check_community(root: Path) -> None:
    """What the first half of the demo must have found and trained on."""
    assert len(read_json(root / "data_ids" / "dataset_list_valid.json")) == 9
    assert len(read_json(root / "data_ids" / "bad_dataset_ids.json")) == 5
    assert (root / "data_ids" / "report.html").is_file()
    report = read_json(root / "train_community" / "data_report.json")
    bad = {
        entry["repo_id"]: set(entry["bad_episodes"]) for entry in report["datasets"] if entry["bad_episodes"]
    }
    assert bad == {"mira/so101_touch_first_try": {"1", "3", "5"}}
    annotations = report["stream"]["annotations"]
    assert annotations["missing"] == []
    assert annotations["episodes_with_task"] > 0
    lines = [
        json.loads(line) for line in (root / "train_community" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["step"] == 20
    assert lines[-1]["loss"] < lines[0]["loss"]


def check_hobbyist(root: Path) -> None:
    """What the second half must have recorded, published and filmed."""
    report = read_json(root / "train" / "data_report.json")
    assert [entry["episodes"] for entry in report["datasets"]] == [2, 2]
    assert last_logged_step(root / "train") == 60
    with av.open(str(root / "eval" / "videos" / "episode_000.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(video=0)]
    assert abs(frames[0] - frames[-1]).mean() > 0.5, "nothing moves in the video"
    with serve(root / "hub") as hub:
        files = HfApi(endpoint=hub.endpoint, token=hub.read_token).list_repo_files(hobbyist.MODEL_ID)
    assert {"model.safetensors", "config.json", "README.md"} <= set(files)


def type_it(begin: str, line: str) -> None:
    """Type a command of the page into a shell that knows no Hub."""
    gone = ("HF_ENDPOINT", "HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE", "PATH")
    known = {name: value for name, value in os.environ.items() if name not in gone}
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(Path(shlex.split(begin)[1]) / "empty")}
    result = subprocess.run(
        ["bash", "-ec", f"{begin}\n{line}"],
        env={**known, **nowhere, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{line}: {result.stderr[-2000:]}"
