import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "open_1500.py"


def test_the_benchmark_runs_and_reports(tmp_path):
    command = [sys.executable, SCRIPT, "--smoke", "--folder", tmp_path]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    report = json.loads(result.stdout.splitlines()[-1])
    keys = {"open_first_s", "open_cached_s", "rss_mb", "worker_extra_mb", "lerobot_open_s_extrapolated"}
    assert keys <= report.keys()
    assert report["datasets"] == 8
    assert 8 * 3 * 60 <= report["frames"] <= 8 * 3 * 300
    assert all(report[key] > 0 for key in keys)
    assert not list(tmp_path.iterdir())
