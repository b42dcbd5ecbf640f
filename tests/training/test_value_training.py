"""Training a value function: launched, resumed, refused where it makes no sense; and how good it is."""

import json
import subprocess

import av
import numpy as np
import pytest
from PIL import Image
from runs import LAUNCH, SCRIPT, losses, metrics, weights
from sim_outcomes import TASKS, record_outcomes
from value_figures import Judge

from depi.errors import UserError
from depi.files import write_json
from depi.policies.factory import load_value
from depi.recap.plot import main as plot
from depi.train import main

SMALL = {
    "size": "tiny",
    "device": "cpu",
    "image_resolution": "[28,28]",
    "vision_width": 16,
    "vision_depth": 1,
    "vision_mlp_dim": 32,
    "width": 32,
    "mlp_dim": 32,
    "depth": 2,
    "head_dim": 16,
    "c_fail": 10,
    "reward_normalizer": 20,
    "optimizer_lr": 3e-3,
    "scheduler_warmup_steps": 1,
    "scheduler_decay_steps": 3,
}


@pytest.fixture
def value_flags(data_ids, tmp_path) -> list[str]:
    """What trains a very small value function for six steps on two datasets with failures."""
    write_json(tmp_path / "success.json", {"alice/pick": {"0": True, "1": False}, "bob/place": True})
    return [
        "--policy.type=value",
        *(f"--policy.{name}={value}" for name, value in SMALL.items()),
        "--num_datasets=2",
        f"--dataset.data_ids={data_ids}",
        f"--dataset.success={tmp_path / 'success.json'}",
        f"--output_dir={tmp_path / 'run'}",
        "--job_name=test",
        "--steps=6",
        "--batch_size=4",
        "--num_workers=0",
        "--log_freq=1",
        "--save_freq=3",
    ]


