"""DePi's own Hub client: retries, pinned downloads, and one sentence for each way to fail."""

import dataclasses
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.file_download import xet_get
from huggingface_hub.utils._xet import XetFileData
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from depi.errors import DatasetError, UserError
from depi.hub.client import api as client
from depi.hub.client import retry
from depi.hub.server.serve import LocalHub, serve


class Faults:
    """Answers in the Hub's place as often as a test wants, and counts what arrives."""

    def __init__(self) -> None:
        self.planned: dict[tuple[str, str], list[Response]] = {}
        self.seen: Counter[str] = Counter()

    def plan(self, method: str, part: str, *answers: Response) -> None:
        self.planned[method, part] = list(answers)

    def __call__(self, request: Request) -> Response | None:
        self.seen[request.method] += 1
        for (method, part), answers in self.planned.items():
            if method == request.method and part in request.url.path and answers:
                return answers.pop(0)
        return None


def failing(status: int, **headers: str) -> Response:
    return JSONResponse({"error": "on purpose"}, status_code=status, headers=headers)


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def faulty_hub(tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setattr(retry, "RETRIES", retry.RetryPolicy(first_wait=0.02))
    with serve(tmp_path / "faulty", faults=faults) as hub:
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


FILES = {"meta/info.json": b"{}", "data/[a]*?.parquet": bytes(range(256)) * 40, "b.txt": b"b"}


def publish(tmp_path: Path, repo_id: str = "ann/pick", **options) -> str:
    folder = fill(tmp_path / "in", FILES)
    return client.upload_folder(folder, repo_id, repo_type="dataset", commit_message="Add data", **options)


def test_upload_list_and_download(hub: LocalHub, tmp_path: Path) -> None:
    sha = publish(tmp_path, private=True, tag="v3.0")
    info = client.repo_info("ann/pick", revision="v3.0")
    assert (info.sha, info.private) == (sha, True)
    assert [found.id for found in client.list_datasets(search="pick")] == ["ann/pick"]
    assert [found.id for found in client.list_datasets(tags=["LeRobot"])] == []
    folder = client.download_files("ann/pick", ["meta/info.json", "data/[a]*?.parquet"], revision=sha)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {"meta/info.json", "data/[a]*?.parquet"}
    assert (folder / "data/[a]*?.parquet").read_bytes() == FILES["data/[a]*?.parquet"]
    assert client.download_files("ann/pick", [], revision=sha) == folder
    assert client.download_files("ann/pick", ["b.txt"], revision="main", progress=True) == folder
    assert client.download_file("ann/pick", "b.txt", revision="v3.0") == folder / "b.txt"


def test_tag_moves_to_the_new_commit(hub: LocalHub, tmp_path: Path) -> None:
    first = publish(tmp_path, tag="v3.0")
    fill(tmp_path / "in", {"more.txt": b"more"})
    second = client.upload_folder(
        tmp_path / "in", "ann/pick", repo_type="dataset", commit_message="More", tag="v3.0"
    )
    assert second != first
    assert client.repo_info("ann/pick", revision="v3.0").sha == second


def test_cached_files_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: LocalHub) -> None:
    sha = publish(tmp_path)
    client.download_files("ann/pick", ["b.txt", "meta/info.json"], revision=sha)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    folder = client.download_files("ann/pick", ["b.txt", "meta/info.json"], revision=sha)
    assert (folder / "b.txt").read_bytes() == b"b"
    assert client.download_file("ann/pick", "b.txt", revision=sha).read_bytes() == b"b"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_repeated(
    faulty_hub: LocalHub, faults: Faults, tmp_path: Path, status: int
) -> None:
    faults.plan("POST", "/repos/create", failing(status))
    faults.plan("POST", "/commit/", failing(status))
    sha = publish(tmp_path)
    faults.plan("GET", "/api/datasets", failing(status), failing(status))
    assert [info.id for info in client.list_datasets()] == ["ann/pick"]
    faults.plan("GET", "/revision/", failing(status))
    assert client.repo_info("ann/pick", revision=sha).sha == sha
    if status != 429:  # huggingface_hub repeats that one by itself, a second later
        faults.plan("GET", "/resolve/", failing(status), failing(status))
    assert client.download_file("ann/pick", "b.txt", revision=sha).read_bytes() == b"b"


def test_lasting_failure_is_one_sentence(faulty_hub: LocalHub, faults: Faults) -> None:
    faults.plan("GET", "/api/datasets", *[failing(500) for _ in range(9)])
    with pytest.raises(client.HubUnreachable, match="fails with status 500: try again later"):
        client.repo_info("ann/pick")
    assert faults.seen["GET"] == retry.RETRIES.attempts


