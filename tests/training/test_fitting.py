"""Which flags make a training fit a GPU: the search, `depi estimate`, and what a full GPU is told."""

import json
from pathlib import Path

import pytest
import torch
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from small_pi0 import make_small

from depi.cli import main
from depi.errors import UserError
from depi.hub.client.api import upload_folder
from depi.policies.choices import save_config
from depi.training.command_line import read_train_config
from depi.training.fitting import first_that_fits, full_memory_named, plans

RECIPES = Path(__file__).parents[2] / "configs" / "train"


@pytest.fixture(scope="module")
def bases(module_hub, tmp_path_factory) -> None:
    """The configurations of the published checkpoints, without their weights: nothing asks for them."""
    for name, config_class in (("pi0_base", PI0Config), ("pi05_base", PI05Config)):
        folder = tmp_path_factory.mktemp(name)
        save_config(config_class(device="cpu"), folder)
        upload_folder(folder, f"lerobot/{name}", repo_type="model", commit_message="Upload")


def plan(memory_gb, *flags, **facts):
    config = read_train_config(["--policy.type=pi0", "--batch_size=32", *flags])
    return first_that_fits(plans(config, **facts), memory_gb * 1e9)


def test_samples_of_a_step_and_what_is_trained_change_last():
    assert plan(300).flags == {}
    large = plan(141).flags
    assert large["policy.dtype"] == "bfloat16"
    assert large.get("batch_size", 32) * large.get("gradient_accumulation_steps", 1) == 32
    assert not {"policy.train_expert_only", "peft.r", "sharding"} & large.keys()
    assert plan(40).flags["policy.train_expert_only"] is True
    assert plan(40, processes=8).flags["sharding"] == "full"
    assert plan(5) is None


def test_what_is_proposed_is_what_is_estimated(capsys):
    """The flags, typed, need as much as was said, and fit."""
    asked = ["estimate", "--policy.type=pi0", "--json"]
    assert main([*asked, "--batch_size", "12", "--gpu_memory=66"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["cards"]["66 GB"][0]
    assert found["flags"]["batch_size"] * found["flags"]["gradient_accumulation_steps"] == 12
    assert main([*asked, *(f"--{name}={value}" for name, value in found["flags"].items())]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["total"] == found["total"] <= 66e9


def test_adapters_are_proposed_for_a_checkpoint_alone(tmp_path):
    save_config(make_small().config, tmp_path)
    config = read_train_config([f"--policy.path={tmp_path}", "--ema.decay=0.99"])
    *_, last = plans(config)
    assert last.line().endswith(
        "--ema.decay=null --peft.r=16 --batch_size=1 --gradient_accumulation_steps=8 --recompute=1.0"
    )
    assert last.estimate.trainable < last.estimate.parameters / 3


@pytest.mark.parametrize(
    ("recipe", "images"), [("pi0_pusht", 1), ("pi0_aloha", 1), ("pi0_base", 2), ("pi05_base", 2)]
)
def test_recipes_are_read(recipe, images, bases, capsys):
    path = RECIPES / f"{recipe}.yaml"
    assert main(["estimate", f"--config_path={path}", f"--images={images}", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out.splitlines()[-1])["cards"]
    assert cards["80 GB"][0]["flags"] == {}, "a recipe fits the card that it names"
    assert [plan["trained"] for plan in cards["24 GB"]] == ["the action expert", "adapters (LoRA)"]


def test_a_full_gpu_is_told_what_needs_less(monkeypatch):
    config = read_train_config(["--policy.type=pi0", "--policy.dtype=bfloat16", "--batch_size=8"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 85e9))
    with (
        pytest.raises(UserError, match=r"memory is full .*this fits .*--recompute=0.25"),
        full_memory_named(config, images=3, processes=1, local=1),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no policy"),
        (["--policy.type=act"], "counted of DePi's own networks only"),
        (["--policy.type=pi0", "--sharding=half"], "none of none, full"),
        (["--policy.type=pi0", "--recompute=2"], "0 to 1"),
        (["--policy.type=pi0", "--batch_size=0"], "at least 1"),
        (["--policy.type=pi0", "--images=0"], "--images must be"),
        (["--policy.type=pi0", "--gpu_memory=lots"], "gpu_memory"),
        (["--policy.type=pi0", "--imagse=2"], "unknown flag --imagse"),
    ],
)
def test_command_refuses(flags, message, capsys):
    assert main(["estimate", *flags]) == 2
    assert message in capsys.readouterr().err
