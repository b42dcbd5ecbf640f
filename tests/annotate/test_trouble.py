"""Servers that fail, lie or never end: nothing lost, nothing twice, every failure with its reason."""

import json
import time

import pytest
from image_dataset import write_images
from vlm_server import GOOD, Handler, completion, good_answer, images_of, serving, stage_of

from depi.annotate.annotate import main
from depi.annotate.backend import BackendError, Question, UnreachableError
from depi.annotate.episode_journal import read_results
from depi.annotate.openai_server import MAX_BYTES, OpenAiServer, ServerConfig
from depi.datasets.samples.annotations import read_annotations
from depi.errors import UserError
from depi.hub.client.retry import RetryPolicy

QUESTION = Question("instruction", "Rules.", (("camera_1:", b"jpeg"),), "Somebody stored", {"type": "object"})
FAST = RetryPolicy(attempts=3, first_wait=0.01)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("boxes") / "set", 24)


def ask(url, **changes):
    server = OpenAiServer(ServerConfig(url, **{"retries": FAST, **changes}))
    try:
        return server.ask(QUESTION)
    finally:
        server.close()


def once(trouble):
    """A server that makes `trouble` at the first request about each episode and stage, then answers well."""
    seen = set()

    def answer(handler, body, number):
        key = images_of(body), stage_of(body)
        if key not in seen:
            seen.add(key)
            trouble(handler, body, number)
        else:
            handler.send(200, completion(good_answer(body)))

    return answer


