import importlib
import json
import subprocess
import sys

import pytest
import torch

from depi.training.utilisation import card_of

FLAGS = ["--device=cpu", "--size=smoke", "--batch_sizes=2", "--steps=2", "--warmup=1"]


def run(benchmarks, *flags):
    command = [sys.executable, str(benchmarks / "train_step.py"), *FLAGS, *flags]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return answer.stdout


@pytest.fixture
def train_step(benchmarks):
    return importlib.import_module("train_step")


@pytest.fixture
def measure_steps(benchmarks):
    return importlib.import_module("measure_steps")


def plan(measure_steps, **changes):
    settings = {
        "family": "pi0",
        "implementation": "depi_eager",
        "size": "smoke",
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 2,
        "mix": "community",
        "steps": 2,
        "warmup": 1,
        "recompute": 0.0,
        "profile": None,
    }
    return measure_steps.Plan(**{**settings, **changes})


@pytest.mark.slow
def test_ends_in_its_figures(benchmarks):
    figures = json.loads(run(benchmarks, "--implementations=depi_eager,lerobot_eager").splitlines()[-1])
    assert figures["device"] == "cpu"
    assert figures["samples_per_s"] > 0
    assert figures["peak_mem_gb"] > 0
    assert figures["speedup_vs_lerobot_eager"] > 0
    assert figures["speedup_mix"] > 0
    assert figures["flops_ratio"] > 1
    assert figures["speedup_vs_lerobot_compiled"] is None
    assert figures["mfu"] is None


def test_what_fails_is_a_row_with_the_reason(benchmarks, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    results = tmp_path / "rows.jsonl"
    shown = run(
        benchmarks,
        "--implementations=lerobot_compiled_nonsense,depi_eager",
        "--mixes=3",
        "--time_limit_s=0.2",
        f"--results={results}",
    )
    assert json.loads(shown.splitlines()[-1])["samples_per_s"] is None
    first, second = [json.loads(line) for line in results.read_text().splitlines()]
    assert first["error"].startswith("stopped at the time limit")
    assert second["error"].startswith("not started")
    assert "FAILED" in shown


@pytest.mark.parametrize("family", ["pi0", "pi05"])
@pytest.mark.parametrize("implementation", ["depi_eager", "lerobot_eager"])
def test_measure(measure_steps, implementation, tmp_path, family):
    row = measure_steps.measure(
        plan(measure_steps, family=family, implementation=implementation, profile=tmp_path)
    )
    assert row["samples_per_s"] == pytest.approx(2e3 / row["step_ms"], rel=0.01)
    assert min(row["forward_ms"], row["backward_ms"], row["optimizer_ms"]) > 0
    assert row["model_tflop"] < row["lerobot_tflop"]
    assert row["attention"].endswith("flash_attention_for_cpu")
    assert "aten::" in (tmp_path / f"{implementation}_2_community.txt").read_text()


def test_out_of_memory_leads_to_more_recomputing(measure_steps, monkeypatch):
    tried = []

    def measure_once(plan, recompute):
        tried.append(recompute)
        if recompute < 0.75:
            raise torch.OutOfMemoryError("full")
        return {"recompute": recompute}

    monkeypatch.setattr(measure_steps, "_measure_once", measure_once)
    assert measure_steps.measure(plan(measure_steps, recompute=0.2)) == {"recompute": 0.75}
    assert tried == [0.25, 0.5, 0.75]
    monkeypatch.setattr(measure_steps, "RECOMPUTE", {"depi": (0.0, 0.5)})
    with pytest.raises(torch.OutOfMemoryError):
        measure_steps.measure(plan(measure_steps))


def test_mixes_are_exact(measure_steps):
    cameras, tokens = measure_steps.draw_samples("community", 20)
    assert cameras.unique(return_counts=True)[1].tolist() == [32, 36, 12]
    assert tokens.min() >= 6
    assert tokens.max() <= 24
    assert measure_steps.draw_samples("3", 8)[0].eq(3).all()


def test_there_is_no_account_without_a_bandwidth(benchmarks):
    bounds = importlib.import_module("bounds")
    bounds.Bounds(card_of("NVIDIA H200"))
    with pytest.raises(ValueError, match="bandwidth is not known"):
        bounds.Bounds(card_of("NVIDIA H100 PCIe"))


def row(implementation, batch_size, mix, speed, **more):
    identity = {"size": "full", "dtype": "bfloat16", "device": "NVIDIA H200"}
    figures = {"samples_per_s": speed, "mfu": 0.5, "peak_mem_gb": 70.0, "attention": "62 flash"}
    flops = {"model_tflop": 350.0, "lerobot_tflop": 371.0}
    named = {"implementation": implementation, "batch_size": batch_size, "mix": mix}
    return identity | named | figures | flops | more


def test_report_merges_files_and_later_rows_count(train_step, tmp_path, capsys, monkeypatch):
    early, late = tmp_path / "early.jsonl", tmp_path / "late.jsonl"
    for line in (
        row("depi", 32, "3", 20.0),
        row("depi", 32, "community", 60.0),
        row("depi_eager", 8, "3", 99.0),
        row("lerobot_eager", 32, "3", 10.0),
        row("lerobot_eager", 32, "community", 10.0),
        row("lerobot_compiled", 32, "3", None, error="RuntimeError: it broke"),
    ):
        train_step.append(early, line)
    train_step.append(late, row("depi", 32, "3", 40.0))
    train_step.append(late, row("lerobot_compiled_default", 32, "3", 16.0))
    monkeypatch.setattr("sys.argv", ["train_step.py", f"--report={early},{late}"])
    train_step.main()
    shown = capsys.readouterr().out.splitlines()
    assert json.loads(shown[-1]) == {
        "device": "NVIDIA H200",
        "samples_per_s": 40.0,
        "speedup_vs_lerobot_eager": 4.0,
        "speedup_vs_lerobot_compiled": 2.5,
        "speedup_mix": 6.0,
        "mfu": 0.5,
        "flops_ratio": 1.06,
        "peak_mem_gb": 70.0,
        "size": "full",
        "batch_size": 32,
    }
    assert "lerobot_compiled, batch 32, 3: RuntimeError: it broke" in shown


@pytest.mark.gpu
@pytest.mark.parametrize(
    "implementation", ["depi_eager", "depi", "lerobot_eager", "lerobot_compiled_default"]
)
def test_measure_on_gpu(measure_steps, implementation, tmp_path):
    settings = {"device": "cuda", "dtype": "bfloat16", "profile": tmp_path}
    row = measure_steps.measure(plan(measure_steps, implementation=implementation, **settings))
    assert row["peak_mem_gb"] > 0
    assert min(row["forward_ms"], row["backward_ms"], row["optimizer_ms"]) > 0
    assert row["recompiled"] == 0
    assert "CUDA total" in (tmp_path / f"{implementation}_2_community.txt").read_text()
