"""Retry requests to a Hub where that may help, and explain failures in one sentence.

huggingface_hub repeats by itself: the later pages of a listing, LFS transfers, and what a download needs
before its first byte, all with Retry-After. It does not repeat repository info, the first page, commits or
a download that fails with a server's error, and it does not randomise its waits: that is added here.
"""

import json
import logging
import os
import random
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path

import httpx
import huggingface_hub
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from depi.errors import MachineError, UserError, machine_error, one_line
from depi.hub.client import session

logger = logging.getLogger(__name__)

PASSING_STATUSES = {408, 429, 500, 502, 503, 504}
AWAY_STATUSES = {502, 503, 504}
LOGIN = "`hf auth login` (or set HF_TOKEN)"


class HubError(UserError):
    """A Hub did not do what was asked."""


class RepoMissing(HubError):  # noqa: N818
    """There is no such repository, or it is private and the token does not open it."""


class RepoGated(HubError):  # noqa: N818
    """The repository is gated: its owner has to grant access."""


class RevisionMissing(HubError):  # noqa: N818
    """The repository has no such branch, tag or commit."""


class FileMissing(HubError):  # noqa: N818
    """The repository has no such file at this revision."""


class HubUnreachable(HubError):  # noqa: N818
    """No network, no Hub at the endpoint, or a Hub that keeps failing."""


class HubSilent(HubUnreachable):
    """The Hub has answered nothing for a long time, or never: other questions would get no answer either."""


class TokenMissing(HubError):  # noqa: N818
    """There is no token, or it does not allow this."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often to try, and how long to wait in between, in seconds."""

    attempts: int = 4
    first_wait: float = 1.0
    longest_wait: float = 30.0
    longest_retry_after: float = 330.0  # the public Hub counts requests in windows of five minutes
    # A Hub that has answered before is waited for so long, whatever `attempts` says.
    longest_silence: float = 120.0


RETRIES = RetryPolicy()

# What huggingface_hub raises when a Hub fails, refuses, or sends an answer that is not valid.
EXPECTED = (OSError, httpx.HTTPError, httpx.InvalidURL, RuntimeError, ValueError)


@dataclass(frozen=True)
class Target:
    """What a request is about, for messages."""

    endpoint: str
    repo_id: str = ""
    repo_type: str = "dataset"
    revision: str | None = None
    filename: str | None = None
    writes: bool = False

    @property
    def url(self) -> str:
        """The page of the repository."""
        prefix = {"dataset": "datasets/", "space": "spaces/"}.get(self.repo_type, "")
        return f"{self.endpoint}/{prefix}{self.repo_id}"


class _Silences:
    """Since when each Hub that has answered this process before answers nothing; safe for threads."""

    def __init__(self) -> None:
        self._answered: dict[str, float] = {}
        self._began: dict[str, float] = {}

    def end(self, endpoint: str) -> None:
        """The Hub has answered."""
        self._answered[endpoint] = time.monotonic()
        self._began.pop(endpoint, None)

    def is_unknown(self, endpoint: str) -> bool:
        """Whether it has never answered this process."""
        return endpoint not in self._answered

    def seconds(self, endpoint: str, since: float) -> float | None:
        """How long it has been silent, now that a request failed; None where the request may be the cause.

        Args:
            endpoint: of the Hub.
            since: when the request was tried before; an answer that somebody got later is no silence.
        """
        answered, now = self._answered.get(endpoint), time.monotonic()
        if answered is None or answered > since:
            return None
        return now - self._began.setdefault(endpoint, now)


_silences = _Silences()


