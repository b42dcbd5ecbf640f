"""The HTTP routes of the embedded Hub that change something: repositories, refs, uploads.

An upload is three steps, as with the real Hub: `preupload` says which files are large, LFS receives those,
`commit` names all files at once. Small files travel inside the commit, one JSON line each.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from depi.hub.names import SHA256, RequestError, check_path
from depi.hub.server.access import (
    Access,
    ask_access,
    decide_access,
    missing_repo,
    require_read,
    require_write,
)
from depi.hub.server.blobs import MAX_REGULAR_SIZE, BlobWriter, StoredFile, is_lfs
from depi.hub.server.bodies import flag, is_size, parse_object, read_lines
from depi.hub.server.cards import parse_card
from depi.hub.server.folder import REPO_TYPES, Store
from depi.hub.server.repos import DEFAULT_BRANCH, Repo
from depi.hub.server.routes import REPO, caller_of, param, repo_of, with_json

MAX_LINE = 2 * MAX_REGULAR_SIZE
WRITE_SIZE = 1024 * 1024

Files = dict[str, StoredFile]


def writable_repo(request: Request) -> tuple[Repo, str]:
    """Return the repository that the address names and the user's name, for callers who may write."""
    caller = caller_of(request)
    repo = require_read(repo_of(request), caller)
    return repo, require_write(caller)


def create(request: Request, body: dict[str, Any]) -> Response:
    """POST /api/repos/create."""
    user = require_write(caller_of(request))
    repo_type, repo_id = _named(body, user)
    private = body.get("private") is True or body.get("visibility") == "private"
    store: Store = request.app.state.store
    address = f"{str(request.base_url).rstrip('/')}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    try:
        store.create(repo_type, repo_id, user, private=private)
    except RequestError as error:
        if error.status != 409:
            raise
        said = {"X-Error-Message": error.message}
        return JSONResponse({"error": error.message, "url": address}, status_code=409, headers=said)
    return JSONResponse({"url": address, "name": repo_id, "id": repo_id})


def _named(body: dict[str, Any], user: str) -> tuple[str, str]:
    name, owner, repo_type = body.get("name"), body.get("organization") or user, body.get("type") or "model"
    if not isinstance(name, str) or not isinstance(owner, str):
        raise RequestError(400, "name and organization must be strings")
    if repo_type not in REPO_TYPES:
        raise RequestError(400, f"This Hub holds {' and '.join(REPO_TYPES)} repositories only")
    return repo_type, name if "/" in name else f"{owner}/{name}"


def delete(request: Request, body: dict[str, Any]) -> Response:
    """DELETE /api/repos/delete."""
    caller = caller_of(request)
    user = require_write(caller)
    store: Store = request.app.state.store
    repo = store.find(*_named(body, user))
    if repo is None:
        raise missing_repo(caller)
    store.delete(repo)
    return JSONResponse({"ok": True})


def settings(request: Request, body: dict[str, Any]) -> Response:
    """PUT .../settings: visibility and gate."""
    repo, _ = writable_repo(request)
    changes: dict[str, Any] = {}
    if "private" in body or "visibility" in body:
        changes["private"] = body.get("private") is True or body.get("visibility") == "private"
    if "gated" in body:
        if body["gated"] not in ("auto", "manual", False):
            raise RequestError(400, "gated must be auto, manual or false")
        changes["gated"] = body["gated"]
    repo.change_settings(**changes)
    return JSONResponse({"private": repo.settings.private, "gated": repo.settings.gated})


def ask(request: Request) -> Response:
    """POST /<repo>/ask-access: the form on a gated repository's page."""
    caller = caller_of(request)
    ask_access(require_read(repo_of(request), caller), caller)
    return JSONResponse({"ok": True})


def decide(request: Request, body: dict[str, Any]) -> Response:
    """POST .../user-access-request/grant and /handle."""
    repo, _ = writable_repo(request)
    if not isinstance(body.get("user"), str):
        raise RequestError(400, "user must be a string")
    accepted = param(request, "action") == "grant" or body.get("status") == "accepted"
    decide_access(repo, body["user"], accepted)
    return JSONResponse({"ok": True})


def create_tag(request: Request, body: dict[str, Any]) -> Response:
    """POST .../tag/<revision>."""
    repo, _ = writable_repo(request)
    name = body.get("tag")
    if not isinstance(name, str):
        raise RequestError(400, "tag must be a string")
    repo.set_tag(name, repo.resolve(param(request, "revision")).sha)
    return JSONResponse({"ok": True})


def delete_tag(request: Request) -> Response:
    """DELETE .../tag/<tag>."""
    repo, _ = writable_repo(request)
    repo.set_tag(param(request, "revision"), None)
    return JSONResponse({"ok": True})


def create_branch(request: Request, body: dict[str, Any]) -> Response:
    """POST .../branch/<branch>."""
    repo, _ = writable_repo(request)
    start = body.get("startingPoint")
    if start is not None and not isinstance(start, str):
        raise RequestError(400, "startingPoint must be a string")
    repo.set_branch(param(request, "branch"), repo.resolve(start).sha)
    return JSONResponse({"ok": True})


