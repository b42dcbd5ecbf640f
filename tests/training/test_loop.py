"""What the loop says, counts and times, and how it stops; by the real command in this process or another."""

import gzip
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig
from runs import SCRIPT, losses, metrics, replaced

from depi.models.flops import sample_flops
from depi.policies import load_policy
from depi.policies.configuration import dimensions_of
from depi.train import main as train
from depi.training import loop, meter, utilisation


def test_every_line_says_what_lerobots_says_and_more(flags, tmp_path, caplog):
    caplog.set_level(logging.INFO, "depi")
    assert train(replaced(flags, steps=2, save_freq=0)) == 0
    said = [message for message in caplog.messages if message.startswith("step:")]
    names = [part.partition(":")[0] for part in said[-1].split()]
    assert " ".join(names) == "step smpl ep epch loss grdn lr updt_s data_s smpl/s mem_gb"
    line = metrics(tmp_path / "run")[-1]
    assert 0.1 < line["memory_gb"] < 20
    assert "mfu" not in line
    assert line["skipped"] == 0


def test_utilisation_is_the_models_operations_over_the_peak(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "peak_flops", lambda device: 1e12)
    assert train(replaced(flags, steps=3, save_freq=0)) == 0
    policy = load_policy(tmp_path / "run")
    least, most = (
        sample_flops(dimensions_of(policy.config), cameras, tokens).training()
        for cameras, tokens in ((1, 1), (3, policy.config.tokenizer_max_length))
    )
    for line in metrics(tmp_path / "run"):
        assert least < line["mfu"] * 1e12 / line["samples_per_s"] < most


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", 165e12),
    ],
)
def test_peaks_are_known_by_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert utilisation.peak_flops(torch.device("cuda")) == peak


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_progress_bar_on_a_terminal_and_none_elsewhere(flags, tmp_path, monkeypatch):
    for stderr, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stderr)
        output = tmp_path / str(shown)
        assert train(replaced(flags, steps=2, save_freq=0, output_dir=output)) == 0
        assert ("2/2" in stderr.getvalue()) is shown


def test_the_schedule_counts_optimizer_steps(flags, tmp_path):
    """Warm-up, decay and the rate at its end are the same, however many micro-batches a step has."""
    schedule = {
        "policy.scheduler_warmup_steps": 2,
        "policy.scheduler_decay_steps": 5,
        "policy.scheduler_decay_lr": 1e-4,
    }
    flags = replaced(flags, steps=6, save_freq=0, **schedule)
    assert train(flags) == 0
    accumulated = {"batch_size": 1, "gradient_accumulation_steps": 4, "output_dir": tmp_path / "accumulated"}
    assert train(replaced(flags, **accumulated)) == 0
    rates, others = (
        [line["lr"] for line in metrics(tmp_path / run) if "lr" in line] for run in ("run", "accumulated")
    )
    assert rates == others
    preset = CosineDecayWithWarmupSchedulerConfig(
        peak_lr=3e-3, decay_lr=1e-4, num_warmup_steps=2, num_decay_steps=5
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=3e-3)
    schedule = preset.build(optimizer, num_training_steps=6)
    for rate in rates:
        optimizer.step()
        schedule.step()
        assert rate == pytest.approx(schedule.get_last_lr()[0])
    assert rates[4] == rates[5] == pytest.approx(1e-4)


def test_a_second_signal_stops_at_once(flags, tmp_path):
    endless = replaced(flags, gradient_accumulation_steps=1_000_000, steps=10)
    process = subprocess.Popen([sys.executable, SCRIPT, *endless], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "training depi_pi0" in line:
            break
    time.sleep(3)  # it is in its first step, which takes hours
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # from a launcher that passes on what all have been sent
    assert "once more to stop at once" in process.stderr.readline() + process.stderr.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    process.stderr.close()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision bf16: use --policy.dtype=bfloat16"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend INDUCTOR: use --compile=true"),
    ],
)
def test_settings_of_accelerate_that_would_change_the_training_are_refused(
    flags, tmp_path, capfd, monkeypatch, name, value, says
):
    monkeypatch.setenv(name, value)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        assert train(flags) == 2
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert says in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_help_says_how_it_ends(capsys):
    with pytest.raises(SystemExit):
        train(["--help"])
    said = capsys.readouterr().out
    for status in ("0 all steps done", "2 wrong flags", "130 (SIGINT)", "143 (SIGTERM)"):
        assert status in said


@pytest.mark.parametrize(("wanted", "steps"), [("2", "4-5"), ("2-3", "2-3"), ("5-9", "5-6")])
def test_a_profile_is_a_trace_and_ten_lines(flags, tmp_path, wanted, steps):
    assert train(replaced(flags, save_freq=0, profile=wanted)) == 0
    folder = tmp_path / "run" / "profile"
    assert sorted(os.listdir(folder)) == [f"steps_{steps}.json.gz", f"steps_{steps}.txt"]
    with gzip.open(folder / f"steps_{steps}.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    for phase in ("data", "forward", "backward", "optimizer"):
        assert names.count(phase) == 2, phase
    summary = (folder / f"steps_{steps}.txt").read_text().splitlines()
    assert len(summary) == 10
    shares = [float(line.split()[3].rstrip("%")) for line in summary[1:6]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert any("aten::" in line for line in summary[6:])
    assert not any("#" in line or "engine" in line for line in summary[6:])


@pytest.mark.parametrize("wrong", ["--profile=all", "--profile=0", "--profile=9-3", "--profile=0-3"])
def test_profiles_that_are_none(flags, capfd, wrong):
    assert train([*flags, wrong]) == 2
    assert wrong in capfd.readouterr().err


@pytest.mark.gpu
def test_no_step_waits_for_the_device(flags, tmp_path, monkeypatch):
    take = loop.train_step

    def take_without_waiting(run, *others):
        torch.cuda.set_sync_debug_mode("error" if run.step else "default")  # the first one sets things up
        try:
            take(run, *others)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "train_step", take_without_waiting)
    changes = {"policy.device": "cuda", "gradient_accumulation_steps": 2, "log_freq": 3, "save_freq": 0}
    # Compiling waits, and what is checked before the first step does.
    assert train(replaced(flags, **changes, compile=False, gpu_check=False)) == 0
    assert list(losses(tmp_path / "run")) == [3, 6]


@pytest.mark.gpu
def test_a_gpu_is_checked_before_its_first_training(flags, tmp_path, caplog):
    """With all defaults; the next training knows what was found."""
    said = []
    for name in ("first", "second"):
        run = tmp_path / name
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert train(replaced(flags, **{"policy.device": "cuda", "steps": 2}, output_dir=run)) == 0
        said.append([record.getMessage() for record in caplog.records])
        saved = json.loads((run / "checkpoints/last/pretrained_model/train_config.json").read_text())
        assert saved["policy"]["dtype"] == "bfloat16"
        assert isinstance(saved["compile"], bool)
    checked = [any("checking it" in message for message in messages) for messages in said]
    assert checked == [True, False]
