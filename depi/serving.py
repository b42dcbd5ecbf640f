"""HTTP servers on this machine: open a socket, serve an application, and shut down.

What every server refuses is decided here: a Host header with a name that is not its own (a foreign web page
can let its name stand for this machine, and then read what a server here answers: "DNS rebinding"), and
clients that connect and then send nothing.
"""

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import h11
import psutil
import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from depi.errors import UserError

PATIENCE = 30
"""Seconds for a client to send a request's head, or `LEAST_PART` more of its body."""
LEAST_PART = 15_000
"""Bytes: 500 a second, as Apache's mod_reqtimeout asks for by default."""


def listen(host: str, port: int, what: str) -> socket.socket:
    """Return a listening socket; port 0 takes any free one.

    Raises:
        UserError: the port is not valid or taken, or the host is unknown; `what` names the server.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"{port} is not a port: choose one from 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.create_server((host, port), family=family, backlog=512)
        # Connections inherit it; without it each answer waits 40 ms for the client's acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except OSError as error:
        raise UserError(f"{what} cannot listen on {host}:{port}: {error.strerror}") from None


def own_names(host: str, sock: socket.socket) -> list[str]:
    """The names under which clients reach a server that was told to listen on `host`."""
    bound = sock.getsockname()[0]
    names = {host, bound}
    if bound in ("0.0.0.0", "::"):
        names |= {socket.gethostname(), socket.getfqdn(), "localhost"}
        names |= {each.address for card in psutil.net_if_addrs().values() for each in card}
    elif bound in ("127.0.0.1", "::1"):
        names.add("localhost")
    return sorted(f"[{name.partition('%')[0]}]" if ":" in name else name for name in names)


class _ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP, which also ends connections whose client does not send its request.

    uvicorn 0.54 bounds only the time between an answer and the first byte of the next request.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._received = 0
        self._await_progress()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)

    def _await_progress(self) -> None:
        self._before = (self.cycle, self._received)
        self._watch = self.loop.call_later(PATIENCE, self._look)

    def _look(self) -> None:
        cycle, received = self._before
        awaits_head = self.conn.their_state is h11.IDLE
        awaits_body = self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused
        stalled = awaits_head or (awaits_body and self._received - received < LEAST_PART)
        if stalled and self.cycle is cycle:
            self.transport.abort()
        else:
            self._await_progress()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)


def make_server(app: ASGIApp, hosts: Sequence[str]) -> uvicorn.Server:
    """Return a server of `app` that logs no requests and shuts down within seconds.

    Args:
        app: to be served.
        hosts: the names, without ports, that it answers to; others get status 400. `*.example.com` is any
            name below example.com, `*` any name at all.

    Raises:
        UserError: a name has a `*` elsewhere.
    """
    for host in hosts:
        if host != "*" and "*" in host.removeprefix("*."):
            raise UserError(
                f"{host} is no name of a host: `*` can only stand alone or in front, as in *.lab.org"
            )
    config = uvicorn.Config(
        TrustedHostMiddleware(app, hosts, www_redirect=False),
        http=_ImpatientProtocol,
        headers=[("X-Content-Type-Options", "nosniff")],
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


@contextmanager
def serving(server: uvicorn.Server, sock: socket.socket, name: str) -> Iterator[None]:
    """Run the server in a thread of this process for the length of a `with` block."""
    thread = threading.Thread(target=server.run, args=([sock],), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def stop_on_signals(server: uvicorn.Server) -> None:
    """Let SIGINT and SIGTERM end `server.run` in this, the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn installs its own handlers, and once it has stopped raises the signal again for ours.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