TROUBLES = {
    "429": lambda handler, body, _: handler.send(429, b"slow down", Retry_After="0"),
    "500": lambda handler, body, _: handler.send(500, b"<html>oops"),
    "503": lambda handler, body, _: handler.send(503, b"{}"),
    "hangs up": lambda handler, body, _: handler.hang_up(),
    "truncated": lambda handler, body, _: handler.send(
        200, completion(json.dumps(good_answer(body))[:40], finish_reason="length")
    ),
    "malformed": lambda handler, body, _: handler.send(200, completion("Sure! Here is it: {instruction}")),
    "other keys": lambda handler, body, _: handler.send(200, completion(good_answer(body) | {"extra": 1})),
    "slow": lambda handler, body, _: (time.sleep(0.2), handler.send(200, completion(good_answer(body)))),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_passes_is_asked_again_and_nothing_is_lost(annotated, tmp_path, boxes, trouble):
    with serving(once(TROUBLES[trouble])) as server:
        summary = annotated(boxes, server.url, concurrency=6)
    assert not summary.incomplete
    rows, _ = read_annotations(tmp_path / "out", "ann/box")
    assert [row.task for row in rows] == [GOOD] * 24
    lines = (tmp_path / "out/ann/box.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["episode"] for line in lines) == list(range(24))
    assert server.most <= 6, "no more questions at a time than allowed"


def test_some_episodes_fail_for_good_and_are_named(annotated, tmp_path, boxes, capsys, monkeypatch):
    wrong = {0: "refusal", 1: "filter", 2: "garbage", 3: "malformed", 4: "failing"}
    order = {}

    def answer(handler, body, _):
        kind = wrong.get(order.setdefault(images_of(body), len(order)))
        refusal = {"message": {"role": "assistant", "content": None, "refusal": "I\x1b[31m cannot."}}
        answers = {
            "refusal": (200, completion("", **refusal)),
            "filter": (200, completion("", finish_reason="content_filter")),
            "garbage": (200, b'{"choices": "none"}'),
            "malformed": (200, completion("[" * 5000)),
            "failing": (500, b"broken"),
        }
        handler.send(*answers.get(kind, (200, completion(good_answer(body)))))

    with serving(answer) as server:
        summary = annotated(boxes, server.url, concurrency=1, view_episodes=0)
        reasons = sorted(summary.failures["ann/box"].values())
        assert len(reasons) == 5
        for reason, said in zip(reasons, ("status 500", "", "", "", ""), strict=True):
            assert said in reason
        together = " | ".join(reasons)
        for said in (
            "refuses: I [31m cannot.",
            "refuses: content filter",
            "no chat completion",
            "not valid JSON",
        ):
            assert said in together
        assert (summary.done, summary.incomplete) == (19, True)
        flags = [f"--root={boxes}", "--repo_id=ann/box", f"--base_url={server.url}", "--view_episodes=0"]
        assert main([*flags, f"--annotations={tmp_path / 'out'}", "--json"]) == 3
        said = json.loads(capsys.readouterr().out)
        assert (said["failed"], said["reused"]) == (5, 19)
        server.answer = lambda handler, body, _: handler.send(200, completion(good_answer(body)))
        assert main([*flags, f"--annotations={tmp_path / 'out'}"]) == 0
    journal = read_results(tmp_path / "out", "ann/box")
    assert (len(journal.results), journal.failures) == (24, {})


def test_an_answer_without_end_is_cut():
    def answer(handler, body, _):
        handler.send_response(200)
        handler.end_headers()
        sent = 0
        while sent < 100 * MAX_BYTES:
            handler.wfile.write(b" " * 65536)
            sent += 65536
        pytest.fail("all of it was read")

    with serving(answer) as server, pytest.raises(BackendError, match="does not end"):
        ask(server.url)


def test_an_answer_that_trickles_is_cut():
    def answer(handler, body, _):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)

    started = time.monotonic()
    with serving(answer) as server, pytest.raises(UnreachableError, match=r"takes longer than 0\.3 s"):
        ask(server.url, timeout=0.3, retries=RetryPolicy(attempts=2, first_wait=0.01))
    assert time.monotonic() - started < 10
    assert server.number == 2


def test_a_silent_server_is_given_up(annotated, boxes):
    with serving(lambda handler, body, _: time.sleep(1)) as server:
        with pytest.raises(UnreachableError, match="does not answer"):
            ask(server.url, timeout=0.1, retries=RetryPolicy(attempts=2, first_wait=0.01))
        assert server.number == 2


def test_retry_after_is_waited_for_by_all():
    times = []

    def answer(handler, body, number):
        times.append(time.monotonic())
        if number == 1:
            handler.send(429, b"{}", Retry_After="1")
        else:
            handler.send(200, completion(good_answer(body)))

    with serving(answer) as server:
        backend = OpenAiServer(ServerConfig(server.url, retries=FAST))
        backend.ask(QUESTION)
        assert 1.0 <= times[1] - times[0] < 5
        backend.close()
        server.answer = lambda handler, body, _: handler.send(429, b"{}", Retry_After="100000")
        with pytest.raises(UnreachableError, match="429"):
            ask(server.url)


def test_a_server_that_goes_away_ends_the_call(annotated, tmp_path, boxes):
    answered = set()

    def answer(handler, body, _):
        episode = images_of(body)
        if len(answered) < 2:
            answered.add(episode)
        good = episode in answered
        handler.send(200 if good else 503, completion(good_answer(body)) if good else b"")

    with serving(answer) as server:
        summary = annotated(boxes, server.url, concurrency=2, view_episodes=0)
    assert "in a row got no answer" in summary.stopped
    assert (summary.done, summary.incomplete) == (2, True)
    assert len(read_annotations(tmp_path / "out", "ann/box")[0]) == 2, "what is there is written"


def test_a_server_without_schemas_is_asked_without_them(annotated, tmp_path, boxes):
    def answer(handler, body, _):
        if "response_format" in body:
            handler.send(400, b'{"error": {"message": "response_format is not supported"}}')
        else:
            handler.send(200, completion(f"```json\n{json.dumps(good_answer(body))}\n```"))

    with serving(answer) as server:
        summary = annotated(boxes, server.url, concurrency=1)
        assert server.number == 24 * 2 + 3 + 1, "noticed once"
    assert summary.trusted == 24


def test_a_server_of_newer_models_is_asked_as_they_want(annotated, tmp_path, boxes):
    """OpenAI's own take no `max_tokens` and no temperature, and say so one at a time."""

    def answer(handler, body, _):
        for name in ("max_tokens", "temperature"):
            if name in body:
                said = f"Unsupported parameter: '{name}' is not supported with this model."
                return handler.send(400, json.dumps({"error": {"message": said}}).encode())
        assert body["max_completion_tokens"] > 0
        assert "response_format" in body, "schemas were not refused"
        return handler.send(200, completion(good_answer(body)))

    with serving(answer) as server:
        summary = annotated(boxes, server.url, concurrency=1)
        assert server.number == 24 * 2 + 3 + 2, "noticed once"
    assert summary.trusted == 24


def test_one_question_that_is_refused_does_not_cost_the_others_their_schema(annotated, boxes):
    too_long, without_schema = set(), []

    def answer(handler, body, number):
        too_long.update([images_of(body)] if number == 1 else [])
        without_schema.append("response_format" not in body)
        if images_of(body) in too_long:
            handler.send(400, b'{"error": {"message": "the prompt is longer than the context"}}')
        else:
            handler.send(200, completion(good_answer(body)))

    with serving(answer) as server:
        summary = annotated(boxes, server.url, concurrency=1)
    assert list(summary.failures["ann/box"].values()) == [
        f"{server.url} answers with status 400: the prompt is longer than the context"
    ]
    assert (summary.done, sum(without_schema)) == (23, 1)


@pytest.mark.parametrize(("status", "says"), [(401, "does not accept the key"), (404, "has no model 'gone'")])
def test_what_will_never_work_ends_the_call_at_once(annotated, tmp_path, boxes, status, says, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(lambda handler, body, _: handler.send(status, b"{}")) as server:
        with pytest.raises(UserError, match=says) as stop:
            annotated(boxes, server.url, model="gone", concurrency=2)
        assert server.headers_seen["Authorization"] == "Bearer sk-secret"
        assert server.number <= 12
    assert "sk-secret" not in str(stop.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9/v1", "start it, or name it"),
        ("ftp://x/v1", "cannot be asked"),
        ("http://a..b/v1", "cannot be asked"),
        ("http://x:port/v1", "is no address such as http"),
    ],
)
def test_no_server_is_one_sentence(annotated, boxes, url, says):
    with pytest.raises(UserError, match=says):
        annotated(boxes, url)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"repo_id": "nobody"}, "must be USER/NAME or an address s3://BUCKET/FOLDER, got 'nobody'"),
        ({"repo_id": "../x"}, "must be USER/NAME"),
        ({"annotations": "/etc/passwd"}, "--annotations=/etc/passwd cannot be a folder: File exists"),
        ({"annotations": "/etc/passwd/x"}, "cannot be a folder: Not a directory"),
        *[({"timeout": value}, "above 0, at most 86400") for value in ("inf", "nan", "1e12", "0")],
    ],
)
def test_flags_that_cannot_work_are_one_sentence(boxes, tmp_path, flags, says):
    given = {"repo_id": "ann/box", "root": boxes, "annotations": tmp_path, "backend": "rules"} | flags
    with pytest.raises(UserError, match=says):
        main([f"--{name}={value}" for name, value in given.items()])