def test_a_hub_that_has_answered_is_waited_for(
    faulty_hub: LocalHub, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = retry.RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.02)
    monkeypatch.setattr(retry, "RETRIES", quick)
    faults.plan("GET", "/api/datasets", failing(503), failing(503))
    with pytest.raises(retry.HubSilent):
        client.repo_info("ann/pick")
    sha = publish(tmp_path)
    faults.plan("GET", "/api/datasets", *[failing(503) for _ in range(20)])
    assert client.repo_info("ann/pick").sha == sha
    # Away for longer: one request waits, those after it do not.
    monkeypatch.setattr(retry, "RETRIES", dataclasses.replace(quick, longest_silence=0.2))
    faults.plan("GET", "/api/datasets", *[failing(503) for _ in range(900)])
    with pytest.raises(retry.HubSilent, match="fails with status 503: try again later"):
        client.repo_info("ann/pick")
    asked = faults.seen["GET"]
    with pytest.raises(retry.HubSilent):
        client.repo_info("ann/pick")
    assert faults.seen["GET"] == asked + 1
    faults.planned.clear()
    assert client.repo_info("ann/pick").sha == sha


def test_a_request_that_alone_gets_no_answer_is_given_up(
    faulty_hub: LocalHub, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path)
    publish(tmp_path, "ann/odd")
    faults.plan("GET", "/ann/odd", *[failing(503) for _ in range(900)])
    done = threading.Event()

    def ask_on() -> None:
        while not done.is_set():
            client.repo_info("ann/pick")

    others = threading.Thread(target=ask_on)
    others.start()
    try:
        with pytest.raises(client.HubUnreachable) as caught:
            client.repo_info("ann/odd")
    finally:
        done.set()
        others.join()
    assert not isinstance(caught.value, retry.HubSilent)


def test_a_failure_of_xet_is_one_of_the_network_and_not_of_the_file(
    faulty_hub: LocalHub, faults: Faults, tmp_path: Path
) -> None:
    """Large files of huggingface.co come by Xet, whose errors are a bare RuntimeError or ConnectionError."""
    token = {"X-Xet-Cas-Url": faulty_hub.endpoint, "X-Xet-Access-Token": "x"}
    token["X-Xet-Token-Expiration"] = str(int(time.time()) + 3600)
    faults.plan("GET", "/xet-token", PlainTextResponse("", headers=token))
    large = XetFileData("a" * 64, f"{faulty_hub.endpoint}/xet-token")
    tried = []

    def download() -> None:
        tried.append(large)
        xet_get(incomplete_path=tmp_path / "large", xet_file_data=large, headers={}, expected_size=100)

    target = retry.Target(faulty_hub.endpoint, "ann/pick", filename="videos/large.mp4")
    with pytest.raises(client.HubUnreachable, match=r"ann/pick could not be transferred by Xet \(.*404"):
        retry.retried(download, target)
    assert len(tried) == retry.RETRIES.attempts

    def of_our_own() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        retry.retried(of_our_own, target)


def test_retry_after_is_honoured(faulty_hub: LocalHub, faults: Faults, tmp_path: Path) -> None:
    sha = publish(tmp_path)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    for headers, least in (
        ({"Retry-After": "1"}, 1.0),
        ({"Retry-After": soon}, 1.0),
        ({"RateLimit": '"api";r=0;t=1'}, 1.0),
    ):
        faults.plan("GET", "/revision/", failing(429, **headers))
        start = time.monotonic()
        assert client.repo_info("ann/pick", revision=sha).sha == sha
        assert time.monotonic() - start >= least
    faults.plan("GET", "/revision/", failing(429, **{"Retry-After": "86400"}))
    start = time.monotonic()
    with pytest.raises(client.HubUnreachable, match="limits how often"):
        client.repo_info("ann/pick", revision=sha)
    assert time.monotonic() - start < 5


def test_waits_grow_and_differ() -> None:
    error = retry.httpx.ConnectError("refused")
    policy = retry.RetryPolicy(attempts=10, first_wait=1, longest_wait=8)
    waits = [[retry._wait_before_next(error, attempt, policy) for _ in range(50)] for attempt in (1, 2, 3, 9)]
    for drawn, centre in zip(waits, (1, 2, 4, 8), strict=True):
        assert all(centre * 0.5 <= wait <= centre * 1.5 for wait in drawn)
        assert len(set(drawn)) > 40
    assert retry._wait_before_next(error, 10, policy) is None


def test_what_a_hub_says_cannot_steer_the_terminal(faulty_hub: LocalHub, faults: Faults) -> None:
    faults.plan("GET", "/api/datasets", JSONResponse({"error": "no\x1b[2J\nway"}, status_code=418))
    with pytest.raises(client.HubError, match=r"refused the request .*: no \[2J way$"):
        client.repo_info("ann/pick")


def test_refusals_are_not_repeated(faulty_hub: LocalHub, faults: Faults) -> None:
    with pytest.raises(client.RepoMissing):
        client.repo_info("ann/nothing")
    assert faults.seen["GET"] == 1


