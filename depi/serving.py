"""HTTP servers on this machine: open a socket, serve an application, and shut down."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from depi.errors import UserError


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


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server of `app` that logs no requests and shuts down within seconds."""
    config = uvicorn.Config(
        app,
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
