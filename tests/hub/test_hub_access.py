"""Tokens, private and gated repositories, hostile names."""

import base64
import hashlib
import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from depi.hub.local import LocalHub


@pytest.fixture
def owner(hub: LocalHub) -> HfApi:
    api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
    api.create_repo("ann/pick", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="ann/pick", repo_type="dataset")
    return api


@pytest.fixture
def reader(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.read_token)


@pytest.fixture
def anyone(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


def fetch(api: HfApi, cache: Path, revision: str = "main") -> bytes:
    path = hf_hub_download(
        "ann/pick",
        "x.txt",
        repo_type="dataset",
        revision=revision,
        endpoint=api.endpoint,
        token=api.token,
        cache_dir=cache,
    )
    return Path(path).read_bytes()


def test_tokens(owner: HfApi, reader: HfApi, anyone: HfApi) -> None:
    assert owner.whoami()["auth"]["accessToken"]["role"] == "write"
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert anyone.dataset_info("ann/pick").id == "ann/pick"
    changes = [
        lambda api: api.create_repo("ann/new", repo_type="dataset"),
        lambda api: api.upload_file(
            path_or_fileobj=b"y", path_in_repo="y", repo_id="ann/pick", repo_type="dataset"
        ),
        lambda api: api.create_tag("ann/pick", tag="v1", repo_type="dataset"),
        lambda api: api.create_branch("ann/pick", branch="b", repo_type="dataset"),
        lambda api: api.update_repo_settings("ann/pick", private=True, repo_type="dataset"),
        lambda api: api.delete_repo("ann/pick", repo_type="dataset"),
        lambda api: api.grant_access("ann/pick", "reader", repo_type="dataset"),
    ]
    before = owner.dataset_info("ann/pick").sha
    for change in changes:
        for api, status in ((reader, 403), (anyone, 401)):
            with pytest.raises(HfHubHTTPError) as caught:
                change(api)
            assert caught.value.response.status_code == status
    assert owner.dataset_info("ann/pick").sha == before
    stranger = HfApi(endpoint=owner.endpoint, token="hf_wrong")
    with pytest.raises(HfHubHTTPError) as caught:
        stranger.dataset_info("ann/pick")
    assert caught.value.response.status_code == 401
    assert not isinstance(caught.value, RepositoryNotFoundError)


def test_private_repositories_look_missing(
    owner: HfApi, reader: HfApi, anyone: HfApi, tmp_path: Path
) -> None:
    owner.update_repo_settings("ann/pick", private=True, repo_type="dataset")
    for call in (anyone.repo_info, anyone.list_repo_refs, anyone.auth_check):
        with pytest.raises(RepositoryNotFoundError) as hidden:
            call("ann/pick", repo_type="dataset")
        assert hidden.value.response.status_code == 401
    with pytest.raises(RepositoryNotFoundError):
        fetch(anyone, tmp_path / "a")
    with pytest.raises(RepositoryNotFoundError) as missing:
        reader.dataset_info("ann/nothing")
    assert missing.value.response.status_code == 404
    assert [info.id for info in anyone.list_datasets()] == []
    assert [info.private for info in reader.list_datasets()] == [True]
    assert fetch(reader, tmp_path / "r") == b"x"


def test_gated_repositories_need_an_accepted_token(
    owner: HfApi, reader: HfApi, anyone: HfApi, tmp_path: Path
) -> None:
    owner.update_repo_settings("ann/pick", gated="manual", repo_type="dataset")
    assert anyone.dataset_info("ann/pick").gated == "manual"
    for api, status in ((anyone, 401), (reader, 403)):
        with pytest.raises(GatedRepoError) as caught:
            fetch(api, tmp_path / "a")
        assert caught.value.response.status_code == status
    assert fetch(owner, tmp_path / "o") == b"x"
    form = f"{reader.endpoint}/datasets/ann/pick/ask-access"
    httpx.post(form, headers={"Authorization": f"Bearer {reader.token}"}).raise_for_status()
    with pytest.raises(GatedRepoError):
        reader.auth_check("ann/pick", repo_type="dataset")
    owner.grant_access("ann/pick", "reader", repo_type="dataset")
    assert fetch(reader, tmp_path / "r") == b"x"
    owner.cancel_access_request("ann/pick", "reader", repo_type="dataset")
    with pytest.raises(GatedRepoError):
        fetch(reader, tmp_path / "again")
    owner.update_repo_settings("ann/pick", gated="auto", repo_type="dataset")
    httpx.post(form, headers={"Authorization": f"Bearer {reader.token}"}).raise_for_status()
    reader.auth_check("ann/pick", repo_type="dataset")


def raw(hub: LocalHub, request: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send a request whose address no client would tidy up first."""
    address = urlsplit(hub.endpoint)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = (
            f"{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            f"Authorization: Bearer {hub.write_token}\r\n\r\n"
        )
        connection.sendall(head.encode("latin-1") + body)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return int(received.split(b" ")[1]), received


@pytest.mark.parametrize(
    "path",
    [
        "/datasets/ann/pick/resolve/main/../../../../tokens.json",
        "/datasets/ann/pick/resolve/main/..%2f..%2f..%2f..%2ftokens.json",
        "/datasets/ann/pick/resolve/main/%2e%2e/%2e%2e/%2e%2e/%2e%2e/tokens.json",
        "/datasets/ann/pick/resolve/main//etc/passwd",
        "/datasets/ann/pick/resolve/..%2f..%2f..%2f../tokens.json",
        "/datasets/../../resolve/main/tokens.json",
        "/datasets/..%2f..%2f../tokens.json/resolve/main/x",
        "/api/datasets/../..",
        "/api/datasets/%2e%2e/%2e%2e",
        "/api/datasets/ann/pick/revision/..%2f..%2frepo",
        "/api/datasets/ann/pick/tree/main/..%2f..",
        "/lfs/..%2f..%2ftokens.json",
        "/%00",
        "/api/datasets/ann/%00",
        "/datasets/ann/pick/resolve/main/x.txt%00",
        "/\xff\xfe",
    ],
)
def test_no_address_leaves_the_root(hub: LocalHub, owner: HfApi, path: str) -> None:
    status, answer = raw(hub, f"GET {path}")
    assert 400 <= status < 500
    assert hub.read_token.encode() not in answer
    assert b"root:" not in answer


@pytest.mark.parametrize(
    "name", ["../up", "/abs", "a/../b", "a//b", "./a", "a/.", "", "a\\b", "a\nb", ".git/config", "x" * 300]
)
@pytest.mark.parametrize("kind", ["file", "lfsFile"])
def test_no_commit_writes_a_bad_path(hub: LocalHub, owner: HfApi, name: str, kind: str) -> None:
    value = {"path": name, "content": base64.b64encode(b"evil").decode(), "encoding": "base64"}
    if kind == "lfsFile":
        value = {"path": name, "algo": "sha256", "oid": hashlib.sha256(b"x").hexdigest(), "size": 1}
    line = json.dumps({"key": kind, "value": value}).encode()
    before = owner.dataset_info("ann/pick").sha
    status, _ = raw(hub, "POST /api/datasets/ann/pick/commit/main", line)
    assert status == 400
    assert owner.dataset_info("ann/pick").sha == before


@pytest.mark.parametrize(
    "name", ["../x", "ann/../x", "/x", "ann/.hidden", "a/b/c", "ann/a b", "ann/x.git", "é/x"]
)
def test_no_repository_has_a_bad_name(hub: LocalHub, owner: HfApi, name: str) -> None:
    body = json.dumps({"name": name, "type": "dataset"}).encode()
    status, _ = raw(hub, "POST /api/repos/create", body)
    assert status == 400
    assert [info.id for info in owner.list_datasets()] == ["ann/pick"]


COMMIT = "POST /api/datasets/ann/pick/commit/main"
YAML = "POST /api/validate-yaml"


@pytest.mark.parametrize(
    ("address", "body"),
    [
        (COMMIT, b""),
        (COMMIT, b"junk"),
        (COMMIT, b'{"key":' + b"[" * 100_000),
        (COMMIT, b'{"key": "header", "value": {"summary": "\\ud800"}}'),
        (COMMIT, b'{"key": "file", "value": {"path": "a", "content": 3}}'),
        ("POST /api/datasets/ann/pick/preupload/main", b'{"files": ["a"]}'),
        ("POST /api/repos/create", b'{"name": "ann/\\ud800"}'),
        ("POST /api/repos/create", b'{"name": "ann/x", "type": ["dataset"]}'),
        ("PUT /api/datasets/ann/pick/settings", b'{"gated": []}'),
        (YAML, b'{"content": "---\\n' + b"- " * 50_000 + b'\\n---"}'),
        (YAML, b'{"content": "---\\na: !!python/object/apply:os.system [ls]\\n---"}'),
        ("GET /api/datasets?cursor=W10=", b""),
        ("GET /api/datasets?limit=-1", b""),
        ("GET /datasets/ann/pick/resolve/main/", b""),
    ],
)
def test_nonsense_is_refused(hub: LocalHub, owner: HfApi, address: str, body: bytes) -> None:
    before = owner.dataset_info("ann/pick").sha
    status, _ = raw(hub, address, body)
    assert 400 <= status < 500
    assert owner.dataset_info("ann/pick").sha == before


@pytest.mark.parametrize("name", ["..", "a..b", "refs/heads/x", "a b", "-x", "f" * 40, "x.lock", "a\nb", ""])
def test_no_tag_has_a_bad_name(owner: HfApi, name: str) -> None:
    with pytest.raises(BadRequestError):
        owner.create_tag("ann/pick", tag=name, repo_type="dataset")


def test_upload_addresses_cannot_be_made_up(hub: LocalHub, owner: HfApi) -> None:
    oid = hashlib.sha256(b"large").hexdigest()
    forged = httpx.put(f"{hub.endpoint}/lfs/{oid}?size=5&signature=00", content=b"large")
    assert forged.status_code == 403
    batch = httpx.post(
        f"{hub.endpoint}/datasets/ann/pick.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": oid, "size": 5}]},
        headers={"Authorization": f"Bearer {hub.write_token}"},
    ).json()
    address = batch["objects"][0]["actions"]["upload"]["href"]
    assert httpx.put(address, content=b"other").status_code == 400
    assert httpx.put(address, content=b"too large").status_code == 400
    assert not list((hub.root / "incoming").iterdir())
    assert not list((hub.root / "blobs").rglob(oid))
    assert httpx.put(address, content=b"large").status_code == 200
    assert [path.read_bytes() for path in (hub.root / "blobs").rglob(oid)] == [b"large"]


def test_unknown_revision(owner: HfApi) -> None:
    with pytest.raises(RevisionNotFoundError):
        owner.dataset_info("ann/pick", revision="v9")
    with pytest.raises(RevisionNotFoundError):
        owner.dataset_info("ann/pick", revision="0" * 40)
    with pytest.raises(RevisionNotFoundError):
        owner.upload_file(
            path_or_fileobj=b"", path_in_repo="y", repo_id="ann/pick", repo_type="dataset", revision="no"
        )
