"""Small files and answers of a Hub, in one request each and in bounded memory.

`hf_hub_download` sends two requests for every file, one for its name in the cache and one for its content,
and holds locks around both. For thousands of small files that takes most of the time; here the headers of
the answer give the name, and the file is put where huggingface_hub would put it.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
from huggingface_hub import constants, get_token
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from depi import __version__
from depi.files import atomic_write
from depi.hub.client.retry import HubError, Target

SMALL = 16 * 1024 * 1024
MAX_ANSWER = 24 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[0-9a-zA-Z_\-]{8,128}")

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


class TooLarge(HubError):  # noqa: N818
    """An answer is larger than allowed."""


class TooSlow(HubError):  # noqa: N818
    """The requests within `time_limit` take longer than it allows."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limit the total time of the requests of this thread; later ones raise `TooSlow`."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def check_time() -> None:
    """Raise `TooSlow` when the time limit in force is over."""
    end = _deadline.get()
    if end is not None and time.monotonic() > end:
        raise TooSlow("it takes longer than the time allowed for one repository")


def get_json(target: Target, path: str, params: dict[str, Any]) -> Any:
    """The JSON that the Hub answers at `/api/...`.

    Raises:
        TooLarge, TooSlow: it is larger than MAX_ANSWER, or there is no time left.
        httpx.HTTPError, ValueError: the request failed, the answer is no JSON.
    """
    return get_page(target, path, params)[0]


def get_page(target: Target, path: str, params: dict[str, Any]) -> tuple[Any, str | None]:
    """The JSON of one page of a list, and the cursor to ask for the next one; fails like `get_json`."""
    with _get(f"{target.endpoint}{path}", params=params) as response:
        text = bytearray()
        for chunk in response.iter_bytes():
            text += chunk
            check_time()
            if len(text) > MAX_ANSWER:
                raise TooLarge(f"the Hub's answer is larger than {MAX_ANSWER // 1_000_000} MB")
        following = response.links.get("next", {}).get("url", "")
    return json.loads(text), next(iter(parse_qs(urlsplit(following).query).get("cursor", [])), None)


def snapshot_folder(repo_id: str, repo_type: str, revision: str) -> Path:
    """Where the cache has the files of a commit, or would have them."""
    folder = repo_folder_name(repo_id=repo_id, repo_type=repo_type)
    return Path(constants.HF_HUB_CACHE, folder, "snapshots", revision)


def fetch_small(target: Target) -> Path | None:
    """Put one file of a commit into the cache with a single request; None if it is not small.

    Also None where the answer lacks the headers for the name in the cache, or where no network may be used:
    the caller then uses `hf_hub_download`, which handles these cases.

    Raises:
        TooSlow: there is no time left.
        OSError, httpx.HTTPError: the request failed, the file cannot be written.
    """
    assert target.revision is not None
    assert target.filename is not None
    place = snapshot_folder(target.repo_id, target.repo_type, target.revision) / target.filename
    if place.exists():
        return place
    if constants.HF_HUB_OFFLINE:
        return None
    with _get(_file_url(target), headers={"Accept-Encoding": "identity"}) as response:
        etag, size = _identity(response)
        commits = {step.headers.get("x-repo-commit") for step in [*response.history, response]} - {None}
        if commits != {target.revision} or not etag or size is None or size > SMALL:
            if size is not None and size <= SMALL:
                response.read()  # a connection that was cut off is worth another try
            return None
        blob = place.parents[target.filename.count("/") + 2] / "blobs" / etag
        if not blob.exists():
            _store(response, blob, etag, size)
    _link(place, blob)
    return place


def get_range(target: Target, start: int, end: int) -> tuple[bytes, int]:
    """Bytes `start` to `end` of a file, and the size of all of it.

    Raises:
        TooSlow: there is no time left.
        OSError, httpx.HTTPError: the request failed, or the Hub does not send parts of files.
    """
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
    with _get(_file_url(target), headers=headers) as response:
        size = _number(response.headers.get("content-range", "").rpartition("/")[2])
        if response.status_code != 206 or size is None:
            size = _number(response.headers.get("content-length"))
            if size is None or start > 0 or size > end:
                raise OSError("Consistency check failed: the Hub does not send parts of files")
        data = response.read()
    if len(data) != min(end, size) - start:
        raise OSError(f"Consistency check failed: {len(data)} bytes instead of {min(end, size) - start}")
    return data, size


def _file_url(target: Target) -> str:
    return f"{target.url}/resolve/{target.revision}/{quote(target.filename or '')}"


@contextmanager
def _get(url: str, **options: Any) -> Iterator[httpx.Response]:
    check_time()
    headers = build_hf_headers(
        token=get_token() or None, library_name="depi", library_version=__version__
    ) | options.pop("headers", {})
    with get_session().stream("GET", url, headers=headers, **options) as response:
        if response.is_error:
            # The first lines of an error's text explain it.
            response._content = next(response.iter_bytes(65536), b"")
        hf_raise_for_status(response)
        yield response


def _identity(response: httpx.Response) -> tuple[str, int | None]:
    """The name in the cache and the size, from the headers that huggingface_hub takes them from."""
    steps = [*response.history, response]
    for step in steps:
        if linked := step.headers.get("x-linked-etag"):
            return _clean_etag(linked), _number(step.headers.get("x-linked-size"))
    is_hub = response.url.host == steps[0].url.host
    etag = response.headers.get("etag", "") if is_hub else ""
    return _clean_etag(etag), _number(response.headers.get("content-length"))


def _number(value: str | None) -> int | None:
    return int(value) if value and value.isascii() and value.isdigit() else None


def _clean_etag(value: str) -> str:
    name = value.removeprefix("W/").strip('"')
    return name if _NAME.fullmatch(name) else ""


def _store(response: httpx.Response, blob: Path, etag: str, size: int) -> None:
    digest, received = hashlib.sha256(), 0
    # Waiting for the disk after each of thousands of files would take longer than fetching them.
    with atomic_write(blob, sync=False) as draft:
        with draft.open("wb") as file:
            for chunk in response.iter_bytes():
                received += len(chunk)
                check_time()
                if received > size:
                    break
                file.write(chunk)
                digest.update(chunk)
        if received != size or (_SHA256.fullmatch(etag) and digest.hexdigest() != etag):
            raise OSError(f"Consistency check failed: {received} of {size} bytes")


def _link(place: Path, blob: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        place.symlink_to(os.path.relpath(blob, place.parent))