def delete_branch(request: Request) -> Response:
    """DELETE .../branch/<branch>."""
    repo, _ = writable_repo(request)
    if param(request, "branch") == DEFAULT_BRANCH:
        raise RequestError(403, f"The branch {DEFAULT_BRANCH} cannot be deleted")
    repo.set_branch(param(request, "branch"), None)
    return JSONResponse({"ok": True})


def validate_yaml(request: Request, body: dict[str, Any]) -> Response:
    """POST /api/validate-yaml: clients ask before they upload a card."""
    content = body.get("content")
    try:
        parse_card(content if isinstance(content, str) else "")
    except ValueError as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, status_code=400)
    return JSONResponse({"errors": [], "warnings": []})


def preupload(request: Request, body: dict[str, Any]) -> Response:
    """POST .../preupload/<revision>: which files are large, and which are there already."""
    repo, _ = writable_repo(request)
    commit = repo.resolve(param(request, "revision"))
    store: Store = request.app.state.store
    attributes: list[str] = []
    if ".gitattributes" in commit.files:
        content = store.blobs.path(commit.files[".gitattributes"].sha256)
        attributes = content.read_text(encoding="utf-8", errors="replace").splitlines()
    answers = []
    files = body.get("files")
    for file in files if isinstance(files, list) else []:
        path, size, sample = _announced(file)
        known = commit.files.get(path)
        lfs = is_lfs(path, size, sample, attributes)
        answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        answers.append({**answer, "oid": known.etag} if known else answer)
    return JSONResponse({"files": answers})


def _announced(file: Any) -> tuple[str, int, bytes]:
    if not isinstance(file, dict):
        raise RequestError(400, "files must be a list of objects")
    size, sample = file.get("size"), file.get("sample", "")
    if not is_size(size) or not isinstance(sample, str):
        raise RequestError(400, "a file's size must be a number and its sample a string")
    return check_path(file.get("path")), size, _decode(sample)


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, "content must be base64") from None


def lfs_batch(request: Request, body: dict[str, Any]) -> Response:
    """POST <repo>.git/info/lfs/objects/batch: where to send large files that are not here yet."""
    writable_repo(request)
    store: Store = request.app.state.store
    access: Access = request.app.state.access
    base = str(request.base_url).rstrip("/")
    answers = []
    objects = body.get("objects")
    for item in objects if isinstance(objects, list) else []:
        oid, size = (item.get("oid"), item.get("size")) if isinstance(item, dict) else (None, None)
        if not isinstance(oid, str) or not SHA256.fullmatch(oid) or not is_size(size):
            raise RequestError(400, "an LFS object needs a sha256 oid and a size")
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if _stored_size(store, oid) != size:
            upload = f"{base}/lfs/{oid}?size={size}&signature={access.sign(f'{oid}:{size}')}"
            actions = {"upload": {"href": upload}, "verify": {"href": f"{base}/lfs/{oid}/verify"}}
            answer["actions"] = actions
        answers.append(answer)
    return JSONResponse({"transfer": "basic", "objects": answers, "hash_algo": "sha256"})


def _stored_size(store: Store, oid: str) -> int | None:
    path = store.blobs.path(oid)
    return path.stat().st_size if path.exists() else None


async def lfs_put(request: Request) -> Response:
    """PUT /lfs/<oid>: the content, to an address that only `lfs_batch` gives out."""
    oid, size = param(request, "oid"), request.query_params.get("size", "")
    access: Access = request.app.state.access
    if not access.is_signed(f"{oid}:{size}", request.query_params.get("signature", "")):
        raise RequestError(403, "This upload address is not valid")
    store: Store = request.app.state.store
    blob = await run_in_threadpool(BlobWriter, store.blobs)
    with blob:
        pending = bytearray()
        async for chunk in request.stream():
            pending += chunk
            if blob.size + len(pending) > int(size):
                raise RequestError(400, f"The content of {oid} is larger than {size} bytes")
            if len(pending) >= WRITE_SIZE:
                await run_in_threadpool(blob.write, bytes(pending))
                pending.clear()
        blob.write(bytes(pending))
        if blob.size != int(size) or blob.hexdigest() != oid:
            raise RequestError(400, f"The content received is not {oid}")
        await run_in_threadpool(blob.keep)
    return Response(status_code=200)


def lfs_verify(request: Request, body: dict[str, Any]) -> Response:
    """POST /lfs/<oid>/verify."""
    require_write(caller_of(request))
    if not SHA256.fullmatch(param(request, "oid")):
        raise RequestError(404, "There is no such LFS object")
    if _stored_size(request.app.state.store, param(request, "oid")) != body.get("size"):
        raise RequestError(404, "The LFS object has not been received")
    return JSONResponse({"ok": True})


