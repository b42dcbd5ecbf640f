"""What LeRobot's tutorials type for its own policies, at small size: see also `test_tutorial.py`."""

import re
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.envs.configs import PushtEnv
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from runs import losses, metrics
from safetensors.torch import load_file
from small_lerobot import SMALL, small_policy, small_run

from depi.errors import UserError
from depi.files import read_json
from depi.hub.client.api import upload_folder
from depi.policies.families import own_types
from depi.train import main as train
from depi.training.command_line import parse_train_config

LAST = "checkpoints/last/pretrained_model"
EVALUATED = ["--eval.n_episodes=1", "--eval.n_videos=0", "--eval.batch_size=1", "--env.episode_length=3"]
COMMANDS = {
    "pusht": ("diffusion", ["--env.type=pusht", "--dataset.repo_id=lerobot/pusht"]),
    "aloha": ("act", ["--env.type=aloha", "--dataset.repo_id=lerobot/aloha_sim_insertion_human"]),
}


def small(kind: str) -> list[str]:
    return [flag for flag in small_policy(kind) if not flag.startswith("--policy.push_to_hub")]


@pytest.mark.parametrize("env", COMMANDS)
def test_a_policy_with_its_environment(env, gym_data, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    kind, command = COMMANDS[env]
    size = [flag for flag in small_run("x", steps=2) if not flag.startswith("--output_dir")]
    with caplog.at_level("INFO"):
        assert train([*command, *small(kind), *size, *EVALUATED]) == 0
    (run,) = Path("outputs/train").glob("*/*")
    assert run.name.endswith(f"_{env}_{kind}")
    said = [record.getMessage() for record in caplog.records]
    number = r"[-\d.e+]+[KM]?"
    step = " ".join(
        f"{name}:{number}"
        for name in ["step", "smpl", "ep", "epch", "loss", "grdn", "lr", "updt_s", "data_s"]
    )
    assert any(re.match(step, line) for line in said)
    names = ["step", "smpl", "ep", "epch", "∑rwrd", "success", "length", "eval_s"]
    evaluated = "eval " + " ".join(f"{name}:{number}" for name in names)
    assert any(re.fullmatch(evaluated, line) for line in said), said
    assert {"eval/success_rate", "eval/mean_reward", "eval/seconds"} <= metrics(run)[-1].keys()
    features = read_json(run / LAST / "config.json")["input_features"]
    camera, shape = {
        "pusht": ("observation.image", [3, 96, 96]),
        "aloha": ("observation.images.top", [3, 48, 64]),
    }[env]
    assert features.pop(camera) == {"type": "VISUAL", "shape": shape}
    assert features.keys() == {"observation.state"}


@pytest.fixture(scope="module")
def trained(gym_data, tmp_path_factory) -> Path:
    """A run of the tutorial's ACT, on AlohaTransferCube-v0, without rollouts."""
    run = tmp_path_factory.mktemp("trained") / "act_aloha"
    command = [*COMMANDS["aloha"][1], "--env.task=AlohaTransferCube-v0", f"--output_dir={run}"]
    size = [*small_run(run, steps=2), "--eval_freq=0"]
    assert train([*command, *small("act"), *size]) == 0
    return run


def test_the_task_and_the_folder_that_were_named(trained):
    saved = read_json(trained / LAST / "train_config.json")
    assert (saved["env"]["task"], saved["policy"]["type"]) == ("AlohaTransferCube-v0", "act")
    assert read_json(trained / LAST / "config.json")["type"] == "act"
    card = (trained / LAST / "README.md").read_text()
    assert "`observation.images.top`, 48 x 64 px" in card
    assert "Action: 8 steps of 14 numbers" in card


@pytest.mark.parametrize("form", ["folder", "file", "repository"])
def test_the_configuration_of_a_run_with_other_action_steps(trained, tmp_path, form):
    source = {"folder": trained / LAST, "file": trained / LAST / "train_config.json", "repository": "a/act"}[
        form
    ]
    if form == "repository":
        upload_folder(trained / LAST, "a/act", repo_type="model", commit_message="Upload")
    config = parse_train_config(
        [f"--config_path={source}", "--policy.n_action_steps=5", f"--output_dir={tmp_path / 'again'}"]
    )
    assert (config.policy.n_action_steps, config.policy.chunk_size) == (5, 8)
    assert config.policy.dim_model == SMALL["act"]["dim_model"]
    assert config.policy.pretrained_path is None


def test_the_configuration_of_lerobots_own_run_on_the_hub(gym_data, tmp_path, caplog):
    """`lerobot/diffusion_pusht` in shape: what `lerobot-train` has written."""
    sizes = {name: SMALL["diffusion"][name] for name in ("horizon", "n_action_steps", "num_train_timesteps")}
    policy = DiffusionConfig(
        device="cpu",
        pretrained_backbone_weights=None,
        down_dims=(8, 16),
        diffusion_step_embed_dim=8,
        repo_id="a/diffusion_pusht",
        **sizes,
    )
    theirs = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="lerobot/pusht"),
        policy=policy,
        env=PushtEnv(),
        steps=1,
        batch_size=2,
        num_workers=0,
        env_eval_freq=5000,
    )
    theirs.optimizer, theirs.scheduler = policy.get_optimizer_preset(), policy.get_scheduler_preset()
    folder = tmp_path / "theirs"
    folder.mkdir()
    theirs._save_pretrained(folder)
    policy._save_pretrained(folder)
    upload_folder(folder, "a/diffusion_pusht", repo_type="model", commit_message="Upload")
    command = [
        "--config_path=a/diffusion_pusht",
        "--policy.n_action_steps=3",
        f"--output_dir={tmp_path / 'run'}",
    ]
    with caplog.at_level("WARNING"):
        config = parse_train_config(command)
    assert "settings of LeRobot's that do not count here" in caplog.text
    assert (config.policy.horizon, config.policy.n_action_steps, config.eval_freq) == (8, 3, 5000)
    assert (config.dataset.repo_id, config.env.type, config.steps) == ("lerobot/pusht", "pusht", 1)
    assert train([*command, "--eval_freq=0"]) == 0
    assert len(losses(tmp_path / "run")) == 1


