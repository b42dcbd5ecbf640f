"""A family in a whole run: killed, resumed, by two processes, evaluated, published, run by LeRobot."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from recordings import Recording, write_v2, write_v3
from runs import LAUNCH, SCRIPT, losses, replaced, small_training, weights

from depi import cli
from depi.files import write_json
from depi.hub.client.api import upload_folder
from depi.policies import load_policy, load_processors, preprocess, resolve_checkpoint
from depi.train import main as train

STEPS = 30


@pytest.fixture(scope="module")
def pushing(module_hub, tmp_path_factory):
    """Two datasets of PushT's shape, of different rates, on the embedded Hub."""
    folder = tmp_path_factory.mktemp("published")
    shape = {
        "cameras": ("observation.image",),
        "names": ["motor_0", "motor_1"],
        "tasks": ("Push the T-shaped block onto the T-shaped target.",),
        "dim": 2,
        "size": (96, 96),
    }
    write_v3(folder / "a", Recording(lengths=(9, 7), **shape))
    write_v2(folder / "b", Recording(lengths=(8, 6), fps=20, seed=1, **shape))
    ids = ["alice/push", "bob/push"]
    for repo_id, name in zip(ids, "ab", strict=True):
        upload_folder(folder / name, repo_id, repo_type="dataset", commit_message="Upload")
    write_json(folder / "data_ids" / "dataset_list_valid.json", ids)
    return folder / "data_ids"


@pytest.fixture
def flags(pushing, tmp_path):
    """The smallest pi0.5, whose prompts hold the state; later flags win."""
    changes = {"policy.type": "depi_pi05", "policy.tokenizer_max_length": 80, "steps": STEPS, "save_freq": 5}
    changes["policy.scheduler_decay_steps"] = STEPS
    environment = {"env.type": "pusht", "env.episode_length": 3, "eval.n_episodes": 1, "eval_freq": STEPS}
    return replaced(small_training(pushing, tmp_path / "run"), **changes, **environment)


@pytest.mark.slow
def test_killed_resumed_evaluated_published_and_run_by_lerobot(flags, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    assert train(replaced(flags, output_dir=whole)) == 0
    assert len(losses(whole)) == STEPS
    assert list((whole / "eval").rglob("*.json"))

    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, SCRIPT, *flags])
    try:
        while not (run / "checkpoints" / "last").exists():
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert train(["--resume=true", f"--output_dir={run}"]) == 0
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)

    assert cli.main(["upload", str(run), "carol/pushed"]) == 0
    ours, folder = load_policy("carol/pushed", device="cpu"), resolve_checkpoint("carol/pushed")
    pre, post = load_processors("carol/pushed", device="cpu")
    # By the calls of LeRobot's commands.
    config = PreTrainedConfig.from_pretrained(folder)
    theirs = get_policy_class(config.type).from_pretrained(folder, config=config)
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))
    camera = next(iter(config.image_features))
    batch = {
        camera: torch.rand(1, 3, 96, 96),
        "observation.state": torch.tensor([[200.0, 300.0]]),
        "task": ["Push the T-shaped block onto the T-shaped target."],
    }
    noise = torch.randn(1, config.chunk_size, config.max_action_dim)
    expected = post(ours.predict_action_chunk(preprocess(batch, pre), noise=noise))
    actions = after(theirs.predict_action_chunk(before(batch), noise=noise))
    torch.testing.assert_close(actions, expected)
    assert actions.shape == (1, config.chunk_size, 2)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(flags, tmp_path):
    kept = [flag for flag in flags if not flag.startswith(("--env.", "--eval"))]
    one = replaced(kept, save_freq=0)
    two = replaced(one, batch_size=2, output_dir=tmp_path / "two")
    launch = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    subprocess.run([*launch, str(SCRIPT), *two], check=True)
    assert train(one) == 0
    expected, found = losses(tmp_path / "run"), losses(tmp_path / "two")
    assert found.keys() == expected.keys()
    # Sums in another order: float32 rounding, which Adam's division makes larger in the later steps.
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-3)
