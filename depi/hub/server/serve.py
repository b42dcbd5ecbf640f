"""An embedded Hub over HTTP, for tests, for the demo, and for clusters without a network.

The unmodified huggingface_hub client talks to it through HF_ENDPOINT, and so does everything built on it.
"""

import asyncio
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from depi.errors import UserError
from depi.flags import parse_flags
from depi.hub.names import RequestError
from depi.hub.server.access import OWNER, Access
from depi.hub.server.folder import Store
from depi.hub.server.routes import READ_ROUTES
from depi.hub.server.tokenizer import TOKENIZER_REPO, write_tokenizer
from depi.hub.server.writes import WRITE_ROUTES
from depi.serving import listen, make_server, own_names, serving, stop_on_signals

logger = logging.getLogger(__name__)

PAGE_SIZE = 1000

# Called before each request; a response that it returns is sent instead of the real answer.
Faults = Callable[[Request], Response | None]


@dataclass(frozen=True)
class LocalHub:
    """A running embedded Hub."""

    endpoint: str
    write_token: str
    read_token: str
    root: Path

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Return the environment variables for other processes, by default with the write token."""
        host = self.endpoint.partition("://")[2].rpartition(":")[0]
        direct = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), host]
        no_proxy = ",".join(filter(None, direct))
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.write_token if token is None else token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }


class _Faulty:
    """Adds `latency`, lets `faults` answer first, and passes the address on as sent, percent-encoded."""

    def __init__(self, app: ASGIApp, faults: Faults | None, latency: float):
        self._app = app
        self._faults = faults
        self._latency = latency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("ascii", "replace")}
            if self._latency:
                await asyncio.sleep(self._latency)
            if self._faults is not None:
                answer = await run_in_threadpool(self._faults, Request(scope))
                if answer is not None:
                    return await answer(scope, receive, send)
        return await self._app(scope, receive, send)


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    text = "".join(character if " " <= character <= "~" else "?" for character in error.message).strip()
    headers = {**error.headers, "X-Error-Message": text}
    if error.code:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": error.message}, status_code=error.status, headers=headers)


def _disk_failed(request: Request, error: Exception) -> Response:
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"error": f"The Hub's disk failed: {error}"}, status_code=507)


def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the client has gone


def build_app(
    store: Store,
    access: Access,
    *,
    page_size: int = PAGE_SIZE,
    faults: Faults | None = None,
    latency: float = 0.0,
) -> ASGIApp:
    """Return the ASGI application that serves `store`."""
    app = Starlette(
        routes=[*WRITE_ROUTES, *READ_ROUTES],
        exception_handlers={RequestError: _refuse, OSError: _disk_failed, ClientDisconnect: _gone},
    )
    app.state.store = store
    app.state.access = access
    app.state.page_size = page_size
    app.state.anonymous = CapacityLimiter(2)
    return _Faulty(app, faults, latency)


def _open_store(root: Path) -> tuple[Store, Access]:
    """Open the folder; a new one gets tokens and the tokenizer that training asks a Hub for."""
    store = Store(root)
    try:
        is_new = not (store.root / "tokens.json").exists()
        if is_new and store.find("model", TOKENIZER_REPO) is None:
            with tempfile.TemporaryDirectory() as folder:
                write_tokenizer(Path(folder))
                repo = store.create("model", TOKENIZER_REPO, OWNER)
                store.commit_folder(repo, Path(folder), "Add the tokenizer", OWNER)
        return store, Access.load(store.root)
    except OSError as error:
        store.close()
        raise UserError(f"the Hub's folder {root} cannot be written: {error.strerror}") from None
    except BaseException:
        store.close()
        raise


def _endpoint(host: str, sock: socket.socket) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{reachable}:{sock.getsockname()[1]}"


@contextmanager
def _prepare(
    root: Path,
    host: str,
    port: int,
    page_size: int = PAGE_SIZE,
    faults: Faults | None = None,
    latency: float = 0.0,
    allowed_hosts: Sequence[str] = (),
) -> Iterator[tuple[LocalHub, uvicorn.Server, socket.socket]]:
    sock = listen(host, port, "the Hub")
    try:
        store, access = _open_store(root)
        try:
            app = build_app(store, access, page_size=page_size, faults=faults, latency=latency)
            hub = LocalHub(_endpoint(host, sock), access.write_token, access.read_token, store.root)
            yield hub, make_server(app, [*own_names(host, sock), *allowed_hosts]), sock
        finally:
            store.close()
    finally:
        sock.close()


@contextmanager
def serve(
    root: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    page_size: int = PAGE_SIZE,
    faults: Faults | None = None,
    latency: float = 0.0,
    allowed_hosts: Sequence[str] = (),
) -> Iterator[LocalHub]:
    """Serve the folder `root` from a thread of this process for the length of a `with` block.

    Port 0 takes any free one. A new folder is seeded with the tokenizer. `page_size` bounds the pages of
    listings and trees. `faults` may answer any request instead of the Hub, and each answer is delayed by
    `latency` seconds, to test clients. It answers to the names of this machine and to `allowed_hosts`.

    Raises:
        UserError: the port is taken, or the folder cannot be written or is served already.
    """
    with (
        _prepare(root, host, port, page_size, faults, latency, allowed_hosts) as (hub, server, sock),
        serving(server, sock, "embedded-hub"),
    ):
        yield hub


@dataclass(frozen=True)
class HubConfig:
    """Serve an embedded Hub: `depi hub serve --root DIR`.

    Programs on this machine find it through the variables that the command prints. `--host 0.0.0.0` opens
    it to the network, unencrypted: do so on a trusted one only. It answers to the names and addresses of this
    machine; others, as of a proxy in front of it, are named by `--allowed_hosts`.
    """

    action: str = "serve"
    root: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8090
    # More names that clients may call it by, without ports: '["hub.lab.org"]'.
    allowed_hosts: list[str] = field(default_factory=list)


def main(args: list[str]) -> int:
    """Run `depi hub serve` until SIGINT or SIGTERM."""
    config = parse_flags(HubConfig, args, "depi hub", ["action"])
    if config.action != "serve":
        raise UserError(f"depi hub has no action {config.action!r}: use `depi hub serve --root DIR`")
    if config.root is None:
        raise UserError("the Hub needs a folder: add --root DIR")
    allowed = config.allowed_hosts
    with _prepare(config.root, config.host, config.port, allowed_hosts=allowed) as (hub, server, sock):
        stop_on_signals(server)
        print(_greeting(hub), flush=True)
        server.run([sock])
    print("Hub stopped.")
    return 0


def _greeting(hub: LocalHub) -> str:
    return "\n".join(
        [
            f"Hub at {hub.endpoint}, files in {hub.root}",
            f"  write token  {hub.write_token}",
            f"  read token   {hub.read_token}",
            "In the shell of the programs that use it:",
            f"  export HF_ENDPOINT={hub.endpoint}",
            f"  export HF_TOKEN={hub.write_token}",
            "  export HF_HUB_DISABLE_XET=1",
            "Press Ctrl-C to stop.",
        ]
    )
