"""A server with OpenAI's chat completions API: vLLM, SGLang, llama.cpp, or a hosted one.

huggingface_hub's InferenceClient has the same API, but no limit on the size of an answer or on the time for
it: here every answer is read piece by piece, within a number of bytes and seconds.
"""

import base64
import json
import logging
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from depi.addresses import credentials, without_credentials
from depi.annotate.backend import BackendError, HopelessError, Question, Reply, UnreachableError
from depi.catalog.text import clean
from depi.errors import UserError
from depi.hub.client.retry import PASSING_STATUSES, RetryPolicy, retry_after

logger = logging.getLogger(__name__)

DEFAULT_URL = "http://127.0.0.1:8000/v1"
MAX_BYTES = 1_000_000
_MAX_PAUSE = 600.0
# Parts of a question that some servers and models refuse.
_MAX_TOKENS, _TEMPERATURE, _SCHEMA = "max_tokens", "temperature", "JSON schema"


@dataclass(frozen=True)
class ServerConfig:
    """Where the server is and how long to wait for it.

    base_url: up to and with "/v1"; None for OPENAI_BASE_URL, or else DEFAULT_URL
    model: None for the first one that the server offers
    connections: questions at a time
    timeout: seconds for one answer, from first byte sent to last byte read
    """

    base_url: str | None = None
    model: str | None = None
    connections: int = 32
    timeout: float = 180.0
    retries: RetryPolicy = RetryPolicy(attempts=6, longest_retry_after=_MAX_PAUSE)  # noqa: RUF009


