"""Evaluation during training: what it measures, and that training does not notice."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from runs import losses, metrics, replaced, weights

from depi import cli
from depi.errors import UserError
from depi.evaluation.config import EnvironmentConfig, EpisodesConfig, EvaluateConfig
from depi.evaluation.evaluate import roll_out
from depi.evaluation.recording import DatasetWriter
from depi.files import read_json
from depi.train import main as train
from depi.training import saving, validation

EVAL = {"dataset.eval_split": 0.5, "eval.n_samples": 5}
# Weights that hardly move.
STILL = {"policy.optimizer_lr": 1e-12, "policy.scheduler_decay_lr": 1e-12}


def evaluations(run) -> dict[int, dict]:
    return {line["step"]: line for line in metrics(run) if any(name.startswith("eval/") for name in line)}


def test_training_is_the_same_to_the_bit_with_and_without(flags, tmp_path):
    flags = replaced(flags, save_freq=6, **EVAL)
    assert train(replaced(flags, eval_freq=0)) == 0
    simulator = {"env.type": "so101", "env.task": "touch", "eval.n_episodes": 2, "eval.n_videos": 1}
    simulator["env.episode_length"] = 3  # software rendering is slow
    run = tmp_path / "evaluated"
    assert train(replaced(flags, eval_freq=4, output_dir=run, **simulator)) == 0
    assert not evaluations(tmp_path / "run")
    assert losses(run) == losses(tmp_path / "run")
    assert weights(run) == weights(tmp_path / "run")

    found = evaluations(run)
    assert list(found) == [4, 6]  # and after the last step
    for step, line in found.items():
        result = read_json(run / "eval" / f"{step:06d}" / "eval.json")
        assert line["eval/success_rate"] == result["success_rate"]
        assert line["eval/mean_length"] == 3
        assert [episode["seed"] for episode in result["episodes"]] == [1000, 1001]
        videos = list((run / "eval" / f"{step:06d}" / "videos").iterdir())
        assert [video.name for video in videos] == ["episode_000.mp4"]
        assert 0 < line["eval/loss"] < 100


def test_the_loss_on_held_out_episodes_by_dataset(flags, tmp_path, monkeypatch):
    seen = []
    held_out_loss = validation.held_out_loss

    def spy(run, stream):
        episodes = run.stream.samples.mixture, stream.samples.mixture
        seen.append([{side[position] for position in range(60)} for side in episodes])
        return held_out_loss(run, stream)

    monkeypatch.setattr(validation, "held_out_loss", spy)
    still = {**STILL, "eval_freq": 2, "eval.n_samples": 100}
    assert train(replaced(flags, save_freq=0, **(EVAL | still))) == 0
    trained_on, held_out = seen[0]
    assert held_out
    assert not trained_on & held_out
    first, second, third = evaluations(tmp_path / "run").values()
    by_dataset = {name: value for name, value in first.items() if name.startswith("eval/loss/")}
    assert by_dataset.keys() <= {"eval/loss/alice/pick", "eval/loss/bob/place"}
    assert min(by_dataset.values()) <= first["eval/loss"] <= max(by_dataset.values())
    # The same frames, noise and times every time: with weights that stand still, the same losses.
    for name in ("eval/loss", *by_dataset):
        assert second[name] == pytest.approx(first[name], rel=1e-6)
        assert third[name] == pytest.approx(first[name], rel=1e-6)


def test_what_is_saved_for_use_is_what_is_evaluated(flags, tmp_path):
    """An average that stays where the weights began, while they move: with `ema.export` it is measured."""
    flags = replaced(flags, steps=4, save_freq=0, eval_freq=2, **EVAL, **{"ema.decay": 1 - 1e-9})
    for export in (False, True):
        assert train(replaced(flags, output_dir=tmp_path / str(export), **{"ema.export": export})) == 0
    raw, averaged = tmp_path / "False", tmp_path / "True"
    of_average, of_weights = evaluations(averaged), evaluations(raw)
    assert of_average[4]["eval/loss"] == pytest.approx(of_average[2]["eval/loss"], rel=1e-5)
    assert of_weights[4]["eval/loss"] != pytest.approx(of_weights[2]["eval/loss"], rel=1e-3)
    assert losses(averaged) == losses(raw)
    state = "checkpoints/last/training_state"
    assert (averaged / state / "raw.safetensors").read_bytes() == weights(raw)
    assert (raw / state / "ema.safetensors").read_bytes() == weights(averaged)


def test_it_does_not_depend_on_the_batch_size(flags, tmp_path):
    for batch_size in (1, 4):
        changes = {"batch_size": batch_size, "output_dir": tmp_path / str(batch_size), "eval_freq": 1}
        assert train(replaced(flags, steps=1, save_freq=0, **(EVAL | changes | STILL))) == 0
    one, four = (evaluations(tmp_path / name)[1] for name in ("1", "4"))
    assert one.keys() == four.keys()
    for name in one.keys() - {"time"}:
        assert one[name] == pytest.approx(four[name], rel=1e-5)


def test_random_numbers_and_modes_are_put_back(flags, tmp_path, monkeypatch):
    at_evaluation = []

    def disturbing(run, stream):
        at_evaluation.append(run.policy.training)
        torch.manual_seed(1)
        torch.rand(5)
        return {"eval/loss": 1.0}

    evaluate = validation.evaluate

    def watched(run, stop):
        before = torch.get_rng_state()
        values = evaluate(run, stop)
        assert torch.equal(torch.get_rng_state(), before)
        assert run.policy.training
        return values

    from depi.training import loop

    monkeypatch.setattr(validation, "held_out_loss", disturbing)
    monkeypatch.setattr(loop, "evaluate", watched)
    assert train(replaced(flags, steps=1, save_freq=0, eval_freq=1, **EVAL)) == 0
    assert at_evaluation == [False]
    assert json.dumps(evaluations(tmp_path / "run")[1]["eval/loss"]) == "1.0"


SIMULATOR = {"env.type": "so101", "env.task": "touch", "eval.n_episodes": 1, "env.episode_length": 3}


def test_a_signal_ends_rollouts_and_loses_no_step(flags, tmp_path, monkeypatch, caplog):
    saved, roll_out = [], validation.roll_out

    def interrupted(*args, **more):
        saved.append(len(list((tmp_path / "run" / "checkpoints").glob("0*"))))
        os.kill(os.getpid(), signal.SIGTERM)
        return roll_out(*args, **more)

    monkeypatch.setattr(validation, "roll_out", interrupted)
    monkeypatch.setattr(saving.Saver, "save", lambda saver: (save(saver), saver.wait()))
    assert train(replaced(flags, save_freq=2, eval_freq=2, **SIMULATOR)) == 128 + signal.SIGTERM
    assert saved == [1], "it measures before it saves"
    assert "the rollouts of step 2 were stopped" in caplog.text
    assert not (tmp_path / "run" / "eval" / "000002" / "eval.json").exists()
    last = (tmp_path / "run" / "checkpoints" / "last").resolve()
    assert last.name.lstrip("0") == "3"


save = saving.Saver.save


def test_an_environment_that_fails_does_not_end_training(flags, tmp_path, monkeypatch, caplog):
    def broken(*args, **more):
        raise UserError("the simulator is gone")

    monkeypatch.setattr(validation, "roll_out", broken)
    assert train(replaced(flags, steps=2, save_freq=0, eval_freq=1, **SIMULATOR)) == 0
    assert "the rollouts of step 1 failed: the simulator is gone" in caplog.text
    assert not evaluations(tmp_path / "run")


class Wandering:
    """Moves pusht's dot to a point that depends on the seed."""

    batch, expert_steps = 1, 0

    def fit(self, tables):
        pass

    def act(self, observations):
        return [np.full((6, 2), 100 + 50 * seen.seed, np.float32) for seen in observations]