@pytest.mark.slow
def test_trains_through_the_launcher_and_resumes_to_the_same_weights(value_flags, tmp_path):
    run = tmp_path / "run"
    extra = ["--dataset.eval_split=0.4", "--eval_freq=3", "--ema.decay=0.9"]
    command = [*LAUNCH, "--num_processes=1", "--cpu", str(SCRIPT), *value_flags, *extra]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "value targets: 3 successes, 1 failures" in done.stderr
    lines = [line for line in metrics(run) if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(0 <= line["absolute_error"] <= 1 and line["clamped"] == 0 for line in lines)
    assert [line["step"] for line in metrics(run) if "eval/loss" in line] == [3, 6]
    assert load_value(run).config.reward_normalizer == 20
    card = (run / "checkpoints/last/pretrained_model/README.md").read_text()
    assert "A value function" in card
    assert "divided by 20" in card
    assert "depi advantage" in card
    assert "lerobot-rollout" not in card
    whole, seen = weights(run), losses(run)
    resumed = run / "checkpoints" / "000003" / "pretrained_model"
    assert main(["--resume=true", f"--config_path={resumed}"]) == 0
    assert weights(run) == whole
    assert losses(run) == seen


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy.reward_normalizer=12"], "reward_normalizer=12 is too small"),
        (["--policy.c_fail=21"], "c_fail 21 alone is beyond reward_normalizer 20"),
        (["--dataset.success=null"], "do not say whether their episodes succeeded"),
        (["--peft.r=4"], "a value function is trained whole"),
        (["--env.type=so101"], "a value function takes no actions"),
        (["--advantage.mode=on"], "a value function gets none"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(value_flags, flags, message, capsys):
    named = {flag.partition("=")[0] for flag in flags}
    kept = [flag for flag in value_flags if flag.partition("=")[0] not in named]
    assert main([*kept, *(flag for flag in flags if not flag.endswith("=null"))]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_returns_beyond_the_bins_are_clamped_and_counted_where_asked(value_flags, tmp_path, caplog):
    flags = [*value_flags, "--policy.reward_normalizer=12", "--policy.clamp=true", "--steps=1"]
    assert main(flags) == 0
    assert "returns lie below -1 and are clamped" in caplog.text
    assert json.loads((tmp_path / "run/checkpoints/last/pretrained_model/config.json").read_text())["clamp"]


@pytest.mark.slow
def test_tells_success_from_failure_by_what_it_sees(module_hub, tmp_path):
    """A tiny value function on simulated successes and failures; figures on episodes it has not seen."""
    record_outcomes(tmp_path / "train", "sim/train", range(48))
    record_outcomes(tmp_path / "test", "sim/test", range(1000, 1016))
    flags = {
        "policy.type": "value",
        "policy.size": "tiny",
        "policy.device": "cpu",
        "policy.c_fail": 4,
        "policy.reward_normalizer": 24,
        "policy.optimizer_lr": 1e-3,
        "policy.scheduler_warmup_steps": 30,
        "policy.scheduler_decay_steps": 300,
        "policy.scheduler_decay_lr": 1e-5,
        "dataset.repo_id": "sim/train",
        "dataset.root": tmp_path / "train",
        "dataset.max_cameras": 1,
        "output_dir": tmp_path / "run",
        "steps": 300,
        "batch_size": 16,
        "num_workers": 0,
        "save_freq": 0,
    }
    assert main([f"--{name}={value}" for name, value in flags.items()]) == 0
    judge = Judge(tmp_path / "run", tmp_path / "test", "sim/test")
    values = judge.values()
    correlation, area = judge.figures(values)
    order = np.random.default_rng(0).permutation(len(values))
    blind_correlation, blind_area = judge.figures(judge.values(images=order))
    says = [judge.values(task=task) for task in TASKS]
    print(f"rank correlation {correlation:.3f}, AUC {area:.3f}; with the images of other frames", end=" ")
    print(f"{blind_correlation:.3f}, {blind_area:.3f}; prompts differ by {abs(says[0] - says[1]).mean():.4f}")
    assert correlation > 0.8
    assert area > 0.9
    assert blind_correlation < correlation - 0.3
    assert abs(blind_area - 0.5) < 0.2
    assert abs(says[0] - says[1]).mean() < 0.03
    assert abs(judge.values(size=7) - values).max() < 1e-5


def test_plot_draws_an_episode_of_a_trained_network(value_flags, module_hub, tmp_path, capsys):
    flags = [flag for flag in value_flags if not flag.startswith("--steps")]
    assert main([*flags, "--steps=1"]) == 0
    said = [flag for flag in value_flags if flag.startswith("--dataset.success")]
    command = ["plot", f"--policy.path={tmp_path / 'run'}", "--dataset.repo_id=alice/pick", *said]
    assert plot([*command, "--episode=1", f"--output={tmp_path / 'plots'}"]) == 0
    stem = tmp_path / "plots" / "alice_pick_episode_000001"
    with Image.open(stem.with_suffix(".png")) as image:
        assert image.width > 1000
    with av.open(str(stem.with_suffix(".mp4"))) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 7
    # The curve grows: below the cameras more and more is coloured like it.
    blue = [((frame[-200:, :, 2].astype(int) - frame[-200:, :, 0]) > 60).sum() for frame in frames]
    assert blue[-1] > blue[3] > blue[0]
    with pytest.raises(UserError, match="has no episode 9"):
        plot([*command, "--episode=9", f"--output={tmp_path / 'plots'}"])
    (tmp_path / "broken.json").write_text("{")
    for flag, message in (
        ("--dataset.success=nowhere.json", "nowhere.json does not exist"),
        (f"--dataset.success={tmp_path / 'broken.json'}", "is not valid JSON"),
        ("--dataset.cameras=shuffle", "cameras=shuffle"),
        ("--dataset.max_cameras=2", "max_cameras=2, but the value network"),
        ("--policy.device=foo", "device=foo does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            plot([*command, "--episode=1", flag, f"--output={tmp_path / 'no'}"])
    nothing_said = [arg for arg in command if not arg.startswith("--dataset.success")]
    assert len(plot_paths := list((tmp_path / "plots").iterdir())) == 2
    assert plot([*nothing_said, "--episode=0", f"--output={tmp_path / 'plots'}"]) == 0
    assert len(list((tmp_path / "plots").iterdir())) == len(plot_paths) + 2
