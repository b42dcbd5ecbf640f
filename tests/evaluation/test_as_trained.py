"""The environment takes from the training what no flag says, and differences are said."""

import json
import math

import pytest

from depi.evaluation.as_trained import Trained, as_trained, differences, read_trained, trained_on
from depi.evaluation.config import EnvironmentConfig
from depi.evaluation.environments import resolve, so101_setup
from depi.evaluation.evaluate import _own_folder
from depi.sim.setup import Setup

ENTRY = {
    "recorded_fps": 15.0,
    "cameras": ["observation.images.wrist", "observation.images.top"],
    "camera_sizes": {"observation.images.wrist": [96, 96], "observation.images.top": [96, 96]},
}
SQUARE = trained_on({"datasets": [ENTRY]}, None)


def test_what_no_flag_says_is_as_in_training():
    env = resolve(as_trained(EnvironmentConfig(), SQUARE))
    assert (env.type, env.task, env.fps, env.cameras) == ("so101", "touch", 15, ["top", "wrist"])
    assert (env.observation_height, env.observation_width) == (96, 96)
    assert differences(env, SQUARE) == []


def test_what_flags_say_stays_and_is_said():
    asked = EnvironmentConfig(fps=30, cameras=["front"], observation_height=240, observation_width=320)
    env = as_trained(asked, SQUARE)
    assert (env.fps, env.cameras, env.observation_height) == (30, ["front"], 240)
    assert differences(env, SQUARE) == [
        "images of 240x320 pixels here, 96x96 in training",
        "30 actions a second here, 15 in training",
        "cameras front here, top, wrist in training",
    ]


def test_many_sizes_and_rates_choose_nothing():
    wide = {**ENTRY, "recorded_fps": 30.0, "camera_sizes": {"observation.images.wrist": [240, 320]}}
    union = trained_on({"datasets": [ENTRY, wide]}, None)
    env = as_trained(EnvironmentConfig(), union)
    assert (env.fps, env.observation_height) == (None, None)
    assert differences(as_trained(EnvironmentConfig(fps=15, cameras=["wrist"]), union), union) == []
    assert trained_on({"datasets": [ENTRY, wide]}, 20.0).rates == {20.0}


def test_the_rate_of_most_datasets_is_taken_in_drawn_setups_too(tmp_path):
    """A policy of 30 actions a second would move at a third of its speed at so101's 10."""
    fast = {**ENTRY, "recorded_fps": 30.0}
    union = trained_on({"datasets": [ENTRY, fast, fast]}, None)
    file = tmp_path / "rigs.json"
    file.write_text(json.dumps([Setup(fps=20).to_dict()]))
    for setups in ("standard", "unseen", str(file)):
        env = as_trained(EnvironmentConfig(setups=setups), union)
        assert so101_setup(resolve(env), 0).fps == 30, setups
        assert as_trained(EnvironmentConfig(setups=setups, fps=12), union).fps == 12
    drawn = as_trained(EnvironmentConfig(setups="unseen"), SQUARE)
    assert (drawn.observation_height, drawn.cameras, drawn.instruction) == (None, None, None)
    assert as_trained(EnvironmentConfig(type="pusht"), union).fps is None


def test_the_environment_of_the_run_is_taken_where_none_is_named():
    trained = Trained(frozenset({(96, 96)}), frozenset({10.0}), frozenset(), ("pusht", "PushT-v0"))
    env = resolve(as_trained(EnvironmentConfig(), trained))
    assert (env.type, env.task, env.observation_height) == ("pusht", "PushT-v0", 96)
    assert as_trained(EnvironmentConfig(type="aloha"), trained).type == "aloha"


def texts(*most: str, count: int | None = None) -> Trained:
    reported = {"count": len(most) if count is None else count, "of_most_frames": most}
    return trained_on({"datasets": [ENTRY], "stream": {"instructions": reported}}, None)


def test_the_only_instruction_of_the_training_is_taken():
    env = as_trained(EnvironmentConfig(), texts("tap the\x1b[2J block"))
    assert env.instruction == "tap the [2J block"
    for exact in ("tap  the block", "tap " + "the long " * 60 + "block"):
        assert as_trained(EnvironmentConfig(), texts(exact)).instruction == exact
    assert as_trained(EnvironmentConfig(), texts("Touch the red cube.")).instruction is None, (
        "its own already"
    )
    several = texts("tap the block", "Touch the red cube.")
    assert as_trained(EnvironmentConfig(), several).instruction is None
    assert differences(as_trained(EnvironmentConfig(), several), several) == []


def test_an_instruction_that_was_never_trained_is_said():
    asked = EnvironmentConfig(fps=15, instruction="fetch the cube")
    (said,) = differences(as_trained(asked, texts("push", "pull")), texts("push", "pull"))
    assert said == 'the instruction "fetch the cube" here, "pull", "push" in training'
    assert differences(as_trained(asked, SQUARE), SQUARE) == [], "reports of earlier versions have no texts"
    many = texts("push", "pull", count=1000)
    assert differences(as_trained(asked, many), many) == []


@pytest.mark.parametrize("size", [[95, 96], [4096, 4096], [0, 0]])
def test_a_size_that_the_simulator_has_not_got_is_left(size):
    trained = trained_on({"datasets": [{**ENTRY, "camera_sizes": {"a": size}}]}, None)
    assert as_trained(EnvironmentConfig(), trained).observation_height is None


@pytest.mark.parametrize("env", [{"type": "os:Env-v0", "task": None}, {"type": "pusht", "task": ["x"]}])
def test_a_checkpoint_names_no_module_to_import(env):
    assert trained_on({"datasets": [ENTRY]}, None, env).env is None
    assert trained_on({"datasets": [ENTRY]}, None, {"type": "pusht", "task": "PushT-v0"}).env == (
        "pusht",
        "PushT-v0",
    )


DAMAGED = [
    "{",
    "[]",
    '{"datasets": [1]}',
    json.dumps({"datasets": [{**ENTRY, "recorded_fps": "x"}]}),
    json.dumps({"datasets": [{**ENTRY, "recorded_fps": 0}]}),
    json.dumps({"datasets": [{**ENTRY, "recorded_fps": math.nan}]}),
    json.dumps({"datasets": [{**ENTRY, "camera_sizes": {"a": [math.inf, 96]}}]}),
    json.dumps({"datasets": [ENTRY], "stream": {"instructions": ["push"]}}),
    json.dumps({"datasets": [ENTRY], "stream": {"instructions": {"count": 1, "of_most_frames": [1]}}}),
    json.dumps({"datasets": [ENTRY], "stream": []}),
]


@pytest.mark.parametrize("report", DAMAGED)
def test_damaged_reports_say_nothing(tmp_path, report):
    assert read_trained(tmp_path) is None
    (tmp_path / "train_config.json").write_text(json.dumps({"dataset": {}}))
    (tmp_path / "data_report.json").write_text(report)
    assert read_trained(tmp_path) is None


def test_folders_are_named_by_policy_and_time():
    assert _own_folder("alice/pick").name.endswith("_pick")
    assert _own_folder("outputs/train/touch/checkpoints/000100/pretrained_model").name.endswith(
        "_touch_000100"
    )