@pytest.mark.parametrize("models", [b"[" * 100_000, b'{"data": []}', b"\xff"])
def test_a_server_that_does_not_say_its_models(models, monkeypatch):
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.send(200, models))
    with serving() as server, pytest.raises(UserError, match="does not say which models it has"):
        ask(server.url)


def test_the_password_in_an_address_is_told_to_nobody(annotated, tmp_path, boxes, caplog):
    """The journal is published."""
    with serving(lambda handler, body, _: handler.send(418, b"no")) as server:
        url = server.url.replace("//", "//me:sec%40ret@")
        summary = annotated(boxes, url, max_episodes=2)
        assert server.headers_seen["Authorization"].startswith("Basic")
    assert server.url in summary.failures["ann/box"][0]
    written = "".join(path.read_text() for path in (tmp_path / "out").rglob("*.json*"))
    assert server.url in written
    assert "sec%40ret" not in f"{summary}{written}{caplog.text}"


def test_a_call_keeps_others_off_its_datasets(annotated, boxes):
    def answer(handler, body, number):
        if number == 1:
            other = annotated(boxes, server.url)
            assert "another depi annotate works on ann/box" in other.dataset_failures["ann/box"]
        handler.send(200, completion(good_answer(body)))

    with serving(answer) as server:
        assert annotated(boxes, server.url).done == 24
