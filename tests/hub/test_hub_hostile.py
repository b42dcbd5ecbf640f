"""Addresses, names and bodies that no honest client sends."""

import base64
import hashlib
import json
import socket
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import BadRequestError

from depi.hub.server.serve import LocalHub


@pytest.fixture(scope="module")
def owner(module_hub: LocalHub) -> HfApi:
    api = HfApi(endpoint=module_hub.endpoint, token=module_hub.write_token)
    api.create_repo("ann/pick", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="ann/pick", repo_type="dataset")
    return api


def raw(hub: LocalHub, request: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send a request whose address no client would tidy up first."""
    address = urlsplit(hub.endpoint)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = (
            f"{request} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\nAuthorization: Bearer {hub.write_token}\r\n\r\n"
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
def test_no_address_leaves_the_root(module_hub: LocalHub, owner: HfApi, path: str) -> None:
    status, answer = raw(module_hub, f"GET {path}")
    assert 400 <= status < 500
    assert module_hub.read_token.encode() not in answer
    assert b"root:" not in answer


@pytest.mark.parametrize(
    "name", ["../up", "/abs", "a/../b", "a//b", "./a", "a/.", "", "a\\b", "a\nb", ".git/config", "x" * 300]
)
@pytest.mark.parametrize("kind", ["file", "lfsFile"])
def test_no_commit_writes_a_bad_path(module_hub: LocalHub, owner: HfApi, name: str, kind: str) -> None:
    value = {"path": name, "content": base64.b64encode(b"evil").decode(), "encoding": "base64"}
    if kind == "lfsFile":
        value = {"path": name, "algo": "sha256", "oid": hashlib.sha256(b"x").hexdigest(), "size": 1}
    line = json.dumps({"key": kind, "value": value}).encode()
    before = owner.dataset_info("ann/pick").sha
    status, _ = raw(module_hub, "POST /api/datasets/ann/pick/commit/main", line)
    assert status == 400
    assert owner.dataset_info("ann/pick").sha == before


@pytest.mark.parametrize(
    "name", ["../x", "ann/../x", "/x", "ann/.hidden", "a/b/c", "ann/a b", "ann/x.git", "é/x"]
)
def test_no_repository_has_a_bad_name(module_hub: LocalHub, owner: HfApi, name: str) -> None:
    body = json.dumps({"name": name, "type": "dataset"}).encode()
    status, _ = raw(module_hub, "POST /api/repos/create", body)
    assert status == 400
    assert [info.id for info in owner.list_datasets()] == ["ann/pick"]


COMMIT = "POST /api/datasets/ann/pick/commit/main"
YAML = "POST /api/validate-yaml"
PREUPLOAD = "POST /api/datasets/ann/pick/preupload/main"
LFS = "POST /datasets/ann/pick.git/info/lfs/objects/batch"
SHA_OF_X = hashlib.sha256(b"x").hexdigest().encode()


@pytest.mark.parametrize(
    ("address", "body"),
    [
        (COMMIT, b""),
        (COMMIT, b"junk"),
        (COMMIT, b'{"key":' + b"[" * 100_000),
        (COMMIT, b'{"key": "header", "value": {"summary": "\\ud800"}}'),
        (COMMIT, b'{"key": "file", "value": {"path": "a", "content": 3}}'),
        (PREUPLOAD, b'{"files": ["a"]}'),
        (COMMIT, b'{"key": "lfsFile", "value": {"path": "a", "oid": "' + SHA_OF_X + b'", "size": true}}'),
        ("POST /api/repos/create", b'{"name": "ann/\\ud800"}'),
        (COMMIT, b'{"key": "header", "value": {"summary": "\xed\xa0\x80"}}'),
        (COMMIT, '{"key": "header", "value": {"summary": "\\ud800"}}'.encode("utf-16")),
        (LFS, b'{"objects": [{"oid": "' + SHA_OF_X + b'", "size": true}]}'),
        (LFS, b'{"objects": [{"oid": "' + SHA_OF_X + b'", "size": 1.0}]}'),
        (PREUPLOAD, b'{"files": [{"path": "a", "size": true, "sample": ""}]}'),
        ("POST /api/repos/create", b'{"name": "ann/x", "type": ["dataset"]}'),
        ("PUT /api/datasets/ann/pick/settings", b'{"gated": []}'),
        (YAML, b'{"content": "---\\n' + b"- " * 50_000 + b'\\n---"}'),
        (YAML, b'{"content": "---\\na: !!python/object/apply:os.system [ls]\\n---"}'),
        ("GET /api/datasets?cursor=W10=", b""),
        ("GET /api/datasets?cursor=" + "W1tb" * 10_000, b""),  # [[[...
        ("PUT /lfs/" + "0" * 64 + "?size=1&signature=%C3%A9", b"x"),
        ("GET /api/datasets?limit=-1", b""),
        ("GET /datasets/ann/pick/resolve/main/", b""),
    ],
)
def test_nonsense_is_refused(module_hub: LocalHub, owner: HfApi, address: str, body: bytes) -> None:
    before = owner.dataset_info("ann/pick").sha
    status, _ = raw(module_hub, address, body)
    assert 400 <= status < 500
    assert owner.dataset_info("ann/pick").sha == before


@pytest.mark.parametrize(
    "value",
    ['"\\uD800"', "0x" + "f" * 5000, '!!int ""', "!!bool x", "!!timestamp x", "? {a: b}\n: c", "!\ud800 x"],
)
def test_a_card_that_cannot_be_sent_is_no_card(module_hub: LocalHub, owner: HfApi, value: str) -> None:
    card = f"---\nlicense: {value}\n---\n"
    status, _ = raw(module_hub, YAML, json.dumps({"content": card}).encode())
    assert status == 400
    content = base64.b64encode(card.encode(errors="surrogatepass")).decode()
    line = {"key": "file", "value": {"path": "README.md", "content": content, "encoding": "base64"}}
    assert raw(module_hub, COMMIT, json.dumps(line).encode())[0] == 200
    assert [info.id for info in owner.list_datasets(full=True)] == ["ann/pick"]


@pytest.mark.parametrize("name", ["..", "a..b", "refs/heads/x", "a b", "-x", "f" * 40, "x.lock", "a\nb", ""])
def test_no_tag_has_a_bad_name(owner: HfApi, name: str) -> None:
    with pytest.raises(BadRequestError):
        owner.create_tag("ann/pick", tag=name, repo_type="dataset")
