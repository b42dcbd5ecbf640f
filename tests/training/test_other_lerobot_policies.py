"""vqbet, smolvla and multi_task_dit, tiny, in DePi's loop: see also `test_lerobot_policies.py`."""

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from runs import losses, weights
from safetensors.torch import load_file
from small_lerobot import small_policy, small_run
from tiny_backbones import publish_clip, publish_smolvlm

from depi.train import main as train

LAST = "checkpoints/last/pretrained_model"
ONE = ["--dataset.repo_id=alice/pick"]


@pytest.fixture(scope="module")
def backbones(module_hub, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("backbones")
    publish_smolvlm(folder / "smolvlm")
    publish_clip(folder / "clip")


def lerobots_action(folder) -> torch.Tensor:
    """What LeRobot's class does at random observations, loaded from a checkpoint by LeRobot."""
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    pre, post = make_pre_post_processors(config, str(folder))
    torch.manual_seed(0)
    seen = {key: torch.rand(1, *feature.shape) for key, feature in config.input_features.items()}
    return post(policy.select_action(pre({**seen, "task": ["Pick."]})))


@pytest.mark.parametrize("kind", ["smolvla", "multi_task_dit"])
def test_a_run_resumes_bit_for_bit_and_lerobot_loads_it(kind, backbones, data_ids, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    size = {"steps": 4, "batch_size": 2}
    assert train([*small_policy(kind), *ONE, *small_run(whole, **size)]) == 0
    begun = f"--config_path={whole / 'checkpoints/000002/pretrained_model'}"
    assert train(["--resume=true", begun, f"--output_dir={resumed}", "--num_workers=1"]) == 0
    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 2}
    assert weights(resumed) == weights(whole)
    assert lerobots_action(whole / LAST).shape == (1, 6)


def test_a_backbone_in_bfloat16_is_trained_in_float32(backbones, data_ids, tmp_path):
    whole = {"load_vlm_weights": "true", "train_expert_only": "false"}
    run = [*small_policy("smolvla", **whole), *ONE, *small_run(tmp_path / "run", steps=1, batch_size=2)]
    assert train(run) == 0
    saved = load_file(tmp_path / "run" / LAST / "model.safetensors")
    assert {value.dtype for value in saved.values() if value.is_floating_point()} == {torch.float32}


def test_vqbet_trains_both_of_its_stages_and_is_not_resumed(data_ids, tmp_path, capfd):
    run = tmp_path / "run"
    one_camera = "--dataset.repo_id=bob/place"
    assert train([*small_policy("vqbet"), one_camera, *small_run(run, steps=4, batch_size=2)]) == 0
    assert len(losses(run)) == 4
    assert lerobots_action(run / LAST).shape == (1, 6)
    assert train(["--resume=true", f"--output_dir={run}", "--steps=5"]) == 2
    assert "a vqbet run cannot go on exactly" in capfd.readouterr().err.splitlines()[-1]
