"""The moving average of the weights: its numbers, and that it goes on exactly."""

import subprocess

import numpy as np
import pytest
import torch
from runs import LAUNCH, SCRIPT, losses, metrics, replaced, weights
from safetensors.torch import load_file
from small_pi0 import make_batch, make_small

from depi.files import read_json
from depi.train import main as train
from depi.training.ema import MovingAverage


def state(run, name):
    return run / "checkpoints" / "last" / "training_state" / name


def test_the_average_follows_the_weights():
    policy = make_small(freeze_vision_encoder=True)
    average = MovingAverage(policy, 0.75)
    expected = {name: value.detach().double() for name, value in policy.named_parameters()}
    frozen = {name for name in expected if name.startswith("model.vision.")}
    assert average.average.keys() == expected.keys() - frozen
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    for seed in range(3):
        policy(make_batch(seed=seed))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        for name, value in policy.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * value.detach().double()
    for name, value in average.average.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-7)


def test_a_run_goes_on_exactly_and_may_export_the_average(flags, tmp_path):
    whole, parts = tmp_path / "run", tmp_path / "parts"
    flags = replaced(flags, steps=4, save_freq=0, **{"ema.decay": 0.7, "policy.scheduler_decay_steps": 2})
    assert train(flags) == 0
    assert train(replaced(flags, steps=2, output_dir=parts, **{"ema.export": True})) == 0
    assert train(["--resume=true", f"--output_dir={parts}", "--steps=4"]) == 0
    assert losses(parts) == losses(whole)
    assert state(parts, "raw.safetensors").read_bytes() == weights(whole)
    assert state(whole, "ema.safetensors").read_bytes() == weights(parts)
    assert weights(parts) != weights(whole)
    assert read_json(state(parts, "training_step.json"))["exported"] == "ema"
    card = (parts / "checkpoints/last/pretrained_model/README.md").read_text()
    assert "exponential moving average" in card


@pytest.mark.slow
def test_sharded_averages_are_those_of_one_process(flags, tmp_path):
    flags = replaced(flags, steps=2, save_freq=0, **{"ema.decay": 0.5, "policy.scheduler_decay_steps": 2})
    two = replaced(flags, batch_size=2, sharding="full", output_dir=tmp_path / "two")
    command = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    subprocess.run([*command, str(SCRIPT), *two], check=True, timeout=200)
    resume = ["--resume=true", f"--output_dir={tmp_path / 'two'}", "--steps=3"]
    assert train([*resume, "--batch_size=4", "--sharding=none"]) == 0
    assert train(replaced(flags, steps=3)) == 0
    one, other = (load_file(state(tmp_path / run, "ema.safetensors")) for run in ("run", "two"))
    for name, value in one.items():
        # Adam moves where the true gradient is zero too, by rounding errors: compare whole tensors.
        assert (other[name] - value).norm() <= 1e-3 * (1 + value.norm()), name
    np.testing.assert_allclose(
        list(losses(tmp_path / "two").values()), list(losses(tmp_path / "run").values()), rtol=1e-4
    )


@pytest.mark.slow
def test_sharded_averages_are_what_is_evaluated(flags, tmp_path):
    """An average that stays where the weights began: the loss at the last step is that of the first."""
    split = {"dataset.eval_split": 0.5, "eval.n_samples": 4, "eval_freq": 1}
    averaged = {"ema.decay": 1 - 1e-9, "ema.export": True, "policy.scheduler_decay_steps": 2}
    flags = replaced(flags, steps=3, save_freq=0, **split, **averaged)
    two = replaced(flags, batch_size=2, sharding="full", output_dir=tmp_path / "two")
    command = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    subprocess.run([*command, str(SCRIPT), *two], check=True, timeout=200)
    assert train(flags) == 0
    measured = [
        [line["eval/loss"] for line in metrics(tmp_path / run) if "eval/loss" in line]
        for run in ("two", "run")
    ]
    np.testing.assert_allclose(measured, np.full((2, 3), measured[1][0]), rtol=1e-4)
    assert len(set(losses(tmp_path / "two").values())) == 3


@pytest.mark.parametrize(
    "wrong",
    [["--ema.decay=1"], ["--ema.decay=0.9", "--peft.r=4"], ["--keep_every=10", "--keep_last=null"]],
)
def test_wrong_values(flags, capfd, wrong):
    assert train([*flags, *wrong]) == 2
    assert wrong[0].partition("=")[0] in capfd.readouterr().err
