"""Flags of DePi's policies that LeRobot's configuration has no field for: typed, saved, resumed."""

import json

import pytest
from runs import losses, metrics, replaced, small_training

from depi.errors import UserError
from depi.policies import load_policy
from depi.policies.choices import choices_of
from depi.train import main
from depi.training.command_line import parse_train_config
from depi.training.config import config_to_json

FLAG = "--policy.rtc_training_max_delay=3"


@pytest.mark.parametrize("kind", ["pi0", "depi_pi0", "pi05", "depi_pi05"])
def test_the_flag_is_that_of_every_size(tmp_path, kind):
    args = [f"--policy.type={kind}", "--policy.device=cpu", "--dataset.repo_id=a/b", FLAG]
    config = parse_train_config([*args, f"--output_dir={tmp_path / 'run'}"])
    assert choices_of(config.policy).rtc_training_max_delay == 3
    file = tmp_path / "train_config.json"
    file.write_text(config_to_json(config))
    assert json.loads(file.read_text())["policy"]["rtc_training_max_delay"] == 3
    again = parse_train_config([f"--config_path={file}"])
    assert choices_of(again.policy) == choices_of(config.policy)
    changed = parse_train_config([f"--config_path={file}", "--policy.rtc_training_max_delay=1"])
    assert choices_of(changed.policy).rtc_training_max_delay == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--policy.type=pi0", "--policy.float8=x"], "float8"),
        (["--policy.type=pi0", "--policy.rtc_training_max_delay=50"], "must be 0 to 49"),
        (["--policy.type=pi0", "--policy.rtc_training_max_delay=x"], "rtc_training_max_delay"),
        (["--policy.type=value", FLAG], "goes with"),
    ],
)
def test_wrong_choices_are_refused(tmp_path, flags, says):
    with pytest.raises(UserError, match=says):
        parse_train_config(
            ["--policy.device=cpu", "--dataset.repo_id=a/b", f"--output_dir={tmp_path / 'run'}", *flags]
        )


def test_a_run_with_delays_is_resumed_to_the_same_losses(data_ids, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [*small_training(data_ids, whole), FLAG]
    assert main(flags) == 0
    assert main(replaced(flags, output_dir=parts, steps=3)) == 0
    assert main(["--resume=true", f"--output_dir={parts}", "--steps=6"]) == 0
    assert losses(parts) == losses(whole)
    assert len(metrics(whole)) == 6
    assert load_policy(whole).config.rtc_training_max_delay == 3
    assert main(["--resume=true", f"--output_dir={whole}", "--policy.rtc_training_max_delay=2"]) == 2


def test_a_run_in_float8_is_resumed_to_the_same_losses(data_ids, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [*small_training(data_ids, whole), "--policy.float8=true"]
    assert main(flags) == 2
    assert "--policy.float8=true goes with --policy.dtype=bfloat16" in capsys.readouterr().err
    flags = replaced(flags, **{"policy.dtype": "bfloat16"})
    assert main(flags) == 0
    assert main(replaced(flags, output_dir=parts, steps=3)) == 0
    assert main(["--resume=true", f"--output_dir={parts}", "--steps=6"]) == 0
    assert losses(parts) == losses(whole)
    assert load_policy(whole).config.float8