async def commit(request: Request) -> Response:
    """POST .../commit/<branch>: a header line, then one line per file that changes."""
    repo, user = writable_repo(request)
    if flag(request.query_params.get("create_pr")):
        raise RequestError(400, "This Hub has no pull requests: commit to a branch")
    store: Store = request.app.state.store
    header: dict[str, Any] = {}
    steps: list[Callable[[Files], None]] = []
    async for line in read_lines(request, MAX_LINE):
        item = await run_in_threadpool(parse_object, line)
        value = item.get("value")
        if not isinstance(value, dict):
            raise RequestError(400, "each line of a commit needs a key and a value")
        if item.get("key") == "header":
            header = value
        else:
            steps.append(await run_in_threadpool(_step, store, item.get("key"), value))
    if not header and not steps:
        raise RequestError(400, "The commit is empty")
    made = await run_in_threadpool(
        repo.add_commit,
        param(request, "revision"),
        lambda files: _apply(files, steps),
        title=str(header.get("summary") or "Upload")[:500],
        message=str(header.get("description") or "")[:65536],
        author=user,
        parent=str(header["parentCommit"]) if header.get("parentCommit") else None,
    )
    prefix = "datasets/" if repo.repo_type == "dataset" else ""
    address = f"{str(request.base_url).rstrip('/')}/{prefix}{repo.id}/commit/{made.sha}"
    return JSONResponse({"success": True, "commitOid": made.sha, "commitUrl": address, "hookOutput": ""})


def _step(store: Store, key: object, value: dict[str, Any]) -> Callable[[Files], None]:
    """Turn one line of a commit into a change of its files; a small file's content is stored at once."""
    if key == "deletedFolder":
        return lambda files: _delete_folder(files, str(value.get("path")).strip("/"))
    path = check_path(value.get("path"))
    if key == "deletedFile":
        return lambda files: _delete_file(files, path)
    if key == "file":
        content = value.get("content")
        if not isinstance(content, str):
            raise RequestError(400, f"The file {path} has no content")
        is_base64 = value.get("encoding") == "base64"
        stored = store.blobs.put_bytes(_decode(content) if is_base64 else content.encode())
    elif key == "lfsFile":
        oid, size = value.get("oid"), value.get("size")
        if not isinstance(oid, str) or not SHA256.fullmatch(oid):
            raise RequestError(400, f"The LFS file {path} has no sha256 oid")
        if size is not None and not is_size(size):
            raise RequestError(400, f"The size of the LFS file {path} is not a number")
        stored = store.blobs.lfs_file(oid, size)
    else:
        raise RequestError(400, f"A commit has no lines of kind {key!r}")
    return lambda files: files.update({path: stored})


def _apply(files: Files, steps: list[Callable[[Files], None]]) -> None:
    for step in steps:
        step(files)
    for path in files:
        steps_down = path.split("/")
        for depth in range(1, len(steps_down)):
            if "/".join(steps_down[:depth]) in files:
                raise RequestError(400, f"{'/'.join(steps_down[:depth])} cannot be both a file and a folder")


def _delete_file(files: Files, path: str) -> None:
    if files.pop(path, None) is None:
        raise RequestError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")


def _delete_folder(files: Files, folder: str) -> None:
    inside = [path for path in files if path.startswith(f"{folder}/")]
    if not inside:
        raise RequestError(404, f"A file with this name doesn't exist: {folder[:500]}/", "EntryNotFound")
    for path in inside:
        del files[path]


_LFS = "/{owner}/{name}.git/info/lfs/objects/batch"
WRITE_ROUTES = [
    Route("/api/repos/create", with_json(create), methods=["POST"]),
    Route("/api/repos/delete", with_json(delete), methods=["DELETE"]),
    Route("/api/validate-yaml", with_json(validate_yaml), methods=["POST"]),
    Route(REPO + "/settings", with_json(settings), methods=["PUT"]),
    Route(REPO + "/user-access-request/{action}", with_json(decide), methods=["POST"]),
    Route(REPO + "/tag/{revision}", with_json(create_tag), methods=["POST"]),
    Route(REPO + "/tag/{revision}", delete_tag, methods=["DELETE"]),
    Route(REPO + "/branch/{branch}", with_json(create_branch), methods=["POST"]),
    Route(REPO + "/branch/{branch}", delete_branch, methods=["DELETE"]),
    Route(REPO + "/preupload/{revision}", with_json(preupload), methods=["POST"]),
    Route(REPO + "/commit/{revision}", commit, methods=["POST"]),
    Route("/lfs/{oid}", lfs_put, methods=["PUT"]),
    Route("/lfs/{oid}/verify", with_json(lfs_verify), methods=["POST"]),
    Route("/{kind:kind}" + _LFS, with_json(lfs_batch), methods=["POST"]),
    Route(_LFS, with_json(lfs_batch), methods=["POST"]),
    Route("/{kind:kind}/{owner}/{name}/ask-access", ask, methods=["POST"]),
    Route("/{owner}/{name}/ask-access", ask, methods=["POST"]),
]
