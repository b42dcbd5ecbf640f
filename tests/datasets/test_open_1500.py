import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "open_1500.py"


def check(output, folder):
    report = json.loads(output.splitlines()[-1])
    keys = {"open_first_s", "open_cached_s", "rss_mb", "worker_extra_mb", "lerobot_open_s_extrapolated"}
    assert keys <= report.keys()
    assert report["datasets"] == 8
    assert 8 * 3 * 60 <= report["frames"] <= 8 * 3 * 300
    assert all(report[key] > 0 for key in keys)
    assert not list(folder.iterdir())


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("open_1500", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "open_1500", module)  # where worker processes look for its functions
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_the_benchmark_runs_and_reports(benchmark, tmp_path, monkeypatch, capsys):
    """In this process, which has imported what the benchmark's own processes would wait for."""
    (work := tmp_path / "work").mkdir()
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))
    openers = {"depi": benchmark.open_depi, "lerobot": benchmark.open_lerobot}
    monkeypatch.setattr(benchmark, "run_apart", lambda what, folder, samples: openers[what](folder, samples))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--smoke", "--folder", str(work)])
    benchmark.main()
    check(capsys.readouterr().out, work)


@pytest.mark.slow
def test_the_benchmark_runs_in_processes_of_its_own(tmp_path):
    command = [sys.executable, SCRIPT, "--smoke", "--folder", tmp_path]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=240)
    check(result.stdout, tmp_path)
