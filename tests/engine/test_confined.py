"""Work on strangers' files in processes with limits: what comes of work that exceeds them or crashes."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from depi.datasets.recording.checks import whole_number
from depi.engine.confined import confined
from depi.errors import DatasetError, MachineError, UserError


def test_results_and_errors_are_those_of_the_function():
    assert confined(divmod, 7, 2) == (3, 1)
    np.testing.assert_array_equal(confined(np.arange, 5), np.arange(5))
    with pytest.raises(DatasetError, match=r"^fps is 9, expected 1 to 5$"):
        confined(whole_number, 9, "fps", 1, 5)
    with pytest.raises(MachineError, match="the disk is full"):
        confined(Path("/dev/full").write_text, "more")


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (lambda: confined(np.ones, 500_000_000), "reading it takes more than 1000 MB of memory"),
        (lambda: confined(np.ones, 80_000_000), "takes more than 1000 MB"),  # with the copy that is sent
        (lambda: confined(bytes, 60_000_000, megabytes=50), "reading it takes more than 50 MB of memory"),
        (lambda: confined(sum, range(10**12), seconds=1), "takes more than 1 s of processor time"),
        (lambda: confined(os.abort), r"unreadable: reading it crashes the reader \(SIGABRT\)"),
        (lambda: confined(os._exit, 0), "crashes the reader .exit status 0."),
        (lambda: confined(int, "seven\n"), "unreadable: ValueError: invalid literal"),
    ],
)
def test_work_that_breaks_out_is_a_reason(work, sentence):
    with pytest.raises(DatasetError, match=sentence) as caught:
        work()
    assert str(caught.value).isprintable()
    assert confined(abs, -1) == 1


def test_a_killed_process_is_not_the_datasets_fault():
    with pytest.raises(UserError, match="run the command again"):
        confined(signal.raise_signal, signal.SIGKILL)


def test_memory_that_was_used_once_is_free_again():
    for _ in range(5):
        assert confined(np.ones, 40_000_000).nbytes == 320_000_000


def test_threads_share_at_most_a_process_per_core():
    with ThreadPoolExecutor(16) as threads:
        processes = {future.result() for future in [threads.submit(confined, os.getpid) for _ in range(200)]}
    assert 1 <= len(processes) <= (os.cpu_count() or 1)
    assert os.getpid() not in processes


def test_a_process_that_waited_too_long_is_replaced():
    before = confined(os.getpid)
    os.kill(before, signal.SIGSTOP)
    # Its caller would wait for ever, so another thread takes it away.
    threading.Timer(0.5, os.kill, (before, signal.SIGKILL)).start()
    with pytest.raises(UserError, match="was killed"):
        confined(os.getpid)
    assert confined(os.getpid) != before


SCRIPT = """
import os, time
from depi.datasets.recording.checks import whole_number
from depi.engine.confined import confined
print(confined(os.getpid), flush=True)
time.sleep(1000)
"""


def test_a_script_without_a_guard_and_its_processes_end_together(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True
    ) as script:
        helper = int(script.stdout.readline())
        script.kill()
    deadline = time.monotonic() + 10
    while is_running(helper):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
