"""The JSON in which a Hub describes repositories, and how it cuts long lists into pages."""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse

from depi.hub.names import RequestError
from depi.hub.server.blobs import StoredFile, lfs_pointer
from depi.hub.server.bodies import flag
from depi.hub.server.repos import Commit, Repo

# What a listing shows of each repository unless asked for more (full, cardData) or for a choice (expand).
_LISTED = ("author", "sha", "lastModified", "createdAt", "private", "gated", "disabled", "downloads", "likes")
_SORTS = {"lastModified", "createdAt", "downloads", "likes", "trendingScore", "id"}


def describe(repo: Repo, commit: Commit | None = None, *, blobs: bool = False) -> dict[str, Any]:
    """Return everything known of a repository, at a commit or at the head of its default branch."""
    if commit is None:
        sha, date, card, tags = repo.head()
        commit = repo.commit(sha)
    else:
        _, date, _, tags = repo.head()
        card = repo.card(commit)
    return {
        **_summary(repo, date, tags, card),
        "sha": commit.sha,
        "cardData": card,
        "siblings": [_sibling(path, file, blobs) for path, file in commit.files.items()],
        "usedStorage": sum(file.size for file in commit.files.values()),
    }


def _summary(repo: Repo, date: str, tags: list[str], card: dict[str, Any]) -> dict[str, Any]:
    text = {key: value if isinstance(value := card.get(key), str) else None for key in _MODEL_FIELDS}
    return {
        "_id": hashlib.sha1(f"{repo.repo_type}/{repo.id}".encode(), usedforsecurity=False).hexdigest()[:24],
        "id": repo.id,
        "author": repo.author,
        "lastModified": date,
        "createdAt": repo.settings.created_at,
        "private": repo.settings.private,
        "gated": repo.settings.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "trendingScore": 0,
        "tags": tags,
        **({"modelId": repo.id, **text} if repo.repo_type == "model" else {}),
    }


_MODEL_FIELDS = ("pipeline_tag", "library_name")


