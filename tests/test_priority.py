"""Encoding leaves the process as it was."""

import os
import threading

import numpy as np
import pytest
from recordings import write_video

from depi.priority import priority_kept

FEW = [np.full((64, 64, 3), 60 * number, np.uint8) for number in range(4)]


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="of Linux")
def test_an_encoder_does_not_leave_its_thread_in_real_time(tmp_path):
    found = []

    def encode() -> None:
        before = os.sched_getscheduler(0)
        write_video(tmp_path / "kept.mp4", FEW, 10, "libsvtav1", preset="12")
        found.append(os.sched_getscheduler(0) == before)

    thread = threading.Thread(target=encode)
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="of Linux")
def test_whatever_the_body_does_is_undone(tmp_path):
    found = []

    def change() -> None:
        with priority_kept():
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=change)
    thread.start()
    thread.join()
    assert found == [os.SCHED_OTHER]