def test_rollouts_in_pusht(flags, tmp_path):
    root, env = tmp_path / "pusht", EnvironmentConfig(type="pusht", episode_length=6)
    env.observation_height = env.observation_width = 96
    choices = EvaluateConfig(env=env, eval=EpisodesConfig(2, 0, 1), output_dir=tmp_path / "played", seed=0)
    with DatasetWriter(root, "ann/pusht") as writer:
        roll_out(choices, Wandering(), on_episode=writer.append)
    flags = [flag for flag in flags if not flag.startswith(("--num_datasets", "--dataset.data_ids"))]
    data = {"dataset.repo_id": "ann/pusht", "dataset.root": root}
    size = {"env.observation_height": 96, "env.observation_width": 96, "env.episode_length": 6}
    simulator = {"env.type": "pusht", "eval.n_episodes": 2, "eval.n_videos": 1, "eval_freq": 1, **size}
    assert train(replaced(flags, steps=1, save_freq=1, **data, **simulator)) == 0
    (line,) = evaluations(tmp_path / "run").values()
    result = read_json(tmp_path / "run" / "eval" / "000001" / "eval.json")
    assert line["eval/mean_reward"] == result["mean_reward"]
    assert [(row["seed"], row["length"], row["error"]) for row in result["episodes"]] == [
        (1000, 6, None),
        (1001, 6, None),
    ]
    checkpoint = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    command = [
        "eval",
        f"--policy.path={checkpoint}",
        "--eval.n_episodes=2",
        f"--output_dir={tmp_path / 'eval'}",
    ]
    assert (
        cli.main([*command, "--seed=1000", *(f"--{name}={simulator[name]}" for name in ("env.type", *size))])
        == 0
    )
    rows = [
        [(row["success"], row["length"], row["reward"]) for row in found["episodes"]]
        for found in (result, read_json(tmp_path / "eval" / "eval.json"))
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--env.type=mars"], "mars"),
        (["--env.type=so101", "--env.task=juggle"], "juggle"),
        (["--env.type=so101", "--eval.n_episodes=0"], "--eval.n_episodes"),
        (["--dataset.eval_split=0.000001"], "no frame is left"),
        (["--eval_freq=-1"], "--eval_freq"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_the_run_begins(flags, tmp_path, capfd, wrong, says):
    assert train([*flags, *wrong]) == 2
    assert says in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
