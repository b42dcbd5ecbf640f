"""LeRobot's own policies in DePi's loop: one dataset or many, saved, resumed, averaged, loaded by LeRobot."""

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from runs import losses, weights
from small_lerobot import small_policy, small_run

from depi.train import main as train

KINDS = ("act", "diffusion")
LAST = "checkpoints/last/pretrained_model"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_one_dataset_resumes_bit_for_bit_and_lerobot_loads_it(kind, data_ids, tmp_path):
    flags = [*small_policy(kind), "--dataset.repo_id=alice/pick", "--ema.decay=0.5"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train([*flags, *small_run(whole)]) == 0
    assert train([*flags, *small_run(stopped, steps=4, num_workers=1)]) == 0
    resume = ["--resume=true", f"--config_path={stopped / LAST}", "--steps=6"]
    assert train(resume) == 0
    if kind == "act":  # whose schedule does not depend on the number of steps
        assert losses(stopped) == losses(whole)
        assert weights(stopped) == weights(whole)

    config = PreTrainedConfig.from_pretrained(whole / LAST)
    policy = get_policy_class(kind).from_pretrained(whole / LAST, config=config, strict=True)
    pre, post = make_pre_post_processors(config, str(whole / LAST))
    policy.reset()
    seen = {key: torch.rand(1, *feature.shape) for key, feature in config.input_features.items()}
    assert post(policy.select_action(pre({**seen, "task": ["Pick."]}))).shape == (1, 6)