class OpenAiServer:
    """A connection to the server; see `depi.annotate.backend.Backend`.

    The key comes from OPENAI_API_KEY. Where the server refuses JSON schemas, a temperature or the
    parameter `max_tokens`, later questions leave them out. When it asks to wait (Retry-After), all threads
    wait.

    Raises:
        UserError: the server does not answer, takes no such key, or has no such model.
    """

    name = "openai"

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.url = (config.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL).rstrip("/")
        # For messages, which are published with the journals.
        self.shown = clean(without_credentials(self.url))
        self._secrets: set[str] = set()
        self._client = self._connect()
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._without: frozenset[str] = frozenset()
        try:
            self.model = config.model or self._first_model()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> httpx.Client:
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise UserError("OPENAI_API_KEY holds characters that are not allowed in a key")
        self._secrets = _spelled(key, credentials(self.url))
        limits = httpx.Limits(
            max_connections=self.config.connections, max_keepalive_connections=self.config.connections
        )
        timeout = httpx.Timeout(self.config.timeout, connect=min(10.0, self.config.timeout), pool=None)
        try:
            return httpx.Client(
                base_url=self.url + "/",
                headers={"Authorization": f"Bearer {key}"} if key else {},
                limits=limits,
                timeout=timeout,
            )
        except (httpx.InvalidURL, UnicodeError):
            raise UserError(f"--base_url={self.shown} is no address such as {DEFAULT_URL}") from None

    def _first_model(self) -> str:
        try:
            status, answer, _ = self._exchange("GET", "models", None)
        except UnreachableError as error:
            raise UserError(f"{error}: start it, or name it with --base_url") from None
        try:
            if status == 200:
                return str(json.loads(answer)["data"][0]["id"])[:200]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            pass
        self._refuse_if_hopeless(status, answer)
        raise UserError(f"{self.shown} does not say which models it has: name one with --model")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, question: Question) -> Reply:
        """See `depi.annotate.backend.Backend`."""
        policy, attempt = self.config.retries, 1
        without = self._without
        while True:
            self._wait_if_asked()
            headers: Mapping[str, str] = {}
            try:
                status, answer, headers = self._exchange(
                    "POST", "chat/completions", self._body(question, without)
                )
            except UnreachableError as error:
                reason, status = error, 0
            else:
                if status == 200:
                    self._remember(without)
                    return _reply(answer)
                self._refuse_if_hopeless(status, answer)
                message = self._message(answer)
                if status in (400, 422) and (less := _refused(message, without)):
                    without |= {less}
                    continue
                said = f"{self.shown} answers with status {status}: {message}"
                if status not in PASSING_STATUSES:
                    raise BackendError(said)
                reason = UnreachableError(said)
            if attempt == policy.attempts or not self._back_off(attempt, headers):
                raise reason
            attempt += 1

    def _body(self, question: Question, without: frozenset[str]) -> bytes:
        content: list[dict[str, Any]] = []
        for label, jpeg in question.images:
            url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
            content += [{"type": "text", "text": label}, {"type": "image_url", "image_url": {"url": url}}]
        content.append({"type": "text", "text": question.text})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": content},
            ],
            "max_completion_tokens" if _MAX_TOKENS in without else _MAX_TOKENS: question.max_tokens,
        }
        if _TEMPERATURE not in without:
            body[_TEMPERATURE] = 0
        if _SCHEMA not in without:
            schema = {"name": question.stage, "schema": dict(question.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return json.dumps(body).encode()

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers of an answer, read within the limits of bytes and seconds."""
        end = time.monotonic() + self.config.timeout
        headers = {"Content-Type": "application/json"} if body else {}
        answer = bytearray()
        try:
            with self._client.stream(method, path, content=body, headers=headers) as response:
                for piece in response.iter_bytes():
                    answer += piece
                    if len(answer) > MAX_BYTES:
                        raise BackendError(
                            f"the answer of {self.shown} does not end: cut after {MAX_BYTES} bytes"
                        )
                    if time.monotonic() > end:
                        raise UnreachableError(
                            f"the answer of {self.shown} takes longer than {self.config.timeout:g} s"
                        )
                return response.status_code, bytes(answer), response.headers
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeError) as error:
            raise HopelessError(f"--base_url={self.shown} cannot be asked: {error}") from None
        except httpx.DecodingError:
            raise BackendError(f"the answer of {self.shown} is garbled") from None
        except httpx.TransportError as error:
            raise UnreachableError(
                f"{self.shown} does not answer ({clean(str(error) or type(error).__name__, 100)})"
            ) from None

    def _message(self, answer: bytes) -> str:
        """What the server says is wrong, on one short line; some repeat the key that they were sent."""
        said = _complaint(answer)
        for secret in self._secrets:
            said = said.replace(secret, "...")
        return clean(said, 200) or "nothing more"

    def _refuse_if_hopeless(self, status: int, answer: bytes) -> None:
        if status in (401, 403):
            raise HopelessError(f"{self.shown} does not accept the key in OPENAI_API_KEY (status {status})")
        if status == 404:
            model = getattr(self, "model", None)
            raise HopelessError(
                f"{self.shown} has no model {model!r} or is no OpenAI-compatible server (status 404)"
            )

    def _remember(self, without: frozenset[str]) -> None:
        """Leave out of later questions what had to be left out of one that was then answered."""
        with self._lock:
            for name in sorted(without - self._without):
                logger.warning("%s takes no %s: asking without", self.shown, name)
            self._without |= without

    def _wait_if_asked(self) -> None:
        while (wait := self._not_before - time.monotonic()) > 0:
            time.sleep(min(wait, 1.0) + random.uniform(0, 0.05))

    def _back_off(self, attempt: int, headers: Mapping[str, str]) -> bool:
        """Wait before the next attempt; False where the server asks for a longer wait than allowed."""
        policy = self.config.retries
        asked = retry_after(headers)
        if asked is None:
            usual = min(policy.longest_wait, policy.first_wait * 2 ** (attempt - 1))
            time.sleep(usual * random.uniform(0.5, 1.5))
            return True
        if asked > policy.longest_retry_after:
            return False
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + asked)
        return True


def _refused(message: str, without: frozenset[str]) -> str | None:
    """What to leave out of a question that was refused with a message; None where nothing is left to try."""
    for name in (_MAX_TOKENS, _TEMPERATURE):
        if name in message and name not in without:
            return name
    return _SCHEMA if _SCHEMA not in without else None


def _spelled(key: str, login: tuple[str, str] | None) -> set[str]:
    """What a server is sent to know who asks, in every form in which it may repeat that."""
    user, password = login or ("", "")
    header = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {text for text in (key, password or user, quote(password, safe=""), login and header) if text}


def _complaint(answer: bytes) -> str:
    try:
        value = json.loads(answer)
        error = value.get("error", value.get("message", value)) if isinstance(value, dict) else value
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, RecursionError):
        return answer.decode(errors="replace")


def _reply(answer: bytes) -> Reply:
    try:
        value = json.loads(answer)
        choice = value["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        usage = value.get("usage") or {}
        prompt, completion = (_count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "completion"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise BackendError("the server's answer is no chat completion") from None
    if refusal or finish == "content_filter":
        raise BackendError(f"the model refuses: {clean(refusal or 'content filter', 200)}")
    if not isinstance(text, str):
        raise BackendError("the server's answer holds no text")
    return Reply(text, prompt, completion, cut=finish == "length")


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 10**9 else 0
