"""A server that speaks OpenAI's API and knows what simulated datasets show, for testing the benchmark.

It recognises an episode by its first picture, answers every stage from the truth, and gives wrong answers
about a chosen share of the episodes: so what the benchmark measures is known beforehand.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from annotate_truth import Truth, truth_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from depi.annotate.review_frames import load_frames
from depi.annotate.work import local_state
from depi.datasets.recording.cameras import slot_order
from depi.datasets.recording.metadata import load_meta
from depi.serving import listen, make_server, serving
from depi.sim.community import Contributor

CONFIDENCE = 0.9
WRONG = "Fold the gray sock."
TOKENS_PER_IMAGE, TOKENS_PER_ANSWER = 100, 20


class Oracle:
    """What the server knows.

    Args:
        root: folder of the recorded datasets.
        rigs: of which they are.
        error_rate: share of the episodes whose instruction is wrong in every attribute, spread evenly.
        view_error_rate: the same for datasets whose cameras' views are all wrong.
    """

    def __init__(
        self, root: Path, rigs: Sequence[Contributor], error_rate: float = 0.0, view_error_rate: float = 0.0
    ) -> None:
        self.error_rate, self.view_error_rate = error_rate, view_error_rate
        self.known: dict[str, tuple[Truth, bool, bool]] = {}
        number = 0
        for position, rig in enumerate(rigs):
            folder, truth = root / rig.repo_id, truth_of(rig)
            views_wrong = _is_chosen(position, view_error_rate)
            keys = [(rig.repo_id, episode) for episode in range(rig.episodes)]
            first = slot_order(load_meta(folder, rig.repo_id, None).info.camera_keys)[0]
            frames = {key: {first: (0,)} for key in keys}
            states = {rig.repo_id: local_state(folder)}
            for _, ((_, _, jpeg),) in load_frames(keys, frames, states, folder, 150_000):
                self.known[_digest(jpeg)] = truth, _is_chosen(number, error_rate), views_wrong
                number += 1

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question, as JSON values."""
        content = body["messages"][1]["content"]
        images = [item["image_url"]["url"] for item in content if item["type"] == "image_url"]
        jpeg = base64.b64decode(images[0].partition(",")[2])
        truth, wrong, views_wrong = self.known[_digest(jpeg)]
        text = WRONG if wrong else truth.instruction
        schema = body["response_format"]["json_schema"]
        if schema["name"] == "views":
            keys = slot_order(truth.views)
            views = {f"camera_{number + 1}": truth.views[key] for number, key in enumerate(keys)}
            reply: dict[str, Any] = {"views": {k: "other" if views_wrong else v for k, v in views.items()}}
        elif schema["name"] == "instruction":
            reply = {"start": "", "end": "", "objects": [], "instruction": text, "confidence": CONFIDENCE}
        else:
            reply = {"seen": [], "not_seen": [], "instruction": text, "confidence": CONFIDENCE}
        usage = {
            "prompt_tokens": TOKENS_PER_IMAGE * len(images),
            "completion_tokens": TOKENS_PER_ANSWER,
        }
        message = {"role": "assistant", "content": json.dumps(reply)}
        return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


def _digest(jpeg: bytes) -> str:
    return hashlib.sha256(jpeg).hexdigest()


def _is_chosen(number: int, rate: float) -> bool:
    """Every so many-th, so that of n a share of `rate` is chosen, within one."""
    return int((number + 1) * rate + 1e-9) > int(number * rate + 1e-9)


@contextmanager
def oracle_server(oracle: Oracle) -> Iterator[str]:
    """Serve it on this machine; the address up to and with /v1."""

    async def models(request: Request) -> JSONResponse:
        return JSONResponse({"data": [{"id": "oracle"}]})

    async def complete(request: Request) -> JSONResponse:
        return JSONResponse(oracle.answer(json.loads(await request.body())))

    app = Starlette(
        routes=[Route("/v1/models", models), Route("/v1/chat/completions", complete, methods=["POST"])]
    )
    with (
        listen("127.0.0.1", 0, "the oracle") as sock,
        serving(make_server(app, ["127.0.0.1"]), sock, "oracle"),
    ):
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
