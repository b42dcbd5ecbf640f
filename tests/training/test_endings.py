"""How a run ends when one of its processes or threads fails: soon, with a sentence and a status."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from recordings import Recording, write_v2
from runs import LAUNCH, SCRIPT, losses, replaced

from depi.hub.server.serve import serve
from depi.train import main as train

# Seconds from the sentence to the end.
SOON = 30
TWO = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]

# A run whose sample number 40 meets a defect of the program, in the first process if there are several.
DEFECT = f"""
import os, sys
sys.path[0] = {str(SCRIPT.parents[1])!r}
from depi.training.data import PolicyStream
from depi.train import main

read = PolicyStream.__getitems__

def read_or_fail(stream, positions):
    if 40 in positions:
        raise KeyError("a defect")
    return read(stream, positions)

PolicyStream.__getitems__ = read_or_fail
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def endless(flags) -> list[str]:
    """A run that has two workers and does not end by itself."""
    return replaced(flags, steps=100_000, save_freq=0, num_workers=2)


@pytest.fixture
def start():
    """Starts commands whose standard error can be read; all of their processes are gone after the test."""

    def begin(command: list, more: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
        processes.append(
            subprocess.Popen(
                [str(part) for part in command],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return processes[-1]

    processes: list[subprocess.Popen[str]] = []
    yield begin
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Standard error up to the line that holds a text."""
    read = ""
    for line in process.stderr:
        read += line
        if text in line:
            return read
    raise AssertionError(f"{text!r} is not in {read}")


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def command_of(process: int) -> bytes | None:
    """Its command line; None where it has just ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except FileNotFoundError:
        return None


def workers(process: int) -> list[int]:
    """The data workers of a trainer, once they are there: its forks, not the programs that it has started."""
    deadline = time.monotonic() + 60
    program = Path(f"/proc/{process}/cmdline").read_bytes()
    while len(found := [pid for pid in children(process) if program == command_of(pid)]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def torn(flags: list[str], folder: Path) -> list[str]:
    """Flags of a run of two episodes, of which one has damaged videos."""
    root = write_v2(folder, Recording(lengths=(9, 7)))
    for video in (root / "videos").rglob("episode_000001.mp4"):
        video.write_bytes(b"\0" * 100)
    others = [flag for flag in flags if not flag.startswith(("--num_datasets", "--dataset."))]
    return [*others, "--dataset.repo_id=carol/torn", f"--dataset.root={root}"]


def test_too_many_bad_episodes(endless, start, tmp_path):
    process = start([sys.executable, SCRIPT, *torn(endless, tmp_path / "data")])
    sentence = read_until(process, "error: ").splitlines()[-1]
    assert process.wait(SOON) == 2
    assert sentence.startswith("error: 1 of 2 episodes are bad")
    assert "carol/torn" in sentence


@pytest.mark.slow
def test_a_defect_in_a_worker(endless, start, tmp_path):
    script = tmp_path / "defect.py"
    script.write_text(DEFECT)
    process = start([sys.executable, script, *endless])
    read_until(process, "KeyError: 'a defect'")
    assert process.wait(SOON) == 1


def test_a_killed_worker(endless, start, tmp_path):
    run = tmp_path / "run"
    process = start([sys.executable, SCRIPT, *replaced(endless, save_freq=2, keep_last=1)])
    read_until(process, "saved ")
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    # The line alone: the other worker may print the traceback of a connection that the trainer ended.
    sentence = read_until(process, "error: ").splitlines()[-1]
    assert process.wait(SOON) == 2
    assert sentence.startswith("error: DataLoader worker")
    assert ": if memory is short, take fewer --num_workers" in sentence
    saved = int(os.readlink(run / "checkpoints" / "last"))
    assert train(["--resume=true", f"--output_dir={run}", f"--steps={saved + 4}", "--num_workers=0"]) == 0
    assert sorted(losses(run)) == list(range(1, saved + 5))


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written(endless, start, tmp_path):
    process = start([sys.executable, SCRIPT, *replaced(endless, save_freq=30)])
    read_until(process, "training depi_pi0")
    (tmp_path / "run" / "checkpoints").write_text("no folder")
    sentence = read_until(process, "error: ").splitlines()[-1]
    assert process.wait(SOON) == 2
    assert str(tmp_path / "run" / "checkpoints") in sentence


@pytest.mark.slow
def test_two_processes_end_when_a_worker_of_the_second_is_killed(endless, start):
    launcher = start([*TWO, SCRIPT, *endless])
    read_until(launcher, "step:")
    second = max(children(launcher.pid))
    os.kill(workers(second)[0], signal.SIGKILL)
    read_until(launcher, "error: ")
    began = time.monotonic()
    read_until(launcher, "exitcode  : 2")
    assert launcher.wait(SOON) == 1
    assert time.monotonic() - began < SOON


@pytest.mark.slow
def test_two_processes_end_when_the_first_cannot_write(endless, start, tmp_path):
    launcher = start([*TWO, SCRIPT, *replaced(endless, save_freq=30)])
    read_until(launcher, "training depi_pi0")
    (tmp_path / "run" / "checkpoints").write_text("no folder")
    read_until(launcher, "error: ")
    began = time.monotonic()
    read_until(launcher, "exitcode  : 2")
    assert launcher.wait(SOON) == 1
    assert time.monotonic() - began < SOON


def test_ctrl_c_does_not_wait_for_datasets_that_are_being_opened(start, tmp_path):
    asked, stopped = threading.Event(), threading.Event()

    def hang(request):
        asked.set()
        stopped.wait(60)

    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([f"ann/pick{number}" for number in range(40)]))
    flags = [f"--dataset.repo_ids={ids}", "--policy.type=depi_pi0", f"--output_dir={tmp_path / 'run'}"]
    with serve(tmp_path / "hub", faults=hang) as hub:
        process = start([sys.executable, SCRIPT, *flags, "--policy.device=cpu"], hub.environment())
        try:
            assert asked.wait(60)
            process.send_signal(signal.SIGINT)
            assert process.wait(SOON) == 130
        finally:
            stopped.set()
    assert "Traceback" not in process.stderr.read()
