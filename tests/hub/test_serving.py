"""What the servers refuse: foreign names, clients that send nothing, work that would stop others."""

import base64
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx
import psutil
import pytest
from huggingface_hub import HfApi

from depi import serving
from depi.cli import main
from depi.hub.server.serve import LocalHub, serve


def status(url: str, host: str) -> int:
    """Ask as a browser would to which a foreign page's name stands for this machine."""
    return httpx.get(url, headers={"Host": f"{host}:{urlsplit(url).port}"}, trust_env=False).status_code


def test_other_names_are_refused(tmp_path: Path) -> None:
    with serve(tmp_path / "root", allowed_hosts=["hub.lab.org", "*.rack.org"]) as hub:
        names = (
            "127.0.0.1",
            "localhost",
            "hub.lab.org",
            "a.rack.org",
            "evil.example",
            "localhost.evil.example",
        )
        assert [status(hub.endpoint, name) for name in names] == [200, 200, 200, 200, 400, 400]
        for path in ("/", "/nothing/here/at/all", "/api/datasets/ann/none"):
            answer = httpx.get(hub.endpoint + path, trust_env=False)
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_on_all_addresses_it_answers_to_each_of_this_machine(tmp_path: Path) -> None:
    with serve(tmp_path / "root", host="0.0.0.0") as hub:
        port = urlsplit(hub.endpoint).port
        for card in psutil.net_if_addrs().values():
            for address in (each.address for each in card if each.family == socket.AF_INET):
                assert status(f"http://{address}:{port}", address) == 200
        assert status(hub.endpoint, socket.gethostname()) == 200
        assert status(hub.endpoint, "evil.example") == 400


def test_a_name_with_a_star_inside_is_a_user_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["hub", "serve", f"--root={tmp_path / 'root'}", "--port=0", '--allowed_hosts=["a.*.org"]']
    assert main(args) == 2
    assert "a.*.org is no name of a host" in capsys.readouterr().err


def test_clients_that_send_nothing_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PATIENCE", 1)
    monkeypatch.setattr(serving, "LEAST_PART", 50)
    with serve(tmp_path / "root", latency=2.5) as hub:
        address = urlsplit(hub.endpoint)
        head = f"POST /api/validate-yaml HTTP/1.1\r\nHost: {address.netloc}\r\n".encode()
        body = head + b"Content-Length: 400\r\n\r\n"

        def end_of(first: bytes, drip: bytes = b"") -> str:
            """Send `first`, then `drip` 5 times a second for 4 seconds; says what the server does."""
            with socket.create_connection((address.hostname, address.port)) as connection:
                connection.sendall(first)
                connection.settimeout(0.2)
                for _ in range(20):
                    try:
                        connection.sendall(drip)
                        return "answers" if connection.recv(1 << 16) else "closes"
                    except TimeoutError:
                        continue
                    except OSError:
                        return "closes"
            return "waits"

        cases = [(b"", b""), (head, b""), (head, b"x"), (body, b""), (body, b"x"), (body, b" " * 40)]
        with ThreadPoolExecutor(len(cases)) as pool:
            ends = list(pool.map(lambda case: end_of(*case), cases))
        assert ends == ["closes"] * 5 + ["answers"], "a client that sends enough may wait for a slow answer"


@pytest.fixture(scope="module")
def many_files(module_hub: LocalHub) -> LocalHub:
    HfApi(endpoint=module_hub.endpoint, token=module_hub.write_token).create_repo("ann/big")
    content = base64.b64encode(b"x").decode()
    lines = [
        json.dumps({"key": "file", "value": {"path": f"data/{number}.txt", "content": content}})
        for number in range(4000)
    ]
    url = f"{module_hub.endpoint}/api/models/ann/big/commit/main"
    headers = {"Authorization": f"Bearer {module_hub.write_token}"}
    httpx.post(url, content="\n".join(lines), headers=headers, timeout=60, trust_env=False).raise_for_status()
    return module_hub


def test_many_paths_cost_little(many_files: LocalHub) -> None:
    url = f"{many_files.endpoint}/api/models/ann/big/paths-info/main"
    paths = [f"no/{number}" for number in range(60_000)] + ["data", "data/7.txt"]
    started = time.monotonic()
    found = httpx.post(
        url, content=urlencode([("paths", path) for path in paths]), timeout=60, trust_env=False
    )
    assert [entry["path"] for entry in found.json()] == ["data", "data/7.txt"]
    assert time.monotonic() - started < 5
    assert httpx.post(url, content=b"x" * 1_100_000, trust_env=False).status_code == 413


@pytest.mark.parametrize("card", ["[" * 200_000, "a: [" + "a," * 100_000 + "]", "? " * 100_000])
def test_cards_that_cost_too_much_are_refused(module_hub: LocalHub, card: str) -> None:
    url = f"{module_hub.endpoint}/api/validate-yaml"
    started = time.monotonic()
    answer = httpx.post(url, json={"content": f"---\n{card}\n---"}, timeout=60, trust_env=False)
    assert answer.status_code == 400
    assert time.monotonic() - started < 10


def test_costly_cards_of_strangers_stop_nobody_else(module_hub: LocalHub) -> None:
    card = "---\n" + "- a\n" * 1500 + "---"
    url = f"{module_hub.endpoint}/api/validate-yaml"
    many = 45  # more than the threads of the server
    with ThreadPoolExecutor(many) as pool, httpx.Client(trust_env=False) as client:
        costly = [pool.submit(httpx.post, url, json={"content": card}, timeout=60) for _ in range(many)]
        answered = 0
        while not all(each.done() for each in costly):
            assert client.get(module_hub.endpoint, timeout=10).status_code == 200
            answered += 1
        assert answered > 20
        assert {each.result().status_code for each in costly} == {400}, "a card is a mapping"


def test_drafts_of_killed_processes_are_swept_at_the_start(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with serve(root) as hub:
        HfApi(endpoint=hub.endpoint, token=hub.write_token).create_repo("ann/pick")
    repo = root / "repos/models/ann/pick"
    dying = (
        "import contextlib, os, sys; from depi.files import atomic_write; stack = contextlib.ExitStack();"
        "[stack.enter_context(atomic_write(path)) for path in sys.argv[1:]]; os._exit(9)"
    )
    written = [repo / "refs.json", repo / "repo.json", repo / f"commits/{'a' * 40}.json"]
    assert subprocess.run([sys.executable, "-c", dying, *written], check=False).returncode == 9
    assert len(list(repo.rglob(".*.tmp"))) == 3
    with serve(root) as hub:
        assert not list(root.rglob(".*.tmp"))
        assert HfApi(endpoint=hub.endpoint, token=hub.read_token).model_info("ann/pick").id == "ann/pick"
