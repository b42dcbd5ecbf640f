import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from depi.engine import make_runner
from depi.errors import UserError

pytestmark = pytest.mark.slow


def test_every_item_comes_back_with_its_result_or_its_exception(ray_cluster):
    def square_or_raise(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number * number

    finished: list[int] = []
    outcomes = dict(
        make_runner("ray", address=ray_cluster)(square_or_raise, range(6), progress=finished.append)
    )
    error = outcomes.pop(3)
    assert isinstance(error, ValueError)
    assert "three" in str(error)
    assert outcomes == {0: 0, 1: 1, 2: 4, 4: 16, 5: 25}
    assert finished == [1, 2, 3, 4, 5, 6]


def test_items_are_drawn_as_they_are_needed(ray_cluster):
    drawn: list[int] = []

    def items():
        for number in range(100):
            drawn.append(number)
            yield number

    outcomes = make_runner("ray", workers=2, address=ray_cluster)(abs, items())
    next(outcomes)
    assert len(drawn) == 2, "no more than work at a time"
    outcomes.close()


def test_the_work_of_a_worker_that_dies_is_done_again(ray_cluster, tmp_path):
    def die_once(folder: Path) -> int:
        calls = len(list(folder.iterdir())) + 1
        (folder / str(calls)).touch()
        if calls == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return calls

    assert list(make_runner("ray", address=ray_cluster)(die_once, [tmp_path])) == [(tmp_path, 2)]


def test_no_cluster_at_the_address_is_one_sentence():
    code = (
        "from depi.engine import make_runner\n"
        "from depi.errors import UserError\n"
        "try: make_runner('ray', address='127.0.0.1:9')(abs, [1])\n"
        "except UserError as error: print(error)"
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no Ray cluster answers at 127.0.0.1:9" in result.stdout
    assert time.monotonic() - started < 120


def test_an_unknown_engine_is_refused():
    with pytest.raises(UserError, match="abacus"):
        make_runner("abacus")
