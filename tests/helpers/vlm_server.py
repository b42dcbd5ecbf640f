"""A real HTTP server that answers like an OpenAI-compatible one, well or badly, as a test wants it.

As a program (`python vlm_server.py LOG`) it answers at once, prints its port and writes a line per request.
"""

import hashlib
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = "Pick up the red cube and place it in the blue bowl."


def stage_of(body: dict) -> str:
    """Which stage a request is about, from its schema or else from its text."""
    schema = body.get("response_format", {}).get("json_schema", {}).get("name")
    text = body["messages"][1]["content"][-1]["text"]
    words = {
        "Somebody stored": "instruction",
        "Look at the images again": "refinement",
        "From where": "views",
    }
    return schema or next(stage for start, stage in words.items() if start in text)


def images_of(body: dict) -> str:
    """A digest of the images: which episode a request is about."""
    parts = [part["image_url"]["url"] for part in body["messages"][1]["content"] if "image_url" in part]
    return hashlib.blake2b("".join(parts).encode(), digest_size=8).hexdigest()


def good_answer(body: dict, text: str = GOOD, **changes) -> dict:
    """What a model would answer at the request's stage."""
    stage = stage_of(body)
    if stage == "views":
        asked = body["messages"][1]["content"][-1]["text"].split("these cameras: ")[1].split(". Each")[0]
        return {"views": dict.fromkeys(asked.split(", "), "front")} | changes
    if stage == "refinement":
        return {"seen": ["red cube"], "not_seen": [], "instruction": text, "confidence": 0.9} | changes
    parts = {
        "start": "It is on the table.",
        "end": "It is in the bowl.",
        "objects": ["red cube", "blue bowl"],
    }
    return {**parts, "instruction": text, "confidence": 0.95} | changes


def completion(content, **changes) -> bytes:
    """A chat completion that says `content` (text, or JSON to be)."""
    text = content if isinstance(content, str) else json.dumps(content)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}
    return json.dumps({"object": "chat.completion", "choices": [choice | changes], "usage": usage}).encode()


Answer = Callable[["Handler", dict, int], None]


class Handler(BaseHTTPRequestHandler):
    """One connection; `server.answer` says what is sent."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.send(
            200, json.dumps({"object": "list", "data": [{"id": "tiny-vlm", "object": "model"}]}).encode()
        )

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.number += 1
            number = self.server.number
            self.server.asked[images_of(body), stage_of(body)] += 1
            self.server.last, self.server.headers_seen = body, dict(self.headers)
            self.server.at_a_time += 1
            self.server.most = max(self.server.most, self.server.at_a_time)
        try:
            self.server.answer(self, body, number)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.at_a_time -= 1

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args):
        pass


class VlmServer(ThreadingHTTPServer):
    """asked: (episode, stage) -> requests; most: requests at a time at most."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.number, self.asked = threading.Lock(), 0, Counter()
        self.at_a_time = self.most = 0
        self.last: dict = {}
        self.headers_seen: dict = {}
        self.answer = answer or (lambda handler, body, _: handler.send(200, completion(good_answer(body))))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def of_stage(self, stage: str) -> int:
        return sum(count for (_, name), count in self.asked.items() if name == stage)


@contextmanager
def serving(answer: Answer | None = None):
    server = VlmServer(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    with open(sys.argv[1], "a", buffering=1) as log:

        def answer(handler: Handler, body: dict, number: int) -> None:
            handler.send(200, completion(good_answer(body)))
            log.write(f"{images_of(body)} {stage_of(body)}\n")

        with serving(answer) as server:
            print(server.url, flush=True)
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
