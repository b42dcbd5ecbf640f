"""The tests that need a GPU run on one in name only, to their end, but for what depends on numbers."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.null_gpu, pytest.mark.slow, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).parents[2]
# Those of tests/benchmarks, which measure times, are not among them.
FILES = (
    "tests/policies/test_inference.py",
    "tests/policies/test_indicator.py",
    "tests/training/test_loop.py",
)


@pytest.mark.parametrize("file", FILES)
def test_gpu_tests_run_to_their_end(null_gpu, file):
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "without_numbers", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, file], cwd=REPOSITORY, env=null_gpu, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
