"""What no flag says, and the device decides."""

import json
import logging
import os

import pytest
import torch
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from runs import metrics, replaced, small_training

from depi.cli import main as depi
from depi.policies.choices import save_config
from depi.policies.gpus import COMPILED
from depi.train import main
from depi.training.command_line import parse_train_config, read_train_config
from depi.training.config import TrainConfig
from depi.training.device_defaults import settle

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
FLAGS = ["--policy.type=pi0", "--policy.device=cpu", "--dataset.repo_id=a/b"]


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    """A GPU that computes in bfloat16, as far as the defaults ask; and no folder for what is compiled."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(COMPILED, "")
    monkeypatch.delenv(COMPILED)


def settled(device, policy=None, *, precision_open=True, **flags):
    config = TrainConfig(policy=policy or PI0Config(device="cpu"), **flags)
    config.precision_open = precision_open
    settle(config, device)
    assert not config.precision_open
    return config.compile, getattr(config.policy, "dtype", None)


def test_what_a_gpu_decides(caplog, monkeypatch, tmp_path):
    with caplog.at_level(logging.INFO):
        assert settled(CUDA) == (True, "bfloat16")
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == (
        "on this GPU: compiled layers (else --compile=false) and bfloat16 beside float32 weights "
        "(else --policy.dtype=float32)"
    )
    assert f"a minute or two where {tmp_path / 'cache' / 'compiled'}" in said[1]
    assert settled(CUDA, compile=False, precision_open=False) == (False, "float32")
    assert settled(CPU) == (False, "float32")
    assert settled(CUDA, ACTConfig(device="cpu")) == (False, None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert settled(CUDA) == (True, "float32")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert settled(CUDA) == (False, "float32")


def test_a_folder_of_the_users_own_is_kept(monkeypatch):
    monkeypatch.setenv(COMPILED, "/elsewhere")
    settled(CUDA)
    assert os.environ[COMPILED] == "/elsewhere"


def test_what_names_the_precision(tmp_path):
    def left_open(*flags):
        return read_train_config(flags).precision_open

    assert left_open(*FLAGS)
    assert not left_open(*FLAGS, "--policy.dtype=float32")
    assert parse_train_config([*FLAGS, f"--output_dir={tmp_path / 'run'}"]).precision_open
    save_config(PI0Config(device="cpu"), tmp_path)
    file = tmp_path / "train.yaml"
    file.write_text(f"policy: {{path: {tmp_path}}}\n")
    assert left_open(f"--config_path={file}")
    file.write_text(f"policy: {{path: {tmp_path}, dtype: float32}}\n")
    assert not left_open(f"--config_path={file}")


def test_a_run_keeps_what_was_decided(data_ids, tmp_path):
    run = tmp_path / "run"
    flags = replaced(small_training(data_ids, run), steps=2)
    assert main(flags) == 0
    file = run / "checkpoints/last/pretrained_model/train_config.json"
    content = json.loads(file.read_text())
    assert content["compile"] is False
    assert "precision_open" not in content
    config = parse_train_config(["--resume=true", f"--output_dir={run}"])
    settle(config, CUDA)
    assert (config.compile, config.policy.dtype) == (False, "float32")
    chosen = "--policy.attention_backends=efficient"
    assert main(["--resume=true", f"--output_dir={run}", "--steps=3", chosen]) == 0
    assert len(metrics(run)) == 3
    saved = json.loads((run / "checkpoints/last/pretrained_model/config.json").read_text())
    assert saved["attention_backends"] == "efficient"


def test_estimate_says_the_flags_that_fit(capsys):
    asked = ["estimate", "--policy.type=pi0", "--batch_size=32", "--fit"]
    assert depi([*asked, "--gpu_memory=80"]) == 0
    line = capsys.readouterr().out.strip()
    assert line == "--batch_size=4 --gradient_accumulation_steps=8"
    assert depi([*asked, "--gpu_memory=24"]) == 2
    said = capsys.readouterr().err
    assert "this does not fit 24 GB; this fits" in said
    assert "--policy.train_expert_only=true" in said
    assert depi(asked) == 2
    assert "such as --gpu_memory=24" in capsys.readouterr().err
