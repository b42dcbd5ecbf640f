"""Many episodes: killed half way, and fast."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_dataset import write_images
from vlm_server import completion, good_answer, serving

from depi.annotate import frames
from depi.annotate.episode_journal import read_results
from depi.datasets.samples.annotations import read_annotations

SERVER = Path(__file__).parents[1] / "helpers" / "vlm_server.py"


@pytest.fixture
def server(tmp_path):
    """The address of a server in a process of its own, and the file that names its requests."""
    log = tmp_path / "requests.log"
    with subprocess.Popen([sys.executable, SERVER, log], stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip(), log
        process.kill()


def command(root: Path, url: str, out: Path, *flags: str) -> list[str]:
    given = {"repo_id": "ann/box", "root": root, "base_url": url, "annotations": out, "json": "true"}
    words = [sys.executable, "-m", "depi.cli", "annotate"]
    return [*words, *(f"--{name}={value}" for name, value in given.items()), *flags]


def asked(log: Path) -> Counter:
    return Counter(log.read_text().split("\n")[:-1])


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "DEPI_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("episodes", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_after_kill_9_only_the_missing_are_asked_for(server, tmp_path, annotated, episodes):
    url, log = server
    root = write_images(tmp_path / "set", episodes)
    out, journal = tmp_path / "out", tmp_path / "out/ann/box.jsonl"
    words = command(root, url, out, "--concurrency=8", "--view_episodes=0")
    with subprocess.Popen(words, env=environment(tmp_path), stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
            if journal.exists() and journal.read_bytes().count(b"\n") > episodes // 3:
                break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = read_results(out, "ann/box").results
    assert episodes // 3 < len(done) < episodes, "it was killed half way"
    with journal.open("ab") as file:
        file.write(b'{"kind": "result", "episode": 3, "task": "half a li')
    requests_before = asked(log).total()
    summary = annotated(root, url, concurrency=8, view_episodes=0)
    assert (summary.reused, summary.done) == (len(done), episodes - len(done))
    assert asked(log).total() - requests_before == 2 * (episodes - len(done)), "the missing ones, each once"
    twice = sum(count - 1 for count in asked(log).values())
    assert twice <= 2 * 8, "only what was in flight at the kill"
    assert len(asked(log)) == 2 * episodes
    rows, _ = read_annotations(out, "ann/box")
    assert [row.episode_index for row in rows] == list(range(episodes))
    assert all(row.task for row in rows)
    lines = [json.loads(line)["episode"] for line in journal.read_text().splitlines()]
    assert sorted(lines) == list(range(episodes)), "nothing lost, nothing twice"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_it_at_once_and_nothing_is_lost(tmp_path, annotated, number):
    """Also while the server is silent."""
    root, out, enough = write_images(tmp_path / "set", 24), tmp_path / "out", threading.Event()

    def answer(handler, body, count):
        if count > 24:
            enough.set()
            time.sleep(60)
        handler.send(200, completion(good_answer(body)))

    with serving(answer) as silent:
        words = command(root, silent.url, out, "--concurrency=4", "--view_episodes=0")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(words, env=environment(tmp_path), **pipes) as process:
            assert enough.wait(120)
            time.sleep(0.5)
            process.send_signal(number)
            said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "What was answered is written" in said[1]
    assert "Traceback" not in said[1]
    done = len(read_annotations(out, "ann/box")[0])
    assert done >= 8
    with serving() as well:
        assert annotated(root, well.url, view_episodes=0).reused == done
        assert well.of_stage("instruction") == 24 - done
    assert len(read_annotations(out, "ann/box")[0]) == 24


def test_a_call_that_gives_up_does_not_wait_for_answers(tmp_path):
    """What is still asked may take as long as `--timeout`."""

    def answer(handler, body, number):
        if number == 3:
            time.sleep(60)
        handler.send(503, b"{}", Retry_After="0")

    with serving(answer) as failing:
        root = write_images(tmp_path / "set", 40)
        words = command(root, failing.url, tmp_path / "out", "--concurrency=4", "--timeout=40")
        with subprocess.Popen(words, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as process:
            summary, said = json.loads(process.stdout.readline()), time.monotonic()
            process.communicate(timeout=30)
    assert time.monotonic() - said < 15
    assert process.returncode == 3
    assert "in a row got no answer" in summary["stopped"]


def test_slow_decoding_does_not_stall_requests(tmp_path, annotated, monkeypatch):
    """Where decoding keeps up on the whole, the server has as many questions as it may get, all the time.

    Frames take 300 ms with 24 loaders, 80 episodes/s; 8 askers with two questions of 250 ms need 16. Were
    each asker to wait for its own frames, it would ask five eighths of the time: 5 in flight.
    """
    root, decode, busy = write_images(tmp_path / "set", 64), frames._decode, []

    def slowly(clip, max_pixels):
        time.sleep(0.3)
        return decode(clip, max_pixels)

    def answer(handler, body, count):
        busy.append(server.at_a_time)
        time.sleep(0.25)
        handler.send(200, completion(good_answer(body)))

    monkeypatch.setattr(frames, "_decode", slowly)
    with serving(answer) as server:
        summary = annotated(root, server.url, concurrency=8, workers=24, view_episodes=0)
    assert summary.done == 64
    in_flight = np.mean(busy[16:-16])
    share = 2 * 64 * 0.25 / 8 / summary.seconds
    print(f"{in_flight:.1f} of 8 questions in flight, {share:.0%} of the possible rate")
    assert in_flight >= 6.2
    assert server.most == 8


@pytest.mark.slow
def test_forty_episodes_a_second_from_cached_frames(tmp_path, server):
    """With frames of the size that a model is shown: 2 cameras of 4 images would be 8 JPEGs of 20 kB."""
    url, _ = server
    root = write_images(tmp_path / "set", 300, length=8, size=(360, 480))
    words = command(root, url, tmp_path / "out", "--frames=8")
    subprocess.run(words, env=environment(tmp_path), check=True, stdout=subprocess.DEVNULL)
    (tmp_path / "out/ann/box.jsonl").unlink()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    last = subprocess.run(words, env=environment(tmp_path), stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads(last.stdout.splitlines()[-1])
    spent = np.subtract(after[:2], before[:2]).sum()
    print(f"{summary['episodes_per_s']} episodes/s, {1000 * spent / 300:.1f} ms of processor time each,")
    print(f"{after.ru_maxrss / 1000:.0f} MB")
    assert summary["done"] == 300
    # Two cores have 2 s of processor time a second: 40 episodes/s leave 50 ms each, start-up included.
    assert summary["episodes_per_s"] >= 40 or spent / 300 <= 0.04
