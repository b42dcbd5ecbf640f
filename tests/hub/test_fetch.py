"""Small files in one request each: where they lie, what spoils them, and what is left to huggingface_hub."""

import time
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from depi.hub.client import api as client
from depi.hub.client import fetch, retry, session
from depi.hub.server.serve import serve


class CutOff(Response):
    """Promises more than it sends."""

    def __init__(self, **headers: str) -> None:
        super().__init__(b"cut", headers={"Content-Length": "4000", **headers})


class Script:
    """Spoils the next answers to requests for files, and remembers all requests."""

    def __init__(self) -> None:
        self.answers: list[Response] = []
        self.seen: list[str] = []
        self.agents: set[str] = set()

    def __call__(self, request: Request) -> Response | None:
        self.seen.append(f"{request.method} {request.url.path}")
        self.agents.add(request.headers["user-agent"])
        is_file = "/resolve/" in request.url.path and request.method == "GET"
        return self.answers.pop(0) if is_file and self.answers else None


@pytest.fixture
def script(tmp_path, monkeypatch):
    script = Script()
    monkeypatch.setattr(retry, "RETRIES", retry.RetryPolicy(first_wait=0.01))
    with serve(tmp_path / "root", faults=script) as hub:
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield script


@pytest.fixture
def sha(script, tmp_path) -> str:
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/text.json").write_text('{"a": 1}')
    (tmp_path / "in/a/table.parquet").write_bytes(bytes(range(256)) * 100)
    commit = client.upload_folder(
        tmp_path / "in", "ann/box", repo_type="dataset", commit_message="Add", private=False
    )
    script.seen.clear()
    return commit


def leftovers() -> list[Path]:
    return [path for name in ("*.incomplete", "*.tmp") for path in Path(constants.HF_HUB_CACHE).rglob(name)]


@pytest.mark.parametrize("name", ["a/text.json", "a/table.parquet"])
def test_one_request_and_the_cache_that_huggingface_hub_knows(script, sha, tmp_path, monkeypatch, name):
    path = client.download_file("ann/box", name, revision=sha)
    assert path.read_bytes() == (tmp_path / "in" / name).read_bytes()
    assert script.seen == [f"GET /datasets/ann/box/resolve/{sha}/{name}"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Path(hf_hub_download("ann/box", name, repo_type="dataset", revision=sha)) == path
    stored = hf_hub_download(
        "ann/box", name, repo_type="dataset", revision=sha, cache_dir=constants.HF_HUB_CACHE
    )
    assert Path(stored).resolve().name == path.resolve().name


def test_contents_are_shared_between_commits(script, sha, tmp_path):
    first = client.download_file("ann/box", "a/text.json", revision=sha)
    (tmp_path / "in/more.txt").write_text("more")
    later = client.upload_folder(tmp_path / "in", "ann/box", repo_type="dataset", commit_message="More")
    second = client.download_file("ann/box", "a/text.json", revision=later)
    assert second != first
    assert second.resolve() == first.resolve()


@pytest.mark.parametrize(
    "spoiled",
    [
        lambda: CutOff(),
        lambda: CutOff(**{"ETag": f'"{"a" * 40}"', "X-Repo-Commit": "SHA"}),
        lambda: PlainTextResponse("later", status_code=503),
        lambda: PlainTextResponse("later", status_code=429, headers={"Retry-After": "0"}),
    ],
)
def test_what_was_spoiled_is_asked_for_again_and_leaves_nothing(script, sha, spoiled):
    answer = spoiled()
    if answer.headers.get("x-repo-commit") == "SHA":
        answer.headers["x-repo-commit"] = sha
    script.answers = [answer, spoiled()]
    assert client.download_file("ann/box", "a/text.json", revision=sha).read_text() == '{"a": 1}'
    assert len(script.seen) == 3
    assert leftovers() == []


def test_wrong_content_under_a_digest_is_refused(script, sha):
    lie = {"ETag": f'"{"0" * 64}"', "X-Repo-Commit": sha}
    script.answers = [Response(b"something else", headers=lie) for _ in range(4)]
    with pytest.raises(client.HubUnreachable, match="arrived cut short"):
        client.download_file("ann/box", "a/table.parquet", revision=sha)
    assert leftovers() == []


def test_a_name_out_of_the_cache_is_no_name(script, sha):
    lie = {"ETag": '"../../../../escaped"', "X-Repo-Commit": sha}
    script.answers = [Response(b"x", headers=lie)]
    assert client.download_file("ann/box", "a/text.json", revision=sha).read_text() == '{"a": 1}'
    assert "HEAD" in script.seen[1]  # huggingface_hub's own way


def test_large_files_go_huggingface_hubs_own_way(script, sha, monkeypatch):
    monkeypatch.setattr(fetch, "SMALL", 100)
    path = client.download_file("ann/box", "a/table.parquet", revision=sha)
    assert path.stat().st_size == 25_600
    assert [seen.split()[0] for seen in script.seen] == ["GET", "HEAD", "GET"]


def test_a_time_limit_stops_what_goes_on_after_it(script, sha):
    with client.time_limit(0.2):
        client.download_file("ann/box", "a/text.json", revision=sha)
        time.sleep(0.25)
        with pytest.raises(client.TooSlow, match="longer than the time allowed"):
            client.download_files("ann/box", ["a/table.parquet", "a/text.json"], revision=sha)
    client.download_file("ann/box", "a/table.parquet", revision=sha)


def test_an_answer_without_bounds_is_not_held(script, sha, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_ANSWER", 100)
    with pytest.raises(client.TooLarge, match="larger than"):
        client.repo_info("ann/box", revision=sha, files_metadata=True)


def test_a_rate_is_kept_by_all_threads_together(script, sha):
    with session.limited(session.Settings(connections=4, max_requests_per_second=20)):
        started = time.monotonic()
        for _ in range(7):
            client.repo_info("ann/box")
        assert time.monotonic() - started >= 6 / 20
    started = time.monotonic()
    for _ in range(7):
        client.repo_info("ann/box")
    assert len(script.seen) == 14


def test_every_request_says_who_asks_and_waits_no_longer_than_a_minute(script, sha, monkeypatch):
    waits = []
    send = session.httpx.HTTPTransport.handle_request

    def watch(self, request):
        waits.append(request.extensions["timeout"])
        return send(self, request)

    monkeypatch.setattr(session.httpx.HTTPTransport, "handle_request", watch)
    script.agents.clear()
    list(client.list_datasets(search="box"))
    client.repo_info("ann/box")
    client.list_files("ann/box", "a", revision=sha)
    client.existing_files("ann/box", ["a/text.json"], revision=sha)
    client.download_files("ann/box", ["a/text.json"], revision=sha)
    assert len(waits) == 5
    assert all(wait["read"] == 60.0 and wait["connect"] <= 60.0 for wait in waits)
    assert all(agent.startswith("depi/") for agent in script.agents)


def test_folders_and_files_of_a_tree(script, sha):
    assert client.list_files("ann/box", "a", revision=sha) == {"table.parquet": 25_600, "text.json": 8}
    assert client.list_folders("ann/box", "", revision=sha) == ["a"]
    asked = ["a/text.json", "a/none.json", "a"]
    assert client.existing_files("ann/box", asked, revision=sha) == {"a/text.json"}
    with pytest.raises(client.FileMissing):
        client.list_files("ann/box", "nothing", revision=sha)
