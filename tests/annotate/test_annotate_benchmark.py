"""The benchmark itself: what it measures of a server that errs at a known rate must be that rate."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import recordings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("annotate")


@pytest.fixture(scope="module")
def truth(script: ModuleType) -> ModuleType:
    return importlib.import_module("annotate_truth")


@pytest.fixture(scope="module")
def data(truth: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in the place of the simulator's, whose pictures differ from episode to episode as those do."""
    folder = tmp_path_factory.mktemp("recorded")
    for number, rig in enumerate(truth.contributors(2, 4)):
        cameras = tuple(truth.truth_of(rig).views)
        tasks = (rig.setup.task_text,)
        made = recordings.Recording((9,) * 4, cameras=cameras, tasks=tasks, size=(48 + 16 * number, 64))
        recordings.write_v2(folder / rig.repo_id, made)
    return folder


def measure(script: ModuleType, data: Path, work: Path, *flags: str) -> dict:
    size = ("--smoke", "--datasets=2", "--episodes=4", f"--data={data}")
    return script.measure(script.parse([*size, *flags]), work)


def test_the_score_is_one_less_the_rate_of_errors(script: ModuleType, data: Path, tmp_path: Path):
    rates = ("--error_rate=0.25", "--view_error_rate=0.5")
    found = measure(script, data, tmp_path, *rates, "--", "--max_refinements=1", "--view_episodes=1")
    assert found["episodes"] == 8
    assert found["failed"] == 0
    assert found["instruction_accuracy"] == 0.75
    assert found["instruction_exact"] == 0.75
    assert found["precision"] == 0.75
    assert found["view_accuracy"] == 0.5, "each of the two datasets has one camera"
    # It always says 0.9 and is right in three of four.
    assert found["calibration_error"] == pytest.approx(0.15)
    # Two questions about each episode, and one about the views of each of two datasets.
    assert found["requests_per_episode"] == 2.25
    assert found["tokens_per_episode"] == 2.25 * (4 * 100 + 20)
    assert found["episodes_per_s"] > 0


@pytest.mark.slow
def test_the_smoke_run_records_and_is_all_right(tmp_path: Path):
    command = [sys.executable, BENCHMARKS / "annotate.py", "--smoke", f"--data={tmp_path}"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["instruction_accuracy"], found["view_accuracy"], found["episodes"]) == (1.0, 1.0, 4)
    assert len(list(tmp_path.glob("bench/*/meta/info.json"))) == 2


@pytest.mark.slow
def test_rules_get_nothing_out_of_junk(script: ModuleType, data: Path, tmp_path: Path):
    found = measure(script, data, tmp_path, "--backend=rules")
    nothing = ("instruction_accuracy", "view_accuracy", "with_task", "tokens_per_episode")
    assert {name: found[name] for name in nothing} == dict.fromkeys(nothing, 0)
    assert found["calibration_error"] is None
    assert found["precision"] is None
    assert found["episodes"] == 8


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Pick up the red cube.", "goal object color"),
        ("Lift the small red block from the gray table.", "goal object color"),
        ("Reach for the cube that is red and lift it.", "goal object color"),
        ("Touch the red cube.", "object color"),
        ("Pick up the red cube and place it in the bowl.", "object color"),
        ("Grab the blue cube.", "goal object"),
        ("Grab the cube.", "goal object"),
        ("Pick up the cube between the red and the blue line.", "goal object"),
        ("Pick up the red sock.", "goal color"),
        ("test", ""),
        (None, ""),
    ],
)
def test_attributes(truth: ModuleType, text: str | None, right: str):
    shown = truth.Truth("pick_lift", "red", {})
    found = truth.attributes_right(text, shown)
    assert {name for name, value in found.items() if value} == set(right.split())


def test_touching_is_not_picking_up(truth: ModuleType):
    shown = truth.Truth("touch", "purple", {})
    assert all(truth.attributes_right(shown.instruction, shown).values())
    assert all(truth.attributes_right("Tap the violet box.", shown).values())
    assert not truth.attributes_right("Touch and lift the purple cube.", shown)["goal"]


def test_calibration_is_the_distance_of_confidence_and_truth(truth: ModuleType):
    found = truth.calibration([0.95, 0.97, 0.93, 0.95, 0.5, 1.0], [True, True, True, False, False, True])
    assert found.bins == (
        (0.5, 1, 0.5, 0.0),
        (0.9, 5, pytest.approx(0.96), pytest.approx(0.8)),
    )
    assert found.error == pytest.approx((1 * 0.5 + 5 * 0.16) / 6)
    assert truth.calibration([], []).error == 0


def test_texts_and_camera_names_give_nothing_away(truth: ModuleType):
    rigs = truth.contributors(32, 1)
    assert rigs == truth.contributors(32, 1)
    assert {rig.task for rig in rigs} == {"touch", "pick_lift"}
    views = {"wrist", "front", "side", "top"}
    assert {view for rig in rigs for view in truth.truth_of(rig).views.values()} == views
    for rig in rigs:
        shown = truth.truth_of(rig)
        assert not any(truth.attributes_right(rig.setup.task_text, shown).values())
        assert not any(view in key for key in shown.views for view in views)
