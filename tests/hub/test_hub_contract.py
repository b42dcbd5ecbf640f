"""What huggingface_hub relies on in the answers that DePi and LeRobot ask for, on the wire and by its client.

docs/hub.md lists what the embedded Hub does in another way. Where the real one redirects, a stand-in does so
here, so that code which works with the embedded Hub works there.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from huggingface_hub import (
    HfApi,
    RepoCard,
    constants,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.file_download import _CACHED_NO_EXIST
from lerobot.common.train_utils import push_checkpoint_to_hub, resolve_resume_checkpoint
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION, LeRobotDataset
from lerobot.datasets.utils import get_safe_version
from recordings import Recording, write_v3
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from depi.hub.client import api as client
from depi.hub.client import session
from depi.hub.client.ranges import RemoteFile
from depi.hub.server.serve import LocalHub, serve

SMALL, LARGE = b'{"a": 1}', bytes(range(256)) * 400
GIT_OID = hashlib.sha1(b"blob 8\0" + SMALL).hexdigest()
SHA256 = hashlib.sha256(LARGE).hexdigest()
API, FILE = "/api/datasets/ann/box", "/datasets/ann/box/resolve"


@pytest.fixture(scope="module")
def box(module_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> LocalHub:
    """A Hub with ann/box (two commits, a tag) and the gated ann/closed."""
    folder = tmp_path_factory.mktemp("box")
    (folder / "a.json").write_bytes(SMALL)
    (folder / "b.parquet").write_bytes(LARGE)
    owner = HfApi(endpoint=module_hub.endpoint, token=module_hub.write_token)
    for name in ("ann/box", "ann/closed"):
        owner.create_repo(name, repo_type="dataset")
        owner.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)
    owner.create_tag("ann/box", tag="v3.0", repo_type="dataset")
    owner.update_repo_settings("ann/closed", gated="manual", repo_type="dataset")
    return module_hub


@contextlib.contextmanager
def raw(hub: LocalHub, who: str) -> Iterator[httpx.Client]:
    tokens = {"owner": hub.write_token, "reader": hub.read_token, "forger": "hf_" + "x" * 34}
    headers = {"Authorization": f"Bearer {tokens[who]}"} if who in tokens else {}
    with httpx.Client(base_url=hub.endpoint, headers=headers, trust_env=False) as session:
        yield session


NONE = "/api/datasets/ann/none"
OLD = {"key": "header", "value": {"summary": "late", "parentCommit": "0" * 40}}
COMMIT = {"key": "file", "value": {"path": "c", "content": ""}}
UNSENT = {"key": "lfsFile", "value": {"path": "c.bin", "algo": "sha256", "oid": "1" * 64, "size": 3}}
# Who asks, for what, with which body; the status and the X-Error-Code by which the client chooses its error.
REFUSALS = [
    ("anyone", "GET", NONE, None, 401, "RepoNotFound"),
    ("reader", "GET", NONE, None, 404, "RepoNotFound"),
    ("forger", "GET", API, None, 401, None),
    ("anyone", "GET", "/api/whoami-v2", None, 401, None),
    ("anyone", "GET", f"{API}/revision/v9", None, 404, "RevisionNotFound"),
    ("anyone", "GET", f"{API}/tree/main/none", None, 404, "EntryNotFound"),
    ("anyone", "GET", f"{API}/tree/v9", None, 404, "RevisionNotFound"),
    ("anyone", "POST", f"{API}/paths-info/v9", {"paths": ["a.json"]}, 404, "RevisionNotFound"),
    ("anyone", "HEAD", f"{FILE}/main/none", None, 404, "EntryNotFound"),
    ("anyone", "GET", f"{FILE}/v9/a.json", None, 404, "RevisionNotFound"),
    ("anyone", "GET", "/datasets/ann/none/resolve/main/a", None, 401, "RepoNotFound"),
    ("anyone", "HEAD", "/datasets/ann/closed/resolve/main/a.json", None, 401, "GatedRepo"),
    ("reader", "HEAD", "/datasets/ann/closed/resolve/main/a.json", None, 403, "GatedRepo"),
    ("reader", "GET", "/api/datasets/ann/closed/auth-check", None, 403, "GatedRepo"),
    ("reader", "POST", "/api/repos/create", {"name": "ann/new", "type": "dataset"}, 403, None),
    (
        "owner",
        "POST",
        "/api/repos/create",
        {"name": "box", "organization": "ann", "type": "dataset"},
        409,
        None,
    ),
    ("owner", "POST", f"{API}/tag/main", {"tag": "v3.0"}, 409, None),
    ("owner", "POST", f"{API}/tag/v9", {"tag": "v4.0"}, 404, "RevisionNotFound"),
    ("owner", "DELETE", f"{API}/tag/v9", None, 404, "RevisionNotFound"),
    ("owner", "POST", f"{API}/branch/main", {}, 409, None),
    ("owner", "POST", f"{API}/branch/new", {"startingPoint": "v9"}, 404, "RevisionNotFound"),
    ("owner", "DELETE", f"{API}/branch/main", None, 403, None),
    ("owner", "POST", f"{API}/commit/v9", COMMIT, 404, "RevisionNotFound"),
    ("owner", "POST", f"{API}/commit/main", OLD, 412, None),
    ("owner", "POST", f"{API}/commit/main", UNSENT, 400, None),
    ("reader", "POST", f"{API}/commit/main", COMMIT, 403, None),
    ("anyone", "POST", f"{API}/preupload/main", {"files": []}, 401, None),
    ("reader", "POST", "/datasets/ann/box.git/info/lfs/objects/batch", {"objects": []}, 403, None),
    ("anyone", "POST", "/api/validate-yaml", {"content": "---\na: [\n---"}, 400, None),
]


@pytest.mark.parametrize(
    ("who", "method", "path", "body", "status", "code"),
    REFUSALS,
    ids=[f"{r[0]}-{r[1]}-{r[2]}" for r in REFUSALS],
)
def test_refusals(box, who, method, path, body, status, code):
    with raw(box, who) as session:
        answer = session.request(method, path, json=body)
    assert (answer.status_code, answer.headers.get("X-Error-Code")) == (status, code)
    if path == "/api/validate-yaml":
        assert answer.json()["errors"][0]["message"]
        return
    message = answer.headers["X-Error-Message"]
    assert message
    if method != "HEAD":
        assert answer.json()["error"] == message
    # The client tells a wrong token from a missing repository by this text.
    assert (message == "Invalid credentials in Authorization header") == (who == "forger")


def test_files_have_the_headers_that_name_them_in_the_cache(box):
    with raw(box, "anyone") as session:
        sha = session.get(API).json()["sha"]
        for name, content, etag in (("a.json", SMALL, GIT_OID), ("b.parquet", LARGE, SHA256)):
            for method in ("HEAD", "GET"):
                answer = session.request(
                    method, f"{FILE}/v3.0/{name}", headers={"Accept-Encoding": "identity"}
                )
                assert answer.status_code == 200
                assert answer.headers["X-Repo-Commit"] == sha
                assert answer.headers["ETag"] == f'"{etag}"'
                assert int(answer.headers["Content-Length"]) == len(content)
                assert answer.headers["Accept-Ranges"] == "bytes"
                linked = [answer.headers.get(f"X-Linked-{part}") for part in ("ETag", "Size")]
                assert linked == ([f'"{etag}"', str(len(content))] if name == "b.parquet" else [None, None])
                assert not any("xet" in header.lower() for header in answer.headers)
        beyond = session.get(f"{FILE}/main/b.parquet", headers={"Range": f"bytes={len(LARGE)}-"})
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(LARGE)}")
        missing = session.head(f"{FILE}/v3.0/none")
        assert missing.headers["X-Repo-Commit"] == sha, "the client remembers that a commit lacks a file"
    path = Path(hf_hub_download("ann/box", "b.parquet", repo_type="dataset", revision="v3.0"))
    assert path.resolve().name == SHA256
    assert Path(hf_hub_download("ann/box", "a.json", repo_type="dataset")).resolve().name == GIT_OID
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("ann/box", "none", repo_type="dataset")
    assert try_to_load_from_cache("ann/box", "none", repo_type="dataset", revision=sha) is _CACHED_NO_EXIST


def test_pages_are_linked_with_the_whole_question(tmp_path):
    with serve(tmp_path / "root", page_size=2) as hub, raw(hub, "owner") as session:
        for number in range(5):
            body = {"name": f"ann/a&b{number}".replace("&", "-"), "type": "dataset"}
            assert session.post("/api/repos/create", json=body).status_code == 200
        question = [
            ("search", "a-b"),
            ("expand", "sha"),
            ("expand", "tags"),
            ("limit", "2"),
            ("sort", "createdAt"),
        ]
        answer, pages = session.get("/api/datasets", params=question), []
        while True:
            pages.append([entry["id"] for entry in answer.json()])
            assert set(answer.json()[0]) == {"_id", "id", "sha", "tags"}
            if "next" not in answer.links:
                break
            following = httpx.URL(answer.links["next"]["url"])
            assert answer.links["next"]["rel"] == "next"
            assert [pair for pair in following.params.multi_items() if pair[0] != "cursor"] == question
            assert str(following).startswith(hub.endpoint)
            answer = session.get(following)
        assert pages == [["ann/a-b4", "ann/a-b3"], ["ann/a-b2", "ann/a-b1"], ["ann/a-b0"]]
        assert "Link" not in answer.headers
        tree = session.get("/api/datasets/ann/a-b0/tree/main", params={"recursive": "true", "limit": 1})
        assert tree.json()[0].keys() == {"type", "oid", "size", "path"}
        assert "Link" not in tree.headers, "there is one file"


def test_large_files_are_sent_in_one_part_and_only_once(box):
    content, known = b"new" * 1000, {"oid": SHA256, "size": len(LARGE)}
    new = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    batch = {"operation": "upload", "transfers": ["basic", "multipart", "xet"], "objects": [known, new]}
    with raw(box, "owner") as session:
        modes = session.post(
            f"{API}/preupload/main",
            json={
                "files": [{"path": name, "size": 9, "sample": ""} for name in ("a.json", "c.txt", "d.mp4")]
            },
        ).json()["files"]
        assert [(each["uploadMode"], each["shouldIgnore"], each.get("oid")) for each in modes] == [
            *(("regular", False, GIT_OID), ("regular", False, None), ("lfs", False, None))
        ]
        answer = session.post("/datasets/ann/box.git/info/lfs/objects/batch", json=batch).json()
        assert answer["transfer"] == "basic"
        first, second = answer["objects"]
        assert first == known, "without actions the client sends nothing"
        actions = second["actions"]
        assert "chunk_size" not in actions["upload"].get("header", {}), "or the client sends parts"
        assert session.post(actions["verify"]["href"], json=new).status_code == 404
    with raw(box, "anyone") as session:  # the address is signed: the client sends no token with it
        assert session.put(actions["upload"]["href"], content=content[:-1]).status_code == 400
        assert session.put(actions["upload"]["href"], content=content).status_code == 200
        assert session.post(actions["verify"]["href"], json=new).status_code == 401
    with raw(box, "owner") as session:
        assert session.post(actions["verify"]["href"], json=new).status_code == 200
        line = {"key": "lfsFile", "value": {"path": "d.mp4", "algo": "sha256", **new}}
        made = session.post(f"{API}/commit/main", json=line).json()
        assert made["success"] is True
        assert made["commitUrl"] == f"{box.endpoint}/datasets/ann/box/commit/{made['commitOid']}"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/spaces/ann/box", None),
        ("POST", "/api/repos/create", {"name": "ann/app", "type": "space"}),
        ("POST", "/api/repos/move", {"fromRepo": "ann/box", "toRepo": "ann/cup"}),
        ("POST", f"{API}/discussions", {"title": "a"}),
        ("GET", f"{API}/discussions", None),
        ("POST", f"{API}/commit/main?create_pr=1", COMMIT),
        ("POST", f"{API}/super-squash/main", {}),
        ("GET", f"{API}/xet-write-token/main", None),
        ("GET", f"{API}/parquet", None),
        ("GET", "/api/buckets/ann/box", None),
        ("GET", "/api/collections", None),
        ("GET", "/datasets/ann/box.git/info/refs?service=git-upload-pack", None),
    ],
)
def test_what_is_not_there_is_refused_and_changes_nothing(box, method, path, body):
    with raw(box, "owner") as session:
        before = session.get(API).json()["sha"]
        assert session.request(method, path, json=body).status_code in (400, 404, 405)
        assert session.get(API).json()["sha"] == before


def test_what_lerobot_asks(hub, tmp_path, monkeypatch):
    """Its own functions: publish and open a dataset, publish a checkpoint and resume from it."""
    # This asks huggingface.co, whatever HF_ENDPOINT says.
    monkeypatch.setattr(RepoCard, "validate", lambda card, repo_type=None: None)
    root = write_v3(tmp_path / "v30", Recording(lengths=(5, 4)))
    dataset = LeRobotDataset("ann/pick", root=root)
    dataset.push_to_hub(private=True)
    dataset.push_to_hub(tags=["so101"])  # once more: the repository, the files and the tag exist
    dataset.push_to_hub(branch="more", upload_large_folder=True)
    assert get_safe_version("ann/pick", CODEBASE_VERSION) == CODEBASE_VERSION
    opened = LeRobotDataset("ann/pick", episodes=[1])
    assert (opened.num_episodes, opened.num_frames) == (1, 4)
    api = HfApi(endpoint=hub.endpoint)
    refs = api.list_repo_refs("ann/pick", repo_type="dataset")
    assert {ref.name for ref in refs.branches} == {"main", "more"}
    assert api.dataset_info("ann/pick").private

    for step in ("000002", "000010"):
        folder = tmp_path / "checkpoints" / step / "pretrained_model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(LARGE)
        push_checkpoint_to_hub(folder.parent, "ann/run", private=True)
        push_checkpoint_to_hub(folder.parent, "ann/run", private=True)
    assert {tag.name for tag in api.list_repo_refs("ann/run").tags} == {"000002", "000010"}
    resumed = resolve_resume_checkpoint("ann/run", tmp_path / "resumed")
    assert (resumed / "pretrained_model/model.safetensors").read_bytes() == LARGE
    assert resumed.name == "000010"
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        PreTrainedConfig.from_pretrained("ann/run")


@dataclass
class Redirecting:
    """Answers for files as huggingface.co does: the header that names a file is on a redirect.

    Small files are at another place of the same host, large ones on another host (a name that is not the
    Hub's), at an address that needs no token.
    """

    hub: LocalHub | None = None
    elsewhere: LocalHub | None = None
    logins: set[str | None] = field(default_factory=set)
    sent: list[str | None] = field(default_factory=list)

    def at_the_hub(self, request: Request) -> Response | None:
        path, login = request.url.path, request.headers.get("authorization")
        cached = path.startswith("/api/resolve-cache")
        if self.hub is None or "inside" in request.headers or not (cached or "/resolve/" in path):
            return None
        self.logins.add(login)
        headers = {"inside": "1", "Authorization": f"Bearer {self.hub.read_token}"}
        place = self.hub.endpoint + path.removeprefix("/api/resolve-cache")
        found = httpx.get(place, headers=headers, trust_env=False)
        kept = {name: found.headers[name] for name in ("ETag", "X-Repo-Commit") if name in found.headers}
        if cached or found.status_code != 200:
            return Response(found.content, found.status_code, kept | dict(_errors(found)))
        etag, large = found.headers["ETag"], "X-Linked-ETag" in found.headers
        kept |= {"X-Linked-ETag": etag, "X-Linked-Size": found.headers["Content-Length"]}
        if not large:
            return Response(status_code=307, headers=kept | {"Location": f"/api/resolve-cache{path}"})
        assert self.elsewhere is not None
        host = self.elsewhere.endpoint.replace("127.0.0.1", "localhost")
        del kept["ETag"]
        return Response(status_code=302, headers=kept | {"Location": f"{host}/{etag[1:-1]}?Signature=1"})

    def at_the_store(self, request: Request) -> Response:
        self.sent.append(request.headers.get("authorization"))
        assert self.hub is not None
        (blob,) = (self.hub.root / "blobs").rglob(request.url.path.strip("/"))
        return FileResponse(blob, headers={"ETag": '"of the store"'})


def _errors(answer: httpx.Response) -> Iterator[tuple[str, str]]:
    return ((name, value) for name, value in answer.headers.items() if name.startswith("x-error"))


@pytest.mark.parametrize("login", ["", "me:pass%2Fword@"])
def test_the_client_follows_the_redirects_of_the_real_hub(tmp_path, monkeypatch, login):
    """Every way in which files are read; neither token nor password reaches the other host."""
    redirecting = Redirecting()
    with (
        serve(tmp_path / "hub", faults=redirecting.at_the_hub) as hub,
        serve(tmp_path / "store", faults=redirecting.at_the_store) as store,
    ):
        for name, value in hub.environment(hub.read_token).items():
            monkeypatch.setenv(name, value)
        owner = HfApi(endpoint=hub.endpoint, token=hub.write_token)
        owner.create_repo("ann/box", repo_type="dataset")
        (tmp_path / "in/a").mkdir(parents=True)
        (tmp_path / "in/a/small.json").write_bytes(SMALL)
        (tmp_path / "in/a/large.parquet").write_bytes(LARGE)
        sha = owner.upload_folder(repo_id="ann/box", repo_type="dataset", folder_path=tmp_path / "in").oid
        redirecting.hub, redirecting.elsewhere = hub, store
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("//", f"//{login}"))
        expected = {"a/small.json": (SMALL, GIT_OID), "a/large.parquet": (LARGE, SHA256)}
        session.install()
        for number, read in enumerate(
            (
                lambda name: client.download_file("ann/box", name, revision=sha),
                lambda name: hf_hub_download(
                    "ann/box", name, repo_type="dataset", revision=sha, endpoint=hub.endpoint
                ),
                lambda name: client.download_file("ann/box", name, revision="main") if not login else None,
            )
        ):
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"cache{number}"))
            for name, (content, etag) in expected.items():
                path = read(name)
                if path is not None:
                    assert Path(path).read_bytes() == content
                    assert Path(path).resolve().name == etag
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "parts"))
        remote = RemoteFile("ann/box", "a/large.parquet", revision=sha, max_bytes=10**6)
        assert remote.size == len(LARGE)
        assert remote.fetch(1000, 5000) == LARGE[1000:6000]
        with pytest.raises(client.FileMissing):
            client.download_file("ann/box", quote("a/none"), revision=sha)
        assert redirecting.sent
        assert set(redirecting.sent) == {None}
        assert all(sent is not None for sent in redirecting.logins)
        if not login:
            folder = Path(snapshot_download("ann/box", repo_type="dataset", endpoint=hub.endpoint))
            assert {name: (folder / name).read_bytes() for name in expected} == {
                name: content for name, (content, _) in expected.items()
            }
