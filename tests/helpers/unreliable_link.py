"""A link to a server on this machine that can be slow, cut answers off, fall silent, or be down."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_CHUNK = 16_384


class UnreliableLink:
    """Passes what clients of `endpoint` send on to a server, and its answers back.

    Attributes may be changed at any time:
    delay: seconds before each piece of an answer.
    cuts: how many of the next answers are cut off, each after a random number of bytes.
    silent: answers are kept back as long as this is true.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        assert parts.hostname is not None
        self._server = parts.hostname, parts.port
        self._lock = threading.Lock()
        self._draw = random.Random(7)
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._port = 0
        self.delay, self.cuts, self.silent = 0.0, 0, False
        self.answers = 0
        self.up()

    @property
    def endpoint(self) -> str:
        """The address for clients."""
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        """Accept connections."""
        listener = socket.create_server(("127.0.0.1", self._port), backlog=128)
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and break off those that are open."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def go_down_for(self, seconds: float, *, after: int) -> threading.Thread:
        """Be down for some seconds once so many pieces of answers more have come; wait for it with `join`."""
        goal = self.answers + after

        def work() -> None:
            while self.answers < goal:
                time.sleep(0.002)
            self.down()
            time.sleep(seconds)
            self.up()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError):
                server = socket.create_connection(self._server)
                with self._lock:
                    self._open |= {client, server}
                for way in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=way, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(_CHUNK):
                whole = len(piece)
                if answers:
                    piece = self._troubled(piece)
                target.sendall(piece)
                if len(piece) < whole:
                    break
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.discard(source)
        source.close()

    def _troubled(self, piece: bytes) -> bytes:
        """What is passed on of a piece of an answer, and when."""
        time.sleep(self.delay)
        while self.silent:
            time.sleep(0.01)
        with self._lock:
            self.answers += 1
            if self.cuts:
                self.cuts -= 1
                return piece[: self._draw.randrange(len(piece))]
        return piece


@contextmanager
def unreliable_link(server: str) -> Iterator[UnreliableLink]:
    """A link to the server at an address, for the length of a `with` block."""
    link = UnreliableLink(server)
    try:
        yield link
    finally:
        link.silent = False
        link.down()
