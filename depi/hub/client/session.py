"""The HTTP session that all of huggingface_hub uses in this process: time limits, connections, request rate,
the password of the Hub's address, and cards that are checked where they go.

huggingface_hub keeps one session and lets its settings be replaced; without that, most of its requests
wait for an answer without a time limit, and only twenty connections are kept open between requests. LeRobot's
commands get the session with DePi's plugin.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from huggingface_hub import close_session, constants, hf_api, set_client_factory
from huggingface_hub.utils._http import hf_request_event_hook

from depi.addresses import credentials, without_credentials

CONNECTIONS = 64
# `RepoCard.validate` asks here, whatever HF_ENDPOINT says.
_CARD_CHECK = httpx.URL("https://huggingface.co/api/validate-yaml")
_SECONDS = {"connect": 15.0, "read": 60.0, "write": 60.0}


@dataclass(frozen=True)
class Settings:
    """The most connections at a time and, if given, the most requests per second."""

    connections: int = CONNECTIONS
    max_requests_per_second: float | None = None


DEFAULT = Settings()


class _RateLimiter:
    """Limits the rate of requests over all threads: `wait` returns at most `per_second` times a second."""

    def __init__(self, per_second: float):
        self._step = 1 / per_second
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._step
        time.sleep(max(0.0, start - now))


_settings = DEFAULT
_limiter: _RateLimiter | None = None


def install() -> None:
    """Make huggingface_hub use this session from now on, and know the Hub's address without its password.

    Its warnings and errors name addresses as it knows them.
    """
    set_client_factory(_new_client)
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        setattr(constants, name, without_credentials(getattr(constants, name)))
    hf_api.api.endpoint = without_credentials(hf_api.api.endpoint)


def use(settings: Settings) -> None:
    """Apply `settings` to all requests of this process from now on."""
    if settings != _settings:
        _apply(settings)


@contextmanager
def limited(settings: Settings) -> Iterator[None]:
    """Apply `settings` to all requests of this process for the length of a `with` block."""
    before = _settings
    _apply(settings)
    try:
        yield
    finally:
        _apply(before)


def _apply(settings: Settings) -> None:
    global _settings, _limiter
    _settings = settings
    rate = settings.max_requests_per_second
    _limiter = None if rate is None else _RateLimiter(rate)
    close_session()


def _new_client() -> httpx.Client:
    return httpx.Client(
        event_hooks={
            "request": [_stay_with_endpoint, _log_in, hf_request_event_hook, _before_request],
            "response": [_after_response],
        },
        follow_redirects=True,
        timeout=httpx.Timeout(None, **_SECONDS),
        limits=httpx.Limits(
            max_connections=_settings.connections, max_keepalive_connections=_settings.connections
        ),
    )


_last_response = 0.0


def last_response() -> float:
    """When a server last answered this process, by `time.monotonic`; 0 where none has."""
    return _last_response


def _after_response(response: httpx.Response) -> None:
    global _last_response
    _last_response = time.monotonic()


def _stay_with_endpoint(request: httpx.Request) -> None:
    """Let the Hub in use say whether a card is valid, not huggingface.co, which may be out of reach."""
    if request.url == _CARD_CHECK:
        endpoint = without_credentials(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        request.url = httpx.URL(endpoint + _CARD_CHECK.path)
        request.headers["Host"] = request.url.netloc.decode()


def _log_in(request: httpx.Request) -> None:
    """Send the user and password that HF_ENDPOINT holds to that server, in the header instead of the address.

    They take the place of the token: there is one such header, and httpx does the same with an address.
    """
    if request.url.userinfo:  # httpx has made the header of it, and errors show the address
        request.url = request.url.copy_with(userinfo=b"")
    endpoint = os.environ.get("HF_ENDPOINT", "")
    found = credentials(endpoint)
    if found is not None and _origin(request.url) == _origin(httpx.URL(without_credentials(endpoint))):
        next(httpx.BasicAuth(*found).auth_flow(request))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _before_request(request: httpx.Request) -> None:
    # Listings ask for no limit explicitly, so the session's own does not count.
    timeout = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        **timeout,
        **{name: seconds for name, seconds in _SECONDS.items() if timeout.get(name) is None},
    }
    if _limiter is not None:
        _limiter.wait()
