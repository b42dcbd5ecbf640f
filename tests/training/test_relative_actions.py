"""Training on actions relative to the state: what is normalised, saved, resumed and played."""

import json

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import RelativeActionsProcessorStep
from recordings import Recording, write_v2, write_v3
from runs import losses, metrics, replaced, weights
from small_pi0 import SIZES

from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError
from depi.policies import (
    DepiPi0Config,
    load_policy,
    load_processors,
    make_processors,
    relative_joints,
    set_features,
)
from depi.train import main as train

RELATIVE = {"policy.use_relative_actions": "true"}


@pytest.fixture(scope="module")
def recorded(module_hub, tmp_path_factory):
    """Two datasets at different rates."""
    folder = tmp_path_factory.mktemp("recorded")
    write_v3(folder / "v30", Recording(lengths=(19, 17)))
    write_v2(folder / "v21", Recording(lengths=(18, 16), fps=20, seed=1))
    return [DatasetSource(f"user/{name}", root=folder / name) for name in ("v30", "v21")]


@pytest.mark.parametrize("convention", ["degrees", "normalized"])
@pytest.mark.parametrize("action_freq", [None, 10, 13])
def test_chunks_recombined_are_the_recorded_actions(recorded, convention, action_freq):
    data = MultiLeRobotDataset(
        recorded, chunk_size=4, image_size=28, action_freq=action_freq, joint_convention=convention
    )
    config = DepiPi0Config(**SIZES, use_relative_actions=True, action_feature_names=list(data.action_names))
    set_features(config, data)
    relative = relative_joints(config)
    assert relative == [True] * 5 + [False]
    stats = {**data.stats, "action": data.relative_stats(relative)}
    pre, post = make_processors(config, stats)
    batch = torch.utils.data.default_collate([data[frame] for frame in range(len(data))])
    processed = pre(dict(batch))
    torch.testing.assert_close(post(processed["action"]), batch["action"], rtol=0, atol=1e-4)
    # Over all actions that are not padding, what the policy sees has mean 0 and deviation 1.
    seen = processed["action"][~batch["action_is_pad"]]
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen.std(dim=0, correction=0), torch.ones(6), rtol=0, atol=1e-4)


def test_the_statistics_are_cached_with_the_index(recorded, monkeypatch):
    data = MultiLeRobotDataset(recorded, chunk_size=5, image_size=28)
    first = data.relative_stats([True] * 6)
    monkeypatch.setattr("depi.datasets.union.multi.relative_stats", None)
    again = MultiLeRobotDataset(recorded, chunk_size=5, image_size=28).relative_stats([True] * 6)
    assert first.keys() == again.keys()
    assert all((first[name] == again[name]).all() for name in first)


def test_state_and_action_must_be_of_the_same_joints(recorded):
    data = MultiLeRobotDataset(recorded, chunk_size=4, image_size=28)
    data.action_names = data.action_names[::-1]
    with pytest.raises(UserError, match="actions cannot be relative to the state"):
        data.relative_stats([True] * 6)


def test_a_run_is_resumed_played_and_read_by_lerobot(flags, tmp_path):
    simulator = {"env.type": "so101", "env.task": "touch", "eval.n_episodes": 1, "env.episode_length": 3}
    flags = replaced(flags, **RELATIVE, **simulator, eval_freq=6)
    assert train(replaced(flags, output_dir=tmp_path / "whole")) == 0
    assert train(replaced(flags, steps=4, eval_freq=0)) == 0
    run = tmp_path / "run"
    assert train(["--resume=true", f"--output_dir={run}", "--steps=6", "--eval_freq=6"]) == 0
    assert losses(run) == losses(tmp_path / "whole")
    assert weights(run) == weights(tmp_path / "whole")
    assert any("eval/success_rate" in line for line in metrics(run))
    folder = run / "checkpoints" / "last" / "pretrained_model"
    steps = json.loads((folder / "policy_preprocessor.json").read_text())["steps"]
    (saved,) = [step for step in steps if step.get("registry_name") == "relative_actions_processor"]
    assert saved["config"]["enabled"]
    assert saved["config"]["exclude_joints"] == ["gripper"]
    assert "--inference.type=rtc" in (folder / "README.md").read_text()

    pre, post = load_processors(folder)
    stock_pre, stock_post = make_pre_post_processors(
        PreTrainedConfig.from_pretrained(folder), pretrained_path=str(folder)
    )
    assert any(isinstance(step, RelativeActionsProcessorStep) and step.enabled for step in stock_pre.steps)
    batch = {
        **{f"observation.images.{slot}": torch.rand(1, 3, 28, 28) for slot in range(2)},
        "observation.state": torch.randn(1, 6) * 30,
        "task": ["pick the cube"],
    }
    processed, theirs = pre(dict(batch)), stock_pre(dict(batch))
    policy = load_policy(folder, device="cpu")
    chunk = policy.predict_action_chunk(processed, noise=torch.zeros(1, 4, 32))
    torch.testing.assert_close(processed["observation.state"], theirs["observation.state"])
    torch.testing.assert_close(post(chunk), stock_post(chunk))
    with pytest.raises(UserError, match="select_action cannot give relative actions one by one"):
        policy.select_action(processed)
