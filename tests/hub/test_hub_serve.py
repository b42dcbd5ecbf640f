"""`depi hub serve` as a process: start, stop, be killed; many writers; large files in little memory."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http

from depi.cli import main
from depi.hub.server.serve import LocalHub, serve


@contextmanager
def serving(root: Path) -> Iterator[tuple[subprocess.Popen[str], HfApi, str]]:
    command = [sys.executable, "-m", "depi.cli", "hub", "serve", "--root", str(root), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        greeting = ""
        while "Ctrl-C" not in greeting:
            line = process.stdout.readline()
            assert line, greeting
            greeting += line
        endpoint = re.search(r"export HF_ENDPOINT=(\S+)", greeting)[1]
        token = re.search(r"export HF_TOKEN=(\S+)", greeting)[1]
        yield process, HfApi(endpoint=endpoint, token=token), greeting
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_what_to_type_and_stops(tmp_path: Path, number: int) -> None:
    with serving(tmp_path / "root") as (process, api, greeting):
        tokens = json.loads((tmp_path / "root/tokens.json").read_text())
        assert all(token in greeting for token in tokens.values())
        assert api.model_info("google/paligemma-3b-pt-224").id == "google/paligemma-3b-pt-224"
        process.send_signal(number)
        assert process.wait(timeout=10) == 0
        assert process.stdout.read() == "Hub stopped.\n"


def test_user_errors_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")

    def complaint(*args: str) -> str:
        assert main(["hub", *args]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    with serve(tmp_path / "root") as hub:
        port = hub.endpoint.rpartition(":")[2]
        assert f"127.0.0.1:{port}: Address already in use" in complaint(
            "serve", "--root", str(tmp_path / "b"), f"--port={port}"
        )
        assert "another embedded Hub serves" in complaint(
            "serve", "--root", str(tmp_path / "root"), "--port=0"
        )
    (tmp_path / "root/tokens.json").write_text('{"write": "", "read": "hf_x"}')
    assert "holds no tokens" in complaint("serve", "--root", str(tmp_path / "root"), "--port=0")
    assert "cannot be written" in complaint("serve", "--root", str(tmp_path / "file"), "--port=0")
    assert "cannot be written" in complaint("serve", "--root", str(tmp_path / "file/below"), "--port=0")
    assert "add --root" in complaint("serve")
    assert "no action 'start'" in complaint("start")
    for port in ("70000", "-1"):
        assert f"{port} is not a port" in complaint("serve", "--root", str(tmp_path / "c"), f"--port={port}")
    assert "cannot listen on no.such.host.invalid" in complaint(
        "serve", "--root", str(tmp_path / "c"), "--host=no.such.host.invalid"
    )
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert main(["hub", "serve", "--root", str(tmp_path / "root"), "--port=0"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_killed_while_uploading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))  # repeat without waiting
    root = tmp_path / "root"
    with serving(root) as (process, api, _):
        api.create_repo("ann/pick", repo_type="dataset")
        committed = set()

        def upload() -> None:
            for number in range(1000):
                operations = [
                    CommitOperationAdd("large.bin", os.urandom(400_000)),
                    CommitOperationAdd("number.txt", str(number).encode()),
                ]
                commit = api.create_commit(
                    "ann/pick", operations, commit_message=str(number), repo_type="dataset"
                )
                committed.add(commit.oid)

        def upload_until_killed() -> None:
            with pytest.raises((httpx.HTTPError, OSError, RuntimeError)):
                upload()

        thread = threading.Thread(target=upload_until_killed)
        thread.start()
        while len(committed) < 5:
            time.sleep(0.01)
        time.sleep(0.013)
        process.send_signal(signal.SIGKILL)
        process.wait()
        thread.join(timeout=60)
        assert not thread.is_alive()
    with serving(root) as (_, api, _):
        head = api.dataset_info("ann/pick", files_metadata=True)
        history = [commit.commit_id for commit in api.list_repo_commits("ann/pick", repo_type="dataset")]
        assert committed <= set(history), "what was acknowledged is there"
        assert len(history) <= len(committed) + 2, "one may have been written and not acknowledged"
        for file in head.siblings:
            url = f"{api.endpoint}/datasets/ann/pick/resolve/{head.sha}/{file.rfilename}"
            assert len(httpx.get(url).content) == file.size
        assert not list((root / "incoming").iterdir())
        api.upload_file(path_or_fileobj=b"on", path_in_repo="x", repo_id="ann/pick", repo_type="dataset")


def test_concurrent_commits_all_stay(hub: LocalHub) -> None:
    api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
    api.create_repo("ann/pick", repo_type="dataset")

    def add(number: int) -> str:
        operations = [
            CommitOperationAdd(f"data/{number}.bin", os.urandom(2000)),
            CommitOperationAdd(f"meta/{number}.txt", b"same"),
        ]
        return api.create_commit("ann/pick", operations, commit_message=f"{number}", repo_type="dataset").oid

    with ThreadPoolExecutor(8) as pool:
        shas = list(pool.map(add, range(24)))
    assert len(set(shas)) == 24
    files = api.list_repo_files("ann/pick", repo_type="dataset")
    assert len(files) == 1 + 2 * 24
    assert len(api.list_repo_commits("ann/pick", repo_type="dataset")) == 25


def test_one_of_two_creators_wins(hub: LocalHub) -> None:
    api = HfApi(endpoint=hub.endpoint, token=hub.write_token)

    def create(_: int) -> int:
        try:
            api.create_repo("ann/race", repo_type="dataset")
            return 200
        except HfHubHTTPError as error:
            return error.response.status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(create, range(8))) == [200] + [409] * 7


def _memory(process: subprocess.Popen[str]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_large_files_pass_through_little_memory(tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        for _ in range(96):
            file.write(os.urandom(1024 * 1024))
    with serving(tmp_path / "root") as (process, api, _):
        api.create_repo("ann/big")
        before = _memory(process)
        api.upload_file(path_or_fileobj=large, path_in_repo="large.bin", repo_id="ann/big")
        with httpx.stream("GET", f"{api.endpoint}/ann/big/resolve/main/large.bin") as answer:
            received = sum(len(chunk) for chunk in answer.iter_bytes())
        assert received == large.stat().st_size
        assert _memory(process) - before < 40 * 1024 * 1024
