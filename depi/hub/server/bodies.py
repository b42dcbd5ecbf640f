"""Read request bodies of clients, with limits."""

import json
from collections.abc import AsyncIterator
from typing import Any, TypeGuard

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request

from depi.hub.names import RequestError

MAX_BODY = 16 * 1024 * 1024
MAX_ANONYMOUS_BODY = 1024 * 1024


class _KindConvertor(Convertor[str]):
    regex = "datasets|models"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("kind", _KindConvertor())


def flag(value: str | None) -> bool:
    """Read a boolean of a query or a form."""
    return value is not None and value.lower() in ("true", "1")


def is_size(value: Any) -> TypeGuard[int]:
    """Say whether a value of a client's JSON is the size of a file."""
    return type(value) is int and 0 <= value < 2**63


async def read_body(request: Request, limit: int) -> bytes:
    """Return a small body.

    Raises:
        RequestError: it is larger than `limit` bytes.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise RequestError(413, f"The request is larger than {limit} bytes")
    return bytes(body)


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        value = json.loads(text.decode())  # of bytes, json.loads lets half a surrogate pair pass
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is not valid text
    except (ValueError, RecursionError):
        raise RequestError(400, "The request is not valid JSON") from None
    if not isinstance(value, dict):
        raise RequestError(400, "The request is not a JSON object")
    return value


async def read_lines(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the non-empty lines of a body as they arrive, without holding more than one.

    Raises:
        RequestError: a line is longer than `limit` bytes.
    """
    pending = bytearray()
    async for chunk in request.stream():
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            pending += chunk[start:end]
            if pending.strip():
                yield bytes(pending)
            pending.clear()
            start = end + 1
        pending += chunk[start:]
        if len(pending) > limit:
            raise RequestError(413, "A file in the commit is too large: upload it as a large file (LFS)")
    if pending.strip():
        yield bytes(pending)