def test_sentences(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha = publish(tmp_path)
    owner = HfApi(endpoint=hub.endpoint, token=hub.write_token)
    with pytest.raises(client.RevisionMissing, match="dataset ann/pick has no revision 'v9'"):
        client.repo_info("ann/pick", revision="v9")
    with pytest.raises(client.FileMissing, match="has no file 'meta/no"):
        client.download_files("ann/pick", ["b.txt", "meta/no.json"], revision=sha)
    with pytest.raises(client.RepoMissing, match="is private and your token does not open it"):
        client.download_file("ann/nothing", "b.txt", revision=sha)
    with pytest.raises(client.RepoMissing, match="write it as user/name"):
        client.repo_info("a/b/c")

    owner.update_repo_settings("ann/pick", gated="manual", repo_type="dataset")
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    gated = rf"is gated: ask for access at {hub.endpoint}/datasets/ann/pick, .*`hf auth login`"
    with pytest.raises(client.RepoGated, match=gated):
        client.download_file("ann/pick", "meta/info.json", revision=sha)
    with pytest.raises(client.TokenMissing, match=r"may not write .*settings/tokens"):
        publish(tmp_path)
    with pytest.raises(client.TokenMissing, match="may not write"):
        publish(tmp_path, "ann/other")

    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(client.RepoGated, match="ask for access"):
        client.download_file("ann/pick", "meta/info.json", revision=sha)
    owner.update_repo_settings("ann/pick", private=True, repo_type="dataset")
    with pytest.raises(client.RepoMissing, match="or is private: check the name, or log in"):
        client.download_file("ann/pick", "meta/info.json", revision=sha)
    with pytest.raises(client.TokenMissing, match=r"uploading needs a token: .*write access"):
        publish(tmp_path)

    monkeypatch.setenv("HF_TOKEN", "hf_é")
    with pytest.raises(client.TokenMissing, match="has characters that are not allowed in a token"):
        client.repo_info("ann/pick")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(client.TokenMissing, match="does not accept your token"):
        client.repo_info("ann/pick")
    with pytest.raises(client.TokenMissing, match="does not accept your token"):
        client.download_file("ann/pick", "meta/info.json", revision=sha)


def test_unreachable_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRIES", retry.RetryPolicy(attempts=2, first_wait=0.01))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        client.HubUnreachable, match=r"cannot reach the Hub at http://127\.0\.0\.1:9 .*HF_ENDPOINT"
    ):
        list(client.list_datasets())
    monkeypatch.setenv("HF_ENDPOINT", "127.0.0.1:9")
    with pytest.raises(client.HubUnreachable, match="HF_ENDPOINT"):
        client.repo_info("ann/pick")
    monkeypatch.setenv("HF_ENDPOINT", "http://[bad")
    with pytest.raises(client.HubUnreachable, match="HF_ENDPOINT"):
        client.repo_info("ann/pick")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(client.HubUnreachable, match="HF_HUB_OFFLINE is set: unset it"):
        client.repo_info("ann/pick")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(client.HubUnreachable, match=r"b\.txt of dataset ann/pick .*HF_HUB_OFFLINE is set"):
        client.download_file("ann/pick", "b.txt", revision="0" * 40)


def test_an_endpoint_that_is_no_hub(faulty_hub: LocalHub, faults: Faults) -> None:
    faults.plan("GET", "/api/datasets", PlainTextResponse("<html>welcome</html>"))
    with pytest.raises(client.HubUnreachable, match="does not answer like a Hub"):
        client.repo_info("ann/pick")
    faults.plan("HEAD", "/resolve/", PlainTextResponse("<html>welcome</html>"))
    with pytest.raises(client.HubUnreachable, match="does not answer like a Hub"):
        client.download_file("ann/pick", "x", revision="main")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\\..\\x", "a\0b"])
def test_file_names_from_a_hub_are_checked(hub: LocalHub, name: str) -> None:
    with pytest.raises(DatasetError, match="ann/pick: the file name"):
        client.download_files("ann/pick", ["b.txt", name], revision="0" * 40)


def test_nothing_private_goes_into_a_public_repository(hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("s")
    for repo_type in ("model", "dataset"):

        def upload(repo_id: str, kind: str = repo_type) -> str:
            return client.upload_folder(tmp_path, repo_id, repo_type=kind, commit_message="Add", private=True)

        HfApi(endpoint=hub.endpoint).create_repo("ann/open", repo_type=repo_type)
        with pytest.raises(UserError, match="ann/open is public: make it private"):
            upload("ann/open")
        assert "secret.txt" not in HfApi(endpoint=hub.endpoint).list_repo_files(
            "ann/open", repo_type=repo_type
        )
        upload("ann/closed")
        upload("ann/closed")
        assert client.repo_info("ann/closed", repo_type=repo_type).private


def test_nothing_to_upload(hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "empty/folder").mkdir(parents=True)
    with pytest.raises(UserError, match="is not a folder"):
        client.upload_folder(tmp_path / "no", "ann/pick", repo_type="dataset", commit_message="x")
    with pytest.raises(UserError, match="holds no files"):
        client.upload_folder(tmp_path / "empty", "ann/pick", repo_type="model", commit_message="x")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.endpoint).model_info("ann/pick")


def test_a_child_process_uses_the_environment_alone(hub: LocalHub, tmp_path: Path) -> None:
    sha = publish(tmp_path)
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    program = (
        "from depi.hub.client.api import *\n"
        f"print(download_file('ann/pick', 'b.txt', revision='{sha}').read_text())\n"
        "import sys; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "b\n"), done.stderr
