"""The page of `depi annotate review`, served to one person on this machine, and what it saves.

Other users of this machine, and pages of other sites in the same browser, can send requests to its ports. So
a request must name the server as its host (see depi/serving.py) and carry the token of this session (in the
address of the page, in a header of what is saved), and what is saved must come from the page itself.
"""

import json
import logging
import secrets
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from depi.errors import DatasetError, UserError

logger = logging.getLogger(__name__)

MAX_BODY = 16_384
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}

Page = Callable[[], str]
"""The page as it is now."""
Save = Callable[[dict[str, Any]], dict[str, Any]]
"""Saves a decision; returns the episode's row as the page shows it."""


class RefusedError(Exception):
    """A request that is refused."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


def build_app(token: str, page: Page, save: Save) -> Starlette:
    """Return the application: `GET /?token=...` is the page, `POST /review` saves.

    Args:
        token: of the session.
        page: renders it.
        save: is called in a thread, for several requests at a time. What it raises as UserError or
            DatasetError is shown on the page.
    """

    def check(given: str | None) -> None:
        if not secrets.compare_digest((given or "").encode(), token.encode()):
            raise RefusedError(403, "the token is missing or of another session: open the printed address")

    async def show(request: Request) -> Response:
        check(request.query_params.get("token"))
        return HTMLResponse(await run_in_threadpool(page), headers=_HEADERS)

    async def review(request: Request) -> Response:
        check(request.headers.get("x-review-token"))
        if request.headers.get("origin") != f"http://{request.headers['host']}":
            raise RefusedError(403, "the request comes from another page")
        decision = await _body(request)
        return JSONResponse({"row": await run_in_threadpool(save, decision)}, headers=_HEADERS)

    return Starlette(
        routes=[Route("/", show), Route("/review", review, methods=["POST"])],
        exception_handlers={
            RefusedError: _refuse,
            UserError: _explain,
            DatasetError: _explain,
            OSError: _disk_failed,
            ClientDisconnect: lambda request, error: Response(status_code=400),
        },
    )


async def _body(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RefusedError(415, "a decision is sent as application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise RefusedError(413, f"a decision has at most {MAX_BODY} bytes")
    try:
        decision = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "this is no JSON") from None
    if not isinstance(decision, dict):
        raise RefusedError(400, "a decision is a JSON object")
    return decision


def _answer(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status, headers=_HEADERS)


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _answer(error.status, error.message)


def _explain(request: Request, error: Exception) -> Response:
    return _answer(409, str(error))


def _disk_failed(request: Request, error: Exception) -> Response:
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return _answer(507, f"the disk failed: {getattr(error, 'strerror', error)}")