def _sibling(path: str, file: StoredFile, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    described = {"rfilename": path, "size": file.size, "blobId": file.git_oid}
    if file.lfs:
        pointer_size = len(lfs_pointer(file.sha256, file.size))
        described["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": pointer_size}
    return described


def choose(described: dict[str, Any], expand: Sequence[str]) -> dict[str, Any]:
    """Keep the properties named by `expand`, and what identifies the repository."""
    kept = {"_id", "id", "modelId", *expand}
    return {key: value for key, value in described.items() if key in kept}


def list_repos(repos: Iterable[Repo], request: Request, page_size: int) -> JSONResponse:
    """Answer a listing: filtered by tags, search, author and gate, sorted, one page of it."""
    query = request.query_params
    found = [(repo, repo.head()) for repo in repos if _wanted(repo, request)]
    sort = query.get("sort") or "lastModified"
    if sort not in _SORTS:
        raise RequestError(400, f"Invalid sort: {sort[:100]}")
    keys = {repo.id: _sort_key(sort, repo, head[1]) for repo, head in found}
    descending = sort != "id" and query.get("direction", "-1") != "1"
    found.sort(key=lambda item: (keys[item[0].id], item[0].id), reverse=descending)

    limit = min(page_limit(request, page_size), page_size)
    cursor = read_cursor(request, 2)
    if cursor:
        found = [
            item
            for item in found
            if ([keys[item[0].id], item[0].id] < cursor) == descending
            and [keys[item[0].id], item[0].id] != cursor
        ]
    page, rest = found[:limit], found[limit:]
    last = [keys[page[-1][0].id], page[-1][0].id] if page and rest else None
    return JSONResponse([_listed(repo, head, request) for repo, head in page], headers=link(request, last))


def _wanted(repo: Repo, request: Request) -> bool:
    query = request.query_params
    author, gated = query.get("author"), query.get("gated")
    if author and repo.author != author:
        return False
    if gated and bool(repo.settings.gated) != (gated.lower() == "true"):
        return False
    if any(word.lower() not in repo.id.lower() for word in query.getlist("search")):
        return False
    wanted = [tag for value in query.getlist("filter") for tag in value.split(",")]
    return not wanted or set(wanted) <= set(repo.head()[3])


def _sort_key(sort: str, repo: Repo, date: str) -> str:
    return {"lastModified": date, "createdAt": repo.settings.created_at}.get(sort, "")


def _listed(repo: Repo, head: tuple[str, str, dict[str, Any], list[str]], request: Request) -> dict[str, Any]:
    query = request.query_params
    expand = query.getlist("expand") or query.getlist("expand[]")
    if expand and not {*expand} <= {*_LISTED, "tags"}:
        return choose(describe(repo), expand)
    if flag(query.get("full")):
        return describe(repo)
    sha, date, card, tags = head
    listed = {**_summary(repo, date, tags, card), "sha": sha}
    if expand:
        return choose(listed, expand)
    return {**listed, "cardData": card} if flag(query.get("cardData")) else listed


def page_limit(request: Request, default: int) -> int:
    """Return the `limit` of a request, at least 1."""
    value = request.query_params.get("limit", str(default))
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise RequestError(400, f"Invalid limit: {value[:100]}")
    return max(1, int(value))


def read_cursor(request: Request, length: int) -> list[str] | None:
    """Return where the last page ended, as `link` wrote it."""
    cursor = request.query_params.get("cursor")
    if cursor is None:
        return None
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or len(values) != length or not all(isinstance(v, str) for v in values):
        raise RequestError(400, "Invalid cursor")
    return values


def link(request: Request, last: list[str] | None) -> dict[str, str]:
    """Return the Link header to the page after `last`, or no header."""
    if last is None:
        return {}
    cursor = base64.urlsafe_b64encode(json.dumps(last).encode()).decode()
    kept = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
    base = str(request.base_url).rstrip("/")
    address = f"{base}{request.scope['path']}?{urlencode([*kept, ('cursor', cursor)])}"
    return {"Link": f'<{address}>; rel="next"'}


def tree_entries(commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Return the files and folders below `folder` ("" is the top), sorted by path.

    Raises:
        RequestError: there is no such folder.
    """
    prefix = f"{folder}/" if folder else ""
    inside = {path: file for path, file in commit.files.items() if path.startswith(prefix)}
    if folder and not inside:
        raise RequestError(404, f"{folder} does not exist on {commit.sha}", "EntryNotFound")
    entries = {}
    for path, file in inside.items():
        steps = path.removeprefix(prefix).split("/")
        for depth in range(1, len(steps) if recursive else min(len(steps), 2)):
            parent = prefix + "/".join(steps[:depth])
            entries[parent] = describe_folder(commit, parent)
        if recursive or len(steps) == 1:
            entries[path] = describe_file(path, file)
    return [entries[path] for path in sorted(entries)]


def describe_folder(commit: Commit, path: str) -> dict[str, Any]:
    """Return a folder as trees show it."""
    oid = hashlib.sha1(f"{commit.sha}/{path}".encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def describe_file(path: str, file: StoredFile) -> dict[str, Any]:
    """Return a file as trees show it."""
    entry: dict[str, Any] = {"type": "file", "oid": file.git_oid, "size": file.size, "path": path}
    if file.lfs:
        pointer_size = len(lfs_pointer(file.sha256, file.size))
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": pointer_size}
    return entry


def add_last_commits(repo: Repo, commit: Commit, entries: list[dict[str, Any]]) -> None:
    """Add to each entry the newest commit that changed it."""
    waiting = {entry["path"]: entry for entry in entries}
    for step in repo.history(commit):
        before = repo.commit(step.parent).files if step.parent else {}
        changed = [path for path in {**before, **step.files} if before.get(path) != step.files.get(path)]
        touched = {ancestor for path in changed for ancestor in with_parents(path)}
        for path in touched & waiting.keys():
            waiting.pop(path)["lastCommit"] = {"id": step.sha, "title": step.title, "date": step.date}
        if not waiting:
            return


def with_parents(path: str) -> list[str]:
    """Return a path and the folders above it."""
    steps = path.split("/")
    return ["/".join(steps[:depth]) for depth in range(1, len(steps) + 1)]
