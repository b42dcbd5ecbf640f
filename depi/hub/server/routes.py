"""The HTTP routes of the embedded Hub that read: listings, repository info, trees, files, refs.

They answer as huggingface_hub 1.x expects: statuses, `X-Error-Code`, ETag and commit headers, Link pages.
Files are never announced as Xet, so clients fetch them by plain HTTP.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from depi.hub.names import RequestError
from depi.hub.server.access import (
    OWNER,
    Access,
    Caller,
    missing_repo,
    require_content,
    require_read,
    require_write,
)
from depi.hub.server.answers import (
    add_last_commits,
    choose,
    describe,
    describe_file,
    describe_folder,
    link,
    list_repos,
    page_limit,
    read_cursor,
    tree_entries,
    with_parents,
)
from depi.hub.server.bodies import MAX_ANONYMOUS_BODY, MAX_BODY, flag, parse_object, read_body
from depi.hub.server.folder import Store
from depi.hub.server.repos import Repo


def param(request: Request, name: str) -> str:
    """Return a path parameter; the router matches addresses as they were sent, still encoded."""
    return unquote(request.path_params[name])


def caller_of(request: Request) -> Caller:
    """Return who sent the request."""
    access: Access = request.app.state.access
    return access.identify(request.headers.get("authorization"))


def repo_of(request: Request) -> Repo | None:
    """Return the repository that the address names, without a check of access."""
    store: Store = request.app.state.store
    repo_type = request.path_params["kind"].removesuffix("s") if "kind" in request.path_params else "model"
    return store.find(repo_type, f"{param(request, 'owner')}/{param(request, 'name')}")


def whoami(request: Request) -> Response:
    """GET /api/whoami-v2."""
    caller = caller_of(request)
    if caller.user is None:
        raise RequestError(401, "Invalid username or password.")
    role = "write" if caller.can_write else "read"
    token = {"type": "access_token", "accessToken": {"displayName": f"{role} token", "role": role}}
    user = {"type": "user", "id": caller.user, "name": caller.user, "fullname": caller.user, "isPro": False}
    return JSONResponse({**user, "orgs": [], "auth": token})


def listing(request: Request) -> Response:
    """GET /api/datasets, /api/models."""
    caller = caller_of(request)
    store: Store = request.app.state.store
    repos = store.repos(request.path_params["kind"].removesuffix("s"))
    visible = (repo for repo in repos if caller.user or not repo.settings.private)
    return list_repos(visible, request, request.app.state.page_size)


def info(request: Request) -> Response:
    """GET /api/datasets/<id>, optionally at a revision, with blobs or expand."""
    repo = require_read(repo_of(request), caller_of(request))
    revision = param(request, "revision") if "revision" in request.path_params else None
    blobs = flag(request.query_params.get("blobs"))
    described = describe(repo, repo.resolve(revision) if revision else None, blobs=blobs)
    expand = request.query_params.getlist("expand") or request.query_params.getlist("expand[]")
    return JSONResponse(choose(described, expand) if expand else described)


def tree(request: Request) -> Response:
    """GET .../tree/<revision>[/<folder>]: files and folders, in pages."""
    repo = require_read(repo_of(request), caller_of(request))
    commit = repo.resolve(param(request, "revision"))
    folder = unquote(request.path_params.get("path", "")).strip("/")
    entries = tree_entries(commit, folder, flag(request.query_params.get("recursive")))
    cursor = read_cursor(request, 1)
    if cursor:
        entries = [entry for entry in entries if entry["path"] > cursor[0]]
    limit = min(page_limit(request, request.app.state.page_size), request.app.state.page_size)
    page = entries[:limit]
    if flag(request.query_params.get("expand")):
        add_last_commits(repo, commit, page)
    more = [page[-1]["path"]] if len(entries) > limit else None
    return JSONResponse(page, headers=link(request, more))


def with_body(answer: Callable[[Request, bytes], Response]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that receives a small body, then calls `answer` in a thread, so that others do not wait.

    Callers without a token send smaller bodies, and share the few threads of `app.state.anonymous`.
    """

    async def endpoint(request: Request) -> Response:
        known = caller_of(request).user is not None
        body = await read_body(request, MAX_BODY if known else MAX_ANONYMOUS_BODY)
        limiter = None if known else request.app.state.anonymous
        return await to_thread.run_sync(answer, request, body, limiter=limiter)

    return endpoint


def with_json(
    answer: Callable[[Request, dict[str, Any]], Response],
) -> Callable[[Request], Awaitable[Response]]:
    """As `with_body`, for a body that must be a JSON object."""
    return with_body(lambda request, body: answer(request, parse_object(body)))


