import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ablations.py"


@pytest.mark.slow
def test_each_pair_is_timed():
    flags = ["--size=smoke", "--batch_size=1", "--rounds=1", "--only=s_"]
    result = subprocess.run([sys.executable, SCRIPT, *flags], check=True, capture_output=True, text=True)
    measured = json.loads(result.stdout.splitlines()[-1])
    names = {"cameras_in_one_call", "heads_folded", "keys_not_repeated", "gradients_gathered"}
    assert names == measured.keys() - {"device", "threads"}
    for name in names:
        assert measured[name]["without_ms"] > 0
        assert measured[name]["with_ms"] > 0
