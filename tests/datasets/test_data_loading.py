import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "data_loading.py"


@pytest.mark.slow
def test_the_benchmark_ends_in_its_figures():
    answer = subprocess.run(
        [sys.executable, str(BENCHMARK), "--smoke"], capture_output=True, text=True, check=True
    )
    figures = json.loads(answer.stdout.splitlines()[-1])
    assert figures["samples_per_s"] > 0
    assert figures["prepared_speedup"] > 1
    assert figures["ratio_to_decode"] > 0.3
    assert figures["ratio_to_decode_in_order"] > 0.3
    assert figures["speedup_vs_lerobot"] > 1
    assert figures["encodings"].keys() == {"av1"}