def retried[Result](call: Callable[[], Result], target: Target) -> Result:
    """Return `call()`, repeated after temporary failures, with growing and random waits.

    A Retry-After of the Hub is obeyed, unless it is longer than RETRIES allows. A Hub that goes away after it
    has answered is waited for.

    Raises:
        HubError: it failed for good.
        MachineError: the answer cannot be stored.
    """
    failures, tried = 0, time.monotonic()
    for attempt in count(1):
        try:
            result = call()
        except EXPECTED as error:
            silent = None
            if _says_nothing(error):
                silent = _silences.seconds(target.endpoint, tried)
            elif isinstance(_cause(error), HfHubHTTPError):
                _silences.end(target.endpoint)
            if silent is not None and silent >= RETRIES.longest_silence:
                raise _given_up(error, target) from error
            if silent is None:
                failures += 1
            wait = _wait_before_next(error, failures or min(attempt, RETRIES.attempts - 1), RETRIES)
            if wait is None and _silences.is_unknown(target.endpoint) and _says_nothing(error):
                raise _given_up(error, target) from error
            if wait is None:
                raise explain(error, target) from error
            tried = time.monotonic()
            logger.warning("%s; trying again in %.1f s", explain(error, target), wait)
            time.sleep(wait)
        else:
            if session.last_response() >= tried:  # what the cache has needs no answer
                _silences.end(target.endpoint)
            return result
    raise AssertionError("the last attempt returns or raises")


def _says_nothing(error: BaseException) -> bool:
    """Whether nobody answered, or only what stands in front of a Hub that is away."""
    cause = _cause(error)
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in AWAY_STATUSES
    return isinstance(cause, httpx.TransportError)


def _given_up(error: BaseException, target: Target) -> HubError | MachineError:
    fault = explain(error, target)
    return HubSilent(str(fault)) if isinstance(fault, HubUnreachable) else fault


