"""Steps whose loss or gradient is not to be trusted: nothing of them reaches the weights."""

import json
import re
import subprocess

import numpy as np
import pytest
import torch
from runs import LAUNCH, SCRIPT, losses, metrics, replaced
from safetensors.torch import load_file

from depi.train import main as train
from depi.training import bad_steps, data

BATCH = 4


@pytest.fixture
def poison(monkeypatch):
    """Give samples at some positions of the stream, or all of a dataset, noise that is not finite.

    Only without `--ragged` are the samples of a step those of the next positions.
    """

    def apply(positions=(), dataset=None, value=float("nan")):
        def poisoned(stream, of_batch):
            samples = read(stream, of_batch)
            for position, sample in zip(of_batch, samples, strict=True):
                if position in positions or int(sample["dataset_index"]) == dataset:
                    sample["noise"] = torch.full_like(sample["noise"], value)
            return samples

        monkeypatch.setattr(data.PolicyStream, "__getitems__", poisoned)

    read = data.PolicyStream.__getitems__
    return apply


def state(run, step) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a checkpoint."""
    folder = run / "checkpoints" / f"{step:06d}"
    return {
        **load_file(folder / "pretrained_model" / "model.safetensors"),
        **load_file(folder / "training_state" / "optimizer_state.safetensors"),
    }


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_poisoned_step_changes_nothing_and_is_counted(flags, tmp_path, poison, value):
    poison(positions=[BATCH + 1], value=value)  # the second sample of the second step
    assert train(replaced(flags, steps=3, save_freq=1, ragged=False)) == 0
    run = tmp_path / "run"
    assert same(state(run, 1), state(run, 2))
    assert not same(state(run, 2), state(run, 3))
    lines = metrics(run)
    assert [line["skipped"] for line in lines] == [0, 1, 1]
    assert "loss" not in lines[1]
    assert "grad_norm" not in lines[1]
    assert lines[2]["loss"] > 0
    assert [line["samples"] for line in lines] == [4, 8, 12]
    assert [len(line.get("skipped_frames", [])) for line in lines] == [0, 1, 0]


def test_averages_are_over_the_steps_that_were_taken(flags, tmp_path, poison):
    poison(positions=[BATCH])
    flags = replaced(flags, ragged=False)
    assert train(replaced(flags, steps=3, save_freq=0)) == 0
    single = losses(tmp_path / "run")
    assert train(replaced(flags, steps=3, save_freq=0, log_freq=3, output_dir=tmp_path / "both")) == 0
    assert losses(tmp_path / "both")[3] == pytest.approx((single[1] + single[3]) / 2)


def test_too_many_stop_the_run_and_the_dataset_is_named(flags, tmp_path, poison, capfd):
    poison(dataset=1)
    assert train(replaced(flags, steps=50, max_bad_steps=2, save_freq=0)) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "3 of " in errors[0]
    assert "--max_bad_steps=2" in errors[0]
    assert "bob/place" in errors[0]
    assert "alice/pick" not in errors[0]
    stopped = metrics(tmp_path / "run")[-1]
    assert stopped["skipped"] == 3
    assert (tmp_path / "run" / "checkpoints" / f"{stopped['step']:06d}").is_dir()


def test_of_many_bad_samples_the_first_frames_are_named_and_all_are_counted(
    flags, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(bad_steps, "ROOM", 6)
    assert train(replaced(flags, steps=4, log_freq=2, save_freq=0, loss_threshold=1e-6)) == 0
    lines = metrics(tmp_path / "run")
    assert [[frame["step"] for frame in line["skipped_frames"]] for line in lines] == [
        [1, 1, 1, 1, 2, 2],
        [3, 3, 3, 3, 4, 4],
    ]
    counts = re.findall(r"\((\d+)\)", caplog.text.rpartition("samples in question")[2])
    assert sum(map(int, counts)) == 4 * BATCH


def test_a_resumed_run_goes_on_counting_and_skips_alike(flags, tmp_path, poison, capfd):
    poison(positions=[1, BATCH + 1, 4 * BATCH])
    flags = replaced(flags, ragged=False)
    assert train(replaced(flags, save_freq=0)) == 0
    parts = tmp_path / "parts"
    assert train(replaced(flags, steps=3, save_freq=0, output_dir=parts)) == 0
    assert train(["--resume=true", f"--output_dir={parts}", "--steps=6"]) == 0
    assert losses(parts) == losses(tmp_path / "run")
    assert same(state(parts, 6), state(tmp_path / "run", 6))
    skipped = [line["skipped"] for line in metrics(parts)]
    assert skipped == [line["skipped"] for line in metrics(tmp_path / "run")] == [1, 2, 2, 2, 3, 3]
    assert train(["--resume=true", f"--output_dir={parts}", "--steps=8", "--max_bad_steps=2"]) == 2
    assert "3 of 7 steps were skipped" in capfd.readouterr().err


def test_thresholds(flags, tmp_path, capfd, caplog):
    flags = replaced(flags, steps=3, save_freq=0)
    assert train(replaced(flags, grad_norm_threshold=1e-6)) == 0
    assert metrics(tmp_path / "run")[-1]["skipped"] == 3
    # No sample's loss is bad: those of the largest loss are named.
    assert "samples in question: " in caplog.text
    assert train(replaced(flags, loss_threshold=1e-6, output_dir=tmp_path / "loss")) == 0
    assert metrics(tmp_path / "loss")[-1]["skipped"] == 3
    high = {"loss_threshold": 1e6, "grad_norm_threshold": 1e6, "output_dir": tmp_path / "high"}
    assert train(replaced(flags, **high)) == 0
    assert metrics(tmp_path / "high")[-1]["skipped"] == 0
    for name in ("loss_threshold", "grad_norm_threshold"):
        assert train([*flags, f"--{name}=0"]) == 2
        assert f"--{name} must be positive" in capfd.readouterr().err


@pytest.mark.parametrize("sharding", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_all_processes_skip_the_same_steps(flags, tmp_path, sharding):
    flags = replaced(flags, save_freq=6, **{"dataset.eval_split": 0.5, "eval_freq": 4, "eval.n_samples": 5})
    assert train(flags) == 0
    seen = sorted(losses(tmp_path / "run").values())
    gaps = np.diff(seen)
    threshold = float(seen[int(gaps.argmax())] + gaps.max() / 2)
    alone, two = (
        replaced(flags, loss_threshold=threshold, output_dir=tmp_path / name) for name in ("alone", "two")
    )
    assert train(alone) == 0
    launch = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    halves = replaced(two, batch_size=2, sharding=sharding)
    subprocess.run([*launch, str(SCRIPT), *halves], check=True, timeout=240)
    one, other = metrics(tmp_path / "alone"), metrics(tmp_path / "two")
    assert [line.keys() for line in one] == [line.keys() for line in other]
    assert [line.get("skipped") for line in one] == [line.get("skipped") for line in other]
    assert one[-2]["skipped"] > 0, json.dumps(one)
    for mine, theirs in zip(one, other, strict=True):
        for name in mine:
            if name.startswith("eval/") or name in ("loss", "grad_norm"):
                assert theirs[name] == pytest.approx(mine[name], rel=1e-3), name