def paths_info(request: Request, content: bytes) -> Response:
    """POST .../paths-info/<revision>: those of the named paths that exist."""
    repo = require_read(repo_of(request), caller_of(request))
    commit = repo.resolve(param(request, "revision"))
    if "json" in request.headers.get("content-type", ""):
        body = parse_object(content)
        paths, expand = body.get("paths", []), str(body.get("expand", ""))
    else:
        form = parse_qs(content.decode("utf-8", "replace"))
        paths, expand = form.get("paths", []), form.get("expand", [""])[0]
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise RequestError(400, "paths must be a list of strings")
    folders = {parent for path in commit.files for parent in with_parents(path)} - commit.files.keys()
    wanted = dict.fromkeys(path.strip("/") for path in paths)
    found = [
        describe_file(path, commit.files[path]) if path in commit.files else describe_folder(commit, path)
        for path in wanted
        if path in commit.files or path in folders
    ]
    if flag(expand):
        add_last_commits(repo, commit, found)
    return JSONResponse(found)


def refs(request: Request) -> Response:
    """GET .../refs."""
    repo = require_read(repo_of(request), caller_of(request))
    return JSONResponse(
        {
            "branches": [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
                for name, sha in sorted(repo.branches.items())
            ],
            "tags": [
                {"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha}
                for name, sha in sorted(repo.tags.items())
            ],
            "converts": [],
            "pullRequests": [],
        }
    )


def commits(request: Request) -> Response:
    """GET .../commits/<revision>: the history, newest first."""
    repo = require_read(repo_of(request), caller_of(request))
    history = [
        {
            "id": commit.sha,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author}],
            "date": commit.date,
        }
        for commit in repo.history(repo.resolve(param(request, "revision")))
    ]
    return JSONResponse(history)


def resolve(request: Request) -> Response:
    """GET and HEAD of one file, whole or in ranges."""
    repo = require_content(repo_of(request), caller_of(request))
    commit = repo.resolve(param(request, "revision"))
    headers = {"X-Repo-Commit": commit.sha}
    path = param(request, "path")
    file = commit.files.get(path)
    if file is None:
        message = f"{path[:500]} does not exist on {commit.sha}"
        raise RequestError(404, message, "EntryNotFound", headers)
    headers |= {"ETag": f'"{file.etag}"', "Content-Disposition": f"inline; filename*=UTF-8''{quote(path)}"}
    if file.lfs:
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    store: Store = request.app.state.store
    return FileResponse(store.blobs.path(file.sha256), headers=headers, media_type="application/octet-stream")


def auth_check(request: Request) -> Response:
    """GET .../auth-check[/write]: may the caller read the files, or write?"""
    caller = caller_of(request)
    require_content(repo_of(request), caller)
    if request.path_params.get("right") == "write":
        require_write(caller)
    return JSONResponse({"ok": True})


def no_xet(request: Request) -> Response:
    """GET .../xet-read-token, xet-write-token: there is no Xet storage here."""
    message = "This Hub has no Xet storage: set HF_HUB_DISABLE_XET=1 to upload by plain HTTP"
    raise RequestError(404, message)


def no_namespace(request: Request) -> Response:
    """Refuse names without a user: this Hub has no such repository."""
    raise missing_repo(caller_of(request))


def front_page(request: Request) -> Response:
    """GET /."""
    return JSONResponse({"hub": "DePi embedded Hub", "owner": OWNER})


KIND = "/api/{kind:kind}"
REPO = KIND + "/{owner}/{name}"
READ_ROUTES = [
    Route("/", front_page),
    Route("/api/whoami-v2", whoami),
    Route(KIND, listing),
    Route(REPO, info),
    Route(REPO + "/revision/{revision}", info),
    Route(REPO + "/tree/{revision}", tree),
    Route(REPO + "/tree/{revision}/{path:path}", tree),
    Route(REPO + "/paths-info/{revision}", with_body(paths_info), methods=["POST"]),
    Route(REPO + "/refs", refs),
    Route(REPO + "/commits/{revision}", commits),
    Route(REPO + "/auth-check", auth_check),
    Route(REPO + "/auth-check/{right}", auth_check),
    Route(REPO + "/xet-read-token/{revision}", no_xet),
    Route(REPO + "/xet-write-token/{revision}", no_xet),
    Route("/{kind:kind}/{owner}/{name}/resolve/{revision}/{path:path}", resolve),
    Route("/{owner}/{name}/resolve/{revision}/{path:path}", resolve),
    Route(KIND + "/{name}", no_namespace),
    Route(KIND + "/{name}/{rest:path}", no_namespace),
    Route("/{name}/resolve/{revision}/{path:path}", no_namespace),
]
