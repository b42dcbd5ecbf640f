"""What LeRobot's tutorial on training types, one test for each thing it shows."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from lerobot.configs import FeatureType
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from runs import losses, replaced
from safetensors.torch import load_file, save_file

from depi.errors import UserError
from depi.files import read_json
from depi.hub.client.api import upload_folder
from depi.policies.configuration import set_features
from depi.train import main as train
from depi.training.command_line import parse_train_config
from depi.training.config import config_to_json

FROM_DATA = ("input_features", "output_features", "action_feature_names")
LAST = "checkpoints/last/pretrained_model"


@pytest.fixture
def one(flags) -> list[str]:
    """The smallest policy for one step, without data."""
    kept = [flag for flag in flags if not flag.startswith(("--num_datasets", "--dataset."))]
    return replaced(kept, steps=1, save_freq=0)


@pytest.mark.parametrize(
    ("repo_id", "env", "dim"),
    [
        pytest.param("lerobot/pusht", "pusht", 2, marks=pytest.mark.slow),
        pytest.param("lerobot/aloha_sim_insertion_human", "aloha", 14, marks=pytest.mark.slow),
    ],
)
def test_a_gym_dataset_with_its_environment(one, gym_data, tmp_path, monkeypatch, repo_id, env, dim):
    monkeypatch.chdir(tmp_path)
    flags = [flag for flag in one if not flag.startswith(("--output_dir", "--job_name"))]
    assert train([*flags, f"--dataset.repo_id={repo_id}", f"--env.type={env}"]) == 0
    (run,) = Path("outputs/train").glob("*/*")
    assert re.fullmatch(rf"\d\d-\d\d-\d\d_{env}_depi_pi0", run.name)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", run.parent.name)
    config = read_json(run / LAST / "config.json")
    assert config["input_features"]["observation.state"] == {"type": "STATE", "shape": [dim]}
    assert config["output_features"]["action"] == {"type": "ACTION", "shape": [dim]}
    (entry,) = read_json(run / "data_report.json")["datasets"]
    assert entry["convention"] == "native"
    saved = read_json(run / LAST / "train_config.json")
    assert (saved["env"]["type"], saved["dataset"]["repo_id"]) == (env, repo_id)


def test_configuration_from_a_file_its_folder_or_the_hub_and_flags_win(flags, module_hub, tmp_path, caplog):
    with caplog.at_level("INFO", "depi.train"):
        assert train(replaced(flags, steps=1, batch_size=2)) == 0
    folder = tmp_path / "run" / LAST
    saved = read_json(folder / "train_config.json")
    printed = next(record.getMessage() for record in caplog.records if record.name == "depi.train")
    config = json.loads(printed.removeprefix("configuration: "))
    assert (config["compile"], saved["compile"]) == (None, False), "decided where the device is known"
    config["compile"] = False
    config["policy"] |= {name: saved["policy"][name] for name in FROM_DATA}
    assert config == saved
    upload_folder(folder, "alice/trained", repo_type="model", commit_message="Upload")
    for source in (folder / "train_config.json", folder, "alice/trained"):
        again = ["--steps=2", f"--output_dir={tmp_path / 'again'}"]
        config = parse_train_config([f"--config_path={source}", *again])
        assert (config.batch_size, config.steps, config.policy.chunk_size) == (2, 2, 4)
    assert train(["--config_path=alice/trained", *again]) == 0
    assert list(losses(tmp_path / "again"))[-1] == 2


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_yaml_or_json_file_with_a_policy_to_fine_tune(flags, tmp_path, suffix):
    assert train(replaced(flags, steps=1)) == 0
    content = {
        "policy": {"path": str(tmp_path / "run"), "n_action_steps": 2},
        "dataset": {"repo_id": "alice/pick", "episodes": [0]},
        "batch_size": 2,
    }
    file = tmp_path / f"config.{suffix}"
    file.write_text(json.dumps(content))  # which is YAML too
    args = [f"--config_path={file}", f"--output_dir={tmp_path / 'tuned'}"]
    config = parse_train_config([*args, "--policy.optimizer_lr=1e-9", "--batch_size=3"])
    assert config.policy.pretrained_path == (tmp_path / "run" / LAST).resolve()
    assert (config.policy.n_action_steps, config.policy.optimizer_lr) == (2, 1e-9)
    assert (config.batch_size, config.dataset.episodes) == (3, [0])
    other = parse_train_config([*flags, f"--output_dir={tmp_path / 'other'}"])
    assert other.policy.pretrained_path is None


def test_environments_and_lists_come_back_from_a_saved_configuration(flags, tmp_path):
    data = ["--dataset.episodes", "0", "1", "--dataset.repo_id=alice/pick"]
    flags = [*(flag for flag in flags if not flag.startswith("--num_datasets")), *data]
    config = parse_train_config(
        [*flags, "--env.type=pusht", "--env.episode_length=40", "--wandb.mode=offline"]
    )
    assert config.dataset.episodes == [0, 1]
    assert config.wandb.project == "depi"
    file = tmp_path / "train_config.json"
    file.write_text(config_to_json(config))
    again = parse_train_config([f"--config_path={file}", "--env.fps=5"])
    assert again.env == type(config.env)(episode_length=40, fps=5)
    assert again.policy == config.policy


def test_full_size_pi0_from_scratch_takes_its_shapes_from_the_data(tmp_path):
    args = ["--policy.type=pi0", "--dataset.repo_id=a/b", f"--output_dir={tmp_path / 'run'}"]
    config = parse_train_config([*args, "--policy.device=cpu", "--policy.push_to_hub=false"])
    assert type(config.policy) is PI0Config
    assert (config.policy.chunk_size, config.policy.optimizer_lr) == (50, 2.5e-5)

    class Data:
        state_dim = action_dim = 14
        camera_slots = ("observation.images.0",)

    set_features(config.policy, Data)
    assert config.policy.output_features["action"].shape == (14,)
    assert config.policy.input_features["observation.images.0"].type is FeatureType.VISUAL
    from depi.policies import Pi0Policy

    with torch.device("meta"):
        policy = Pi0Policy(config.policy)
    assert 3.1e9 < sum(parameter.numel() for parameter in policy.parameters()) < 3.5e9


def test_fine_tuning_from_the_hub_with_overrides_and_without_strict(flags, module_hub, tmp_path, capfd):
    assert train(replaced(flags, steps=1)) == 0
    folder = tmp_path / "run" / LAST
    tensors = load_file(folder / "model.safetensors")
    removed = next(key for key in tensors if key.endswith("action_in_proj.weight"))
    save_file({key: value for key, value in tensors.items() if key != removed}, folder / "model.safetensors")
    upload_folder(folder, "alice/partial", repo_type="model", commit_message="Upload")
    data = [flag for flag in flags if not flag.startswith("--policy.")]
    data = replaced(data, steps=1, output_dir=tmp_path / "tuned")
    tune = [*data, "--policy.path=alice/partial", "--policy.n_action_steps=2"]
    capfd.readouterr()
    assert train(tune) == 2
    assert removed.rpartition("model.")[2] in capfd.readouterr().err
    assert train([*tune, "--strict=false"]) == 0
    saved = read_json(tmp_path / "tuned" / LAST / "config.json")
    assert (saved["n_action_steps"], saved["chunk_size"]) == (2, 4)


@pytest.mark.parametrize(
    ("typed", "publishes"),
    [
        (["--policy.repo_id=alice/mine"], True),
        (["--policy.repo_id=alice/mine", "--policy.push_to_hub=true"], True),
        (["--policy.repo_id=alice/mine", "--policy.push_to_hub=false"], False),
        (["--policy.repo_id=alice/mine", "--push_to_hub=false"], False),
        ([], False),
    ],
)
def test_who_names_a_repository_publishes_as_in_lerobot(flags, typed, publishes):
    assert parse_train_config([*flags, *typed]).push_to_hub is publishes


def test_the_weights_of_another_policy_under_lerobots_name(flags, module_hub, tmp_path):
    """`--policy.type=pi0 --policy.pretrained_path=lerobot/pi0_base`, as on LeRobot's page on pi0."""
    assert train(replaced(flags, steps=1)) == 0
    upload_folder(tmp_path / "run" / LAST, "alice/base", repo_type="model", commit_message="Upload")
    tuned = replaced(flags, steps=1, output_dir=tmp_path / "tuned")
    config = parse_train_config([*tuned, "--policy.pretrained_path=alice/base"])
    assert (config.policy.pretrained_path / "model.safetensors").is_file()
    assert "snapshots" in config.policy.pretrained_path.parts
    with pytest.raises(UserError, match="alice/nothing"):
        parse_train_config([*tuned, "--policy.pretrained_path=alice/nothing"])


def test_resuming_with_more_steps_the_way_the_tutorial_does(flags, tmp_path, capfd):
    assert train(replaced(flags, steps=2)) == 0
    resume = ["--resume=true", f"--config_path={tmp_path / 'run' / LAST}/"]
    assert train([*resume, "--steps=3", "--save_freq=1"]) == 0
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]
    assert os.readlink(tmp_path / "run" / "checkpoints" / "last") == "000003"
    assert train(flags) == 2
    assert "--resume=true" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--policy.use_amp=true", "--policy.dtype=bfloat16"),
        ("--env.type=no_such", "pusht"),
        ("--policy.type=groot", "--policy.type=groot is none of pi0, pi05, depi_pi0, depi_pi05"),
        ("--dataset.streaming=true", "not a flag here"),
    ],
)
def test_what_works_in_lerobot_only_says_what_to_do(flags, monkeypatch, flag, says):
    monkeypatch.setattr("lerobot.configs.policies.is_amp_available", lambda device: True)
    with pytest.raises(UserError) as caught:
        parse_train_config([*flags, flag])
    assert says in str(caught.value)