def test_more_steps_by_resuming_and_the_flag_of_old_times(trained, capfd):
    assert train(["--resume=true", f"--config_path={trained / LAST}/", "--steps=3"]) == 0
    assert sorted(losses(trained)) == [1, 2, 3]
    assert train(["--resume=true", f"--config_path={trained / LAST}/", "--offline.steps=4"]) == 2
    assert "--offline.steps is not a flag here: use --steps" in capfd.readouterr().err.splitlines()[-1]


def test_fine_tuning_an_act_on_another_task(trained, gym_data, tmp_path, capfd):
    other = ["--dataset.repo_id=alice/cube", f"--output_dir={tmp_path / 'tuned'}"]
    command = [f"--policy.path={trained / LAST}", *other, "--steps=1"]
    small_steps = ["--batch_size=2", "--num_workers=0"]
    rates = ["--policy.optimizer_lr=1e-12", "--policy.optimizer_lr_backbone=1e-12"]
    assert train([*command, *small_steps, *rates]) == 0
    saved = PreTrainedConfig.from_pretrained(tmp_path / "tuned" / LAST)
    assert list(saved.image_features) == ["observation.images.high", "observation.images.low"]
    before, after = (
        load_file(folder / LAST / "model.safetensors") for folder in (trained, tmp_path / "tuned")
    )
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    wrong = [flag.replace("alice/cube", "lerobot/pusht").replace("tuned", "wrong") for flag in command]
    assert train([*wrong, *small_steps]) == 2
    assert "does not fit the policy" in capfd.readouterr().err.splitlines()[-1]


def test_mixed_precision_and_devices(gym_data, tmp_path):
    command = [*COMMANDS["pusht"][1][1:], *small("diffusion"), *small_run(tmp_path / "run", steps=1)]
    assert train([*command, "--policy.use_amp=true"]) == 0
    assert read_json(tmp_path / "run" / LAST / "config.json")["use_amp"] is True
    for device in ("cpu", "mps"):
        config = parse_train_config(
            [*command, f"--policy.device={device}", f"--output_dir={tmp_path / device}"]
        )
        there = device == "cpu" or torch.backends.mps.is_available()
        assert (config.policy.device == device) is there


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        (
            "--recompute=0.5",
            f"--recompute is for DePi's own networks ({own_types()}), and act is LeRobot's",
        ),
        ("--sharding=full", "--sharding is for DePi's own networks"),
        ("--compile=true", "--compile is for DePi's own networks"),
        ("--advantage.mode=on", "--advantage.mode is for DePi's own networks"),
        ("--policy.use_relative_actions=true", "--policy.use_relative_actions goes with --policy.type=pi0"),
        ("--policy.optimizer_grad_clip_norm=1", "--policy.optimizer_grad_clip_norm goes with"),
    ],
)
def test_what_lerobots_policies_cannot_do_is_one_sentence(tmp_path, flag, says):
    command = [*COMMANDS["aloha"][1], *small("act"), f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError) as caught:
        parse_train_config([*command, flag])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_backbone_that_cannot_be_fetched_names_the_flag(gym_data, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    command = [*COMMANDS["aloha"][1][1:], *small("act"), *small_run(tmp_path / "run")]
    backbone = "--policy.pretrained_backbone_weights=ResNet18_Weights.IMAGENET1K_V1"
    assert train([*command, backbone]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert "--policy.pretrained_backbone_weights=null begins with random ones" in said
