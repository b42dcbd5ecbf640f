"""Long commands that are killed at random moments, and started again until one comes to its end."""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from interruptible import TASKS, drafts, environment, finish, start

CASES = [
    pytest.param("collect-ids", 1, id="collect-ids"),
    *(pytest.param(name, 20, id=f"{name}-often", marks=pytest.mark.slow) for name in TASKS),
]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "kills"), CASES)
def test_killed_at_random_moments_it_ends_the_same(work, expected, tmp_path, name, kills):
    task, out = TASKS[name], tmp_path / f"killed-{name}-{kills}"
    variables, draw = environment(tmp_path), random.Random()
    began = time.monotonic()
    status, said = finish(start(task.command(work, out), variables))
    assert status == 0, said
    lasts = time.monotonic() - began
    for path in (out, tmp_path / "hf", tmp_path / "depi"):
        shutil.rmtree(path, ignore_errors=True)
    for _ in range(kills):
        process = start(task.command(work, out), variables)
        try:
            process.communicate(timeout=draw.uniform(0.3, 1.0) * lasts)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        if process.returncode == 0:
            shutil.rmtree(out, ignore_errors=True)  # the next one has something to do
    status, said = finish(start(task.command(work, out), variables))
    assert status == 0, said
    assert task.result(work, out) == expected(name)
    assert drafts(tmp_path, work.annotations) == []
