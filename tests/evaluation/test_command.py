"""`depi eval` with a pi0 that moves a dot: batches, guidance, errors, and what is printed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import Arm, outcomes

from depi import cli
from depi.files import read_json
from depi.policies import DepiPi0Config, make_policy, make_processors, save_checkpoint


@pytest.fixture(scope="module")
def checkpoints(module_hub, tmp_path_factory) -> Path:
    """A pi0 in `plain`, and in `told` one that is told the advantage in its prompt."""
    torch.manual_seed(0)
    sizes = {"depth": 2, "vision_depth": 1, "width": 32, "mlp_dim": 32, "head_dim": 16, "vision_width": 16}
    sizes |= {"vision_mlp_dim": 32, "expert_width": 32, "expert_mlp_dim": 32}
    config = DepiPi0Config(device="cpu", image_resolution=(28, 28), chunk_size=6, n_action_steps=3, **sizes)
    policy = make_policy(config, Arm(state_dim=2, action_dim=2, max_cameras=1, camera_slots=(SLOT,)))
    values = {"mean": np.full(2, 0.5, np.float32), "std": np.ones(2, np.float32)}
    stats = {"observation.state": values, "action": values}
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("plain", "told"):
        save_checkpoint(folder / name, policy, *make_processors(config, stats, indicator=name == "told"))
    return folder


SLOT = "observation.images.0"


def command(checkpoint: Path, output: Path, *more: str) -> list[str]:
    return [
        *("eval", f"--policy.path={checkpoint}", "--policy.device=cpu", "--env.type=odd_envs:Odd-v0"),
        *("--env.instruction=go right", "--eval.n_episodes=4", "--eval.n_videos=0", "--seed=0"),
        *(f"--output_dir={output}", *more),
    ]


@pytest.mark.parametrize("policy_batch", [1, 3])
def test_results_do_not_depend_on_how_many_are_played_at_once(checkpoints, tmp_path, policy_batch):
    found = []
    for size in (1, 2, 4):
        flags = [f"--eval.batch_size={size}", f"--eval.policy_batch={policy_batch}"]
        assert cli.main(command(checkpoints / "plain", tmp_path / str(size), *flags)) == 0
        found.append(outcomes(read_json(tmp_path / str(size) / "eval.json")))
    assert found[0] == found[1] == found[2]
    assert len({row["reward"] for row in found[0]}) == 4


def test_guidance_needs_an_indicator_and_changes_what_is_done(checkpoints, tmp_path, capsys):
    assert cli.main(command(checkpoints / "plain", tmp_path / "no", "--policy.guidance=2")) == 2
    assert "was not trained with --advantage.mode" in capsys.readouterr().err
    assert cli.main(command(checkpoints / "told", tmp_path / "no", "--policy.guidance=101")) == 2
    assert "must be 0 to 100, not 101" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    for guidance in (1, 5):
        output = tmp_path / str(guidance)
        assert cli.main(command(checkpoints / "told", output, f"--policy.guidance={guidance}")) == 0
        assert read_json(output / "eval.json")["guidance"] == guidance
    assert cli.main(command(checkpoints / "told", tmp_path / "saved")) == 0
    assert outcomes(read_json(tmp_path / "saved" / "eval.json")) == outcomes(
        read_json(tmp_path / "1" / "eval.json")
    )
    assert outcomes(read_json(tmp_path / "5" / "eval.json")) != outcomes(
        read_json(tmp_path / "1" / "eval.json")
    )


def test_several_chunks_are_sampled_and_one_is_played(checkpoints, tmp_path, capsys):
    """The same whatever is played together, and something else than the first sample."""
    assert cli.main(command(checkpoints / "plain", tmp_path / "no", "--policy.num_samples=0")) == 2
    assert "num_samples must be 1 to 256, not 0" in capsys.readouterr().err
    quick = "--policy.attention_backends=quick"
    assert cli.main(command(checkpoints / "plain", tmp_path / "no", quick)) == 2
    assert "there is no attention kernel 'quick'" in capsys.readouterr().err
    found = []
    for name, *flags in (
        ("1",),
        ("4", "--policy.num_samples=4", "--policy.compile_chunks=false"),
        ("4 at once", "--policy.num_samples=4"),
    ):
        size = 4 if name == "4 at once" else 1
        args = command(checkpoints / "plain", tmp_path / name, *flags, f"--eval.batch_size={size}")
        assert cli.main(args) == 0
        found.append(outcomes(read_json(tmp_path / name / "eval.json")))
    assert found[1] == found[2] != found[0]
    assert read_json(tmp_path / "4" / "eval.json")["num_samples"] == 4


def test_errors_are_named_in_json_and_table(checkpoints, tmp_path, capsys, monkeypatch):
    flags = ['--env.options={"fail": [1], "crash": [2]}', "--eval.batch_size=2"]
    assert cli.main(command(checkpoints / "plain", tmp_path, *flags, "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == read_json(tmp_path / "eval.json")
    assert result["errors"] == {
        "RuntimeError: the gripper is jammed": 1,
        "its process ended with status 7": 1,
    }
    assert [row["error"] is None for row in result["episodes"]] == [True, False, False, True]
    assert (result["n_errors"], result["n_episodes"]) == (2, 2)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(command(checkpoints / "plain", tmp_path, *flags)) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    for text in (
        *("success rate", f"({result['n_successes']} of 2)", "95% interval", "mean length", "mean reward"),
        *("chunk latency", "steps/s", "% of the time"),
        "1 episode ended in an error: RuntimeError: the gripper is jammed",
        "1 episode ended in an error: its process ended with status 7",
    ):
        assert text in printed, text


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("./outputs/no/where", "--policy.path=./outputs/no/where is neither a folder nor"),
        ("ann/no-such-policy", "ann/no-such-policy"),
    ],
)
def test_a_policy_that_does_not_exist_is_named_at_once(module_hub, path, says):
    code = (
        f"import sys; from depi import cli; status = cli.main(['eval', '--policy.path={path}'])\n"
        "sys.exit(3 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    # Before it a busy machine says what the command is.
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert says in done.stderr


def test_a_result_without_a_rate_is_printed(checkpoints, tmp_path, capsys):
    flags = ['--env.options={"fail": [0, 1, 2, 3]}', "--eval.batch_size=1"]
    assert cli.main(command(checkpoints / "plain", tmp_path, *flags)) == 0
    printed = capsys.readouterr().out
    assert "none: every episode ended in an error" in printed
    assert "4 episodes ended in an error: RuntimeError" in printed
