"""`depi/train.py` with adapters and with frozen parts: what it saves, and that it goes on exactly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from depi.files import read_json
from depi.policies import load_policy
from depi.train import main as train

SCRIPT = Path(__file__).parents[2] / "depi" / "train.py"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--mixed_precision=no", "--dynamo_backend=no"]
LORA = ["--peft.method_type=LORA", "--peft.r=4", "--peft.lora_alpha=8", "--policy.dtype=bfloat16"]
EXPERT_ONLY = ["--policy.train_expert_only=true", "--policy.dtype=bfloat16"]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def file(run: Path, name: str) -> Path:
    return run / "checkpoints" / "last" / name


@pytest.fixture
def tuning(flags, tmp_path) -> list[str]:
    """What fine-tunes a checkpoint of the smallest pi0 for four steps."""
    assert train([*flags, "--steps=1", f"--output_dir={tmp_path / 'base'}"]) == 0
    others = [flag for flag in flags if not flag.startswith("--policy.")]
    settings = ["optimizer_lr=3e-3", "device=cpu", "scheduler_warmup_steps=1", "scheduler_decay_steps=2"]
    policy = [f"--policy.path={tmp_path / 'base'}", *(f"--policy.{each}" for each in settings)]
    return [*others, *policy, "--steps=4", "--save_freq=0"]


@pytest.mark.parametrize("kind", [LORA, EXPERT_ONLY], ids=["lora", "expert-only"])
def test_a_run_goes_on_exactly(tuning, tmp_path, kind):
    whole, parts = tmp_path / "run", tmp_path / "parts"
    assert train([*tuning, *kind]) == 0
    assert train([*tuning, *kind, f"--output_dir={parts}", "--steps=2"]) == 0
    assert train(["--resume=true", f"--output_dir={parts}", "--steps=4"]) == 0
    assert losses(parts) == losses(whole)
    names = ["pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors"]
    if kind is LORA:
        names.append("adapter/adapter_model.safetensors")
    for name in names:
        one, other = load_file(file(parts, name)), load_file(file(whole, name))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name

    before, after = (
        load_file(file(run, "pretrained_model/model.safetensors")) for run in (tmp_path / "base", whole)
    )
    assert before.keys() == after.keys()
    assert {value.dtype for value in after.values()} == {torch.float32}
    frozen = [key for key in before if "vision" in key or (kind is EXPERT_ONLY and "paligemma." in key)]
    for key in frozen:  # those that are computed with in bfloat16 were rounded to it
        assert torch.equal(after[key].bfloat16(), before[key].bfloat16()), key
    # Two numbers per trained parameter and its count of steps, and nothing else.
    state = load_file(file(whole, "training_state/optimizer_state.safetensors"))
    assert {value.dtype for value in state.values()} == {torch.float32}
    trained = sum(key.endswith("exp_avg") for key in state)
    assert len(state) == 3 * trained
    assert trained < len(before) if kind is EXPERT_ONLY else trained == 2 * (7 + 7 + 2 + 7) + 10


def test_merged_checkpoint_and_adapters_mean_the_same_policy(tuning, tmp_path):
    assert train([*tuning, *LORA, "--steps=2"]) == 0
    run = tmp_path / "run"
    config = read_json(file(run, "adapter/config.json"))
    assert config["use_peft"]
    assert not read_json(file(run, "pretrained_model/config.json"))["use_peft"]
    assert read_json(file(run, "adapter/adapter_config.json"))["r"] == 4
    merged = load_policy(file(run, "pretrained_model")).state_dict()
    added = load_policy(file(run, "adapter")).state_dict()
    base = load_policy(tmp_path / "base").state_dict()
    for name, value in merged.items():  # training held the base rounded to bfloat16
        assert ((added[name] - value).abs() <= 2**-8 * base[name].abs() + 1e-6).all(), name
    assert not torch.equal(
        merged["model.suffix.layers.0.q_proj.weight"], base["model.suffix.layers.0.q_proj.weight"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LORA, EXPERT_ONLY], ids=["lora", "expert-only"])
def test_two_processes_and_recomputing_train_the_same(tuning, tmp_path, kind):
    steps = ["--steps=2", "--log_freq=1"]
    assert train([*tuning, *kind, *steps]) == 0
    launch = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    two = ["--batch_size=2", "--recompute=0.5", f"--output_dir={tmp_path / 'two'}"]
    subprocess.run([*launch, str(SCRIPT), *tuning, *kind, *steps, *two], check=True, timeout=200)
    for one, other in zip(losses(tmp_path / "run"), losses(tmp_path / "two"), strict=True):
        assert abs(one - other) < 0.01 * one


@pytest.mark.slow
def test_adapters_on_compiled_layers(tuning, tmp_path):
    compiled = tmp_path / "compiled"
    assert train([*tuning, *LORA, "--steps=2"]) == 0
    assert train([*tuning, *LORA, "--steps=2", "--compile=true", f"--output_dir={compiled}"]) == 0
    for one, other in zip(losses(tmp_path / "run"), losses(compiled), strict=True):
        assert abs(one - other) < 0.01 * one


def test_what_goes_wrong_is_said(flags, tuning, tmp_path, capfd):
    assert train([*flags, *LORA]) == 2
    assert "--policy.path" in capfd.readouterr().err
    assert train([*tuning, "--peft.method_type=DORA"]) == 2
    assert "use LORA" in capfd.readouterr().err
    assert train([*tuning, *LORA, "--steps=1"]) == 0
    (tmp_path / "base").rename(tmp_path / "moved")
    assert train(["--resume=true", f"--output_dir={tmp_path / 'run'}", "--steps=2"]) == 2
    assert str(tmp_path / "base") in capfd.readouterr().err.splitlines()[-1]