def _wait_before_next(error: Exception, attempt: int, policy: RetryPolicy) -> float | None:
    """Return the seconds to wait, or None when trying again is pointless."""
    cause = _cause(error)
    if attempt >= policy.attempts or isinstance(cause, LocalEntryNotFoundError):
        return None
    usual = min(policy.longest_wait, policy.first_wait * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
    if isinstance(cause, HfHubHTTPError):
        if cause.response.status_code not in PASSING_STATUSES:
            return None
        asked = retry_after(cause.response.headers)
        if asked is None:
            return usual
        return (
            None if asked > policy.longest_retry_after else asked + random.uniform(0, 1) * policy.first_wait
        )
    is_cut_short = isinstance(cause, OSError) and "Consistency check failed" in str(cause)
    is_hopeless = isinstance(cause, (httpx.UnsupportedProtocol, httpx.LocalProtocolError))
    is_network = isinstance(cause, httpx.TransportError) and not is_hopeless
    return usual if is_network or is_cut_short or _is_of_xet(cause) else None


def _is_of_xet(error: BaseException) -> bool:
    """Whether Xet, which transfers large files for huggingface_hub, has failed: its errors are built-in ones.

    It is not written in Python: the last line that was run in Python is huggingface_hub's.
    """
    if type(error) not in (ConnectionError, TimeoutError, RuntimeError) or error.__cause__ is not None:
        return False
    lines = traceback.extract_tb(error.__traceback__)
    package = Path(huggingface_hub.__file__).parent
    return cache_error(error) is None and bool(lines) and Path(lines[-1].filename).is_relative_to(package)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds for which a response asks clients to wait: Retry-After, or the Hub's rate limit."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    if value:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def _cause(error: BaseException) -> BaseException:
    """Return the error that huggingface_hub's exceptions wrap.

    An HTTP error of a download that was not in the cache either stays wrapped: it has been retried already.
    """
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return _cause(error.__cause__)
    return error


def cache_error(error: object) -> MachineError | None:
    """Return the error to raise where the Hub's cache on this machine cannot be written; None for others."""
    variable = "HF_HUB_CACHE" if "HF_HUB_CACHE" in os.environ else "HF_HOME"
    return machine_error(error, constants.HF_HUB_CACHE, f"set {variable} to another folder")


def explain(error: BaseException, target: Target) -> HubError | MachineError:
    """Return the sentence for a failure. Bugs and other errors are raised again as they are."""
    error = _cause(error)
    where = f"{target.repo_type} {target.repo_id}" if target.repo_id else f"the Hub at {target.endpoint}"
    if isinstance(error, HubError):
        return error
    if isinstance(error, LocalEntryNotFoundError):
        beneath = error.__cause__
        if beneath is not None and not isinstance(beneath, LocalEntryNotFoundError):
            return explain(beneath, target)
        return HubUnreachable(f"{target.filename or where} is not in the cache and {_OFFLINE}")
    if isinstance(error, OfflineModeIsEnabled):
        what = f"{target.filename} of {where}" if target.filename else where
        return HubUnreachable(f"{what} is needed, but {_OFFLINE}")
    if isinstance(error, HfHubHTTPError):
        return _explain_response(error, target, where)
    if isinstance(error, (httpx.LocalProtocolError, UnicodeEncodeError)):  # the message would show the token
        return TokenMissing(
            f"your token has characters that are not allowed in a token: log in again with {LOGIN}"
        )
    if isinstance(error, (httpx.TransportError, httpx.InvalidURL)):
        reason = str(error) or type(error).__name__
        return HubUnreachable(
            f"cannot reach the Hub at {target.endpoint} ({reason}): check the network and HF_ENDPOINT"
        )
    if isinstance(error, (FileMetadataError, json.JSONDecodeError)):
        return HubUnreachable(f"{target.endpoint} does not answer like a Hub: check HF_ENDPOINT")
    if isinstance(error, HFValidationError):
        return RepoMissing(f"{target.repo_id!r} is no repository id: write it as user/name")
    if (fault := cache_error(error)) is not None:
        return fault
    if isinstance(error, ValueError) and "README.md" in str(error):
        return HubError(f"{where}: {' '.join(str(error).split())}")
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return HubUnreachable(f"{target.filename} of {where} arrived cut short: try again")
    if _is_of_xet(error):
        return HubUnreachable(
            f"files of {where} could not be transferred by Xet ({one_line(error, 200)}): try again later, or "
            "with HF_HUB_DISABLE_XET=1, which transfers them in another way"
        )
    raise error


_OFFLINE = "HF_HUB_OFFLINE is set: unset it, or download what is needed beforehand"


def _explain_response(error: HfHubHTTPError, target: Target, where: str) -> HubError:
    status = error.response.status_code
    revision = target.revision or "main"
    if isinstance(error, GatedRepoError):
        return RepoGated(f"{where} is gated: ask for access at {target.url}, then log in with {LOGIN}")
    if isinstance(error, RevisionNotFoundError):
        return RevisionMissing(f"{where} has no revision {revision!r}: see {target.url}/tree/main")
    if isinstance(error, EntryNotFoundError):
        return FileMissing(f"{where} has no file {target.filename!r} at revision {revision!r}")
    if isinstance(error, RepositoryNotFoundError):
        if get_token() is None:
            return RepoMissing(
                f"{where} does not exist at {target.endpoint}, or is private: check the name, "
                f"or log in with {LOGIN}"
            )
        return RepoMissing(
            f"{where} does not exist at {target.endpoint}, or is private and your token does not open it"
        )
    if status == 401:
        return TokenMissing(
            f"the Hub at {target.endpoint} does not accept your token: log in again with {LOGIN}"
        )
    if status == 403 and target.writes:
        return TokenMissing(
            f"your token may not write to {where}: create one with write access at "
            f"{target.endpoint}/settings/tokens and log in with {LOGIN}"
        )
    if status == 429:
        return HubUnreachable(f"the Hub at {target.endpoint} limits how often you may ask: try again later")
    if status in PASSING_STATUSES:
        return HubUnreachable(f"the Hub at {target.endpoint} fails with status {status}: try again later")
    said = error.server_message or f"status {status}"
    reason = " ".join("".join(c if c.isprintable() else " " for c in said).split())[:300]
    return HubError(f"the Hub at {target.endpoint} refused the request for {where}: {reason}")
