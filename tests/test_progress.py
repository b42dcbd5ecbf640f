"""What a user sees of long work: a bar on a terminal, a line now and then elsewhere."""

import os
import pty
import re
import subprocess
import sys

WORK = """
import logging, os, sys, time
from depi import progress
from depi.log import start_logging

progress.SILENT_SECONDS = 0.4
start_logging()
log = logging.getLogger("depi.work")
with progress.progress_bar("Cooking", 40, done=10) as outer:
    for done in range(11, 16):
        time.sleep(0.25)
        outer(done, note="loss 0.500")
    for item in progress.tracked(range(4), "Tasting", 4):
        log.info("tasted %s of [the] soups", item)
        time.sleep(0.1)
    time.sleep(0.8)
    if not os.fork():
        log.warning("said by a worker")
        os._exit(0)
    os.wait()
    print("a result", flush=True)
"""


def test_a_pipe_gets_a_line_after_a_while_without_one():
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert done.stdout == "a result\n"
    before, _, after = done.stderr.partition("tasted 0 of [the] soups")
    assert re.search(r"Cooking: 1\d of 40 done, loss 0.500, 0:00:\d\d left\n", before)
    assert "Tasting: " not in after, "where other lines come, none is needed"
    assert "Cooking: 15 of 40 done, loss 0.500" in after, "the outer work goes on"
    assert after.count("said by a worker") == 1


def test_on_a_terminal_lines_stand_above_the_bar():
    control, terminal = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", WORK], stderr=terminal, stdout=subprocess.PIPE, text=True)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(control, 4096)
        except OSError:  # the other end is closed
            break
    os.close(control)
    assert child.communicate()[0] == "a result\n", "what is piped stays out of the terminal"
    assert child.returncode == 0
    text = shown.decode()
    for item in range(4):
        assert f"tasted {item} of [the] soups\r\n" in text
    assert "said by a worker" in text
    assert all(part in text for part in ("Cooking", "15/40", "loss 0.500"))
    assert "Tasting" in text, "the work within stands below"
    assert " done" not in text, "no lines beside the bar"
