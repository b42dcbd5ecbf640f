"""`lerobot-rollout` is told the rate of the training, unless a person chooses another."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from depi.files import write_json

sys.path.append(str(Path(__file__).parents[2] / "plugins" / "lerobot_policy_depi"))

from lerobot_policy_depi.rate import fill_rate

WHOLE = "actions a second as in training: --fps=10 --dataset.fps=10"
DIFFERENT = "the policy was trained at 10 actions a second: --fps=10 --dataset.fps=10 plays it at its speed"


@pytest.fixture
def config(tmp_path):
    return SimpleNamespace(
        policy=SimpleNamespace(pretrained_path=tmp_path, pretrained_revision=None),
        dataset=SimpleNamespace(fps=30),
        fps=30.0,
    )


def trained_at(folder, *rates):
    datasets = [{"cameras": [], "camera_sizes": {}, "recorded_fps": rate} for rate in rates]
    write_json(folder / "data_report.json", {"datasets": datasets})
    write_json(folder / "train_config.json", {"dataset": {"action_freq": None}})
    write_json(folder / "config.json", {"type": "act"})


@pytest.mark.parametrize(
    ("args", "rate", "said"),
    [
        (["--task=x"], 10, WHOLE),
        (["--fps=30"], 30, DIFFERENT),
        (["--dataset.fps", "30"], 30, DIFFERENT),
        (["--config_path=rollout.yaml"], 30, DIFFERENT),
    ],
)
def test_a_rate_that_nobody_chose_is_that_of_the_training(config, tmp_path, caplog, args, rate, said):
    trained_at(tmp_path, 10.0, 10.0, 30.0)
    fill_rate(config, args)
    assert (config.fps, config.dataset.fps) == (rate, rate)
    assert caplog.messages == [said]


@pytest.mark.parametrize("rates", [(30.0,), (10.0, 30.0), (29.97,), ()])
def test_where_the_training_has_no_other_rate_nothing_is_said(config, tmp_path, caplog, rates):
    trained_at(tmp_path, *rates)
    fill_rate(config, [])
    assert (config.fps, config.dataset.fps) == (30, 30)
    assert caplog.messages == []


def test_a_checkpoint_of_others_says_nothing(config, tmp_path, caplog):
    write_json(tmp_path / "config.json", {"type": "act"})
    fill_rate(config, [])
    assert config.fps == 30
    assert caplog.messages == []


def test_without_a_recording_the_arm_alone_is_told(config, tmp_path, caplog):
    trained_at(tmp_path, 12.5)
    config.dataset = None
    fill_rate(config, [])
    assert caplog.messages == [
        "the policy was trained at 12.5 actions a second: --fps=12.5 plays it at its speed"
    ]
