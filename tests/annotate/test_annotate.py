"""What a call asks, what it writes, what it does again and what not."""

import base64
import json

import numpy as np
import pytest
from recordings import Recording, number_in, write_v2
from vlm_server import GOOD, completion, good_answer, images_of, serving

from depi.annotate.episode_journal import Review, append, read_results
from depi.annotate.review import decide
from depi.annotate.templates import FOLDER
from depi.datasets.recording.images import decode_image
from depi.datasets.samples.annotations import read_annotations

CAMERAS = {"observation.images.front": "front", "observation.images.wrist": "front"}


def rows_of(tmp_path):
    rows, provenance = read_annotations(tmp_path / "out", "ann/box")
    return rows, provenance


@pytest.mark.parametrize("kind", ["videos", "newer"])
def test_every_episode_gets_its_text_and_views(annotated, tmp_path, request, kind):
    root = request.getfixturevalue(kind)
    with serving() as server:
        summary = annotated(root, server.url, view_episodes=2)
    rows, provenance = rows_of(tmp_path)
    count = 4 if kind == "videos" else 3
    assert [row.episode_index for row in rows] == list(range(count))
    assert {row.task for row in rows} == {GOOD}
    assert {row.confidence for row in rows} == {np.float32(0.9)}
    assert {row.refinements for row in rows} == {1}, "the second look changed nothing"
    assert all(row.camera_views == CAMERAS for row in rows)
    assert (summary.done, summary.trusted, summary.incomplete) == (count, count, False)
    assert [server.of_stage(stage) for stage in ("instruction", "refinement", "views")] == [count, count, 2]
    assert (provenance["model"], provenance["backend"]) == ("tiny-vlm", "openai")
    assert provenance["revision"] is None, "a local folder has none"
    assert set(provenance["prompts"]) == {"instruction", "refinement", "views"}
    assert provenance["counts"]["with_task"] == count
    assert summary.prompt_tokens == 1000 * server.number == provenance["tokens"]["prompt"]


def test_the_model_sees_the_frames_that_are_meant_and_the_same_ones_first(annotated, tmp_path, newer):
    seen = {}

    def answer(handler, body, _):
        seen.setdefault(images_of(body), []).append(body["messages"][1]["content"])
        handler.send(200, completion(good_answer(body)))

    with serving(answer) as server:
        annotated(newer, server.url, frames=3)
    journal = read_results(tmp_path / "out", "ann/box")
    found = set()
    for contents in seen.values():
        assert len({json.dumps(content[:-1]) for content in contents}) == 1, "one prefix for all stages"
        jpegs = [part["image_url"]["url"] for part in contents[0] if "image_url" in part]
        found.add(tuple(number_in(decode_image(base64.b64decode(url.partition(",")[2]))) for url in jpegs))
    expected = set()
    for episode, result in journal.results.items():
        assert set(result.frames) == set(CAMERAS)
        frames = result.frames["observation.images.front"]
        assert (frames[0], frames[-1], len(frames)) == (0, (9, 12, 7)[episode] - 1, 3)
        # Slots put the wrist first, and the images tell camera, episode and frame.
        expected.add(tuple(camera * 1000 + episode * 100 + frame for camera in (1, 0) for frame in frames))
    assert found == {tuple(number % 4096 for number in numbers) for numbers in expected}


def test_a_second_call_asks_for_nothing_and_a_new_prompt_for_its_stage_alone(annotated, tmp_path, videos):
    with serving() as server:
        annotated(videos, server.url)
        first = server.number
        again = annotated(videos, server.url)
        assert (server.number, again.reused, again.done) == (first, 4, 0)
        stages = {}
        for stage in ("refinement", "views", "instruction"):
            folder = tmp_path / stage
            folder.mkdir()
            (folder / f"{stage}.txt").write_text((FOLDER / f"{stage}.txt").read_text() + "\nBe brief.")
            server.asked.clear()
            annotated(videos, server.url, prompts=folder)
            stages[stage] = {name: server.of_stage(name) for name in ("instruction", "refinement", "views")}
            annotated(videos, server.url)  # the answers to the old prompt are known no more: newest counts
    assert stages["refinement"] == {"instruction": 0, "refinement": 4, "views": 0}
    assert stages["views"] == {"instruction": 0, "refinement": 0, "views": 3}
    assert stages["instruction"] == {"instruction": 4, "refinement": 4, "views": 0}
    rows, _ = rows_of(tmp_path)
    assert [row.task for row in rows] == [GOOD] * 4


@pytest.mark.parametrize("part", ["instruction", "refinements"])
def test_a_journal_whose_answers_are_none_is_asked_again(annotated, tmp_path, videos, part):
    """Where they are needed: for the views of more episodes."""
    with serving() as server:
        annotated(videos, server.url, view_episodes=0)
        path = tmp_path / "out/ann/box.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        damaged = {"instruction": {"instruction": 5}, "refinements": [{"instruction": 5}]}
        path.write_text("".join(json.dumps(line | {part: damaged[part]}) + "\n" for line in lines))
        server.asked.clear()
        summary = annotated(videos, server.url, view_episodes=1)
    assert (summary.done, summary.incomplete) == (1, False)
    assert server.of_stage("refinement") == 1
    assert {row.task for row in rows_of(tmp_path)[0]} == {GOOD}


def test_refinement_ends_when_the_text_is_stable(annotated, tmp_path, videos):
    texts = {1: "Pick up the cube.", 2: "Pick up the red cube.", 3: "Grasp the red cube quickly."}
    looks = []

    def answer(handler, body, _):
        text = body["messages"][1]["content"][-1]["text"]
        drafts = [number for number, draft in texts.items() if f"<draft>{draft}</draft>" in text]
        number = drafts[0] + 1 if drafts else 1
        looks.append(number)
        handler.send(200, completion(good_answer(body, texts.get(number, texts[3]))))

    with serving(answer) as server:
        annotated(videos, server.url, max_refinements=5, max_episodes=1, view_episodes=0)
        assert looks == [1, 2, 3, 4]
        result = read_results(tmp_path / "out", "ann/box").results[0]
        assert result.proposed == texts[3]
        assert len(result.refinements) == 3
        assert "revised" in result.flags
        assert "unstable" not in result.flags
        assert result.confidence < 0.9
        annotated(videos, server.url, max_refinements=1, max_episodes=2, view_episodes=0)
    unstable = read_results(tmp_path / "out", "ann/box").results[1]
    assert unstable.proposed == texts[2]
    assert "unstable" in unstable.flags


def test_low_confidence_and_unseen_objects_keep_the_recorded_text(annotated, tmp_path, videos):
    def answer(handler, body, number):
        changes = {"confidence": 0.2} if "pick the cube" in json.dumps(body) else {}
        denied = {"not_seen": ["the blue bowl"]} if "not_seen" in json.dumps(body) else {}
        handler.send(200, completion(good_answer(body, **changes) | denied))

    with serving(answer) as server:
        summary = annotated(videos, server.url, view_episodes=0)
    rows, _ = rows_of(tmp_path)
    assert [row.task for row in rows] == [None] * 4
    assert all({"object_not_seen:the blue bowl", "low_confidence"} <= set(row.flags) for row in rows)
    assert rows[1].original_task == "pick the cube"
    assert rows[1].confidence < rows[0].confidence < 0.5
    assert (summary.done, summary.trusted, summary.incomplete) == (4, 0, False)
    results = read_results(tmp_path / "out", "ann/box").results
    assert results[0].proposed == GOOD, "the reviewer may still accept it"


def test_a_dataset_that_changed_is_said_and_asked_anew(annotated, tmp_path, caplog):
    root = write_v2(tmp_path / "set", Recording(lengths=(5, 6)))
    with serving() as server:
        annotated(root, server.url)
        path = root / "meta/episodes.jsonl"
        path.write_text(path.read_text().replace("pick the cube", "pick a cube"))
        server.asked.clear()
        summary = annotated(root, server.url)
        assert server.of_stage("instruction") == 2
    assert list(summary.changed) == ["ann/box"]
    assert "its episodes are annotated again" in caplog.text
    rows, provenance = rows_of(tmp_path)
    assert rows[0].original_task == "pick a cube"
    assert provenance["state"] != summary.changed["ann/box"]


def test_only_flagged_asks_about_what_rules_could_not_do(annotated, tmp_path, videos):
    summary = annotated(videos, backend="rules")
    rows, provenance = rows_of(tmp_path)
    assert [row.task for row in rows] == [None, "Pick the cube.", None, "Pick the cube."]
    assert rows[0].flags == ("needs_vlm", "junk")
    assert rows[0].camera_views == {"observation.images.front": "front", "observation.images.wrist": "wrist"}
    assert (summary.done, provenance["model"], summary.requests) == (4, "rules", 0)
    assert annotated(videos, backend="rules").reused == 4
    with serving() as server:
        annotated(videos, server.url, only_flagged=True, view_episodes=0)
        assert server.of_stage("instruction") == 2
    rows, provenance = rows_of(tmp_path)
    assert [row.task for row in rows] == [GOOD, "Pick the cube.", GOOD, "Pick the cube."]
    assert provenance["models"] == {"openai:tiny-vlm": 2, "rules:rules": 2}
    annotated(videos, backend="rules")
    assert rows_of(tmp_path)[0] == rows, "rules never take the place of a model"


def test_what_models_see_wins_over_names_of_cameras(annotated, tmp_path, videos):
    annotated(videos, backend="rules")
    with serving() as server:
        annotated(videos, server.url, view_episodes=1)
        assert rows_of(tmp_path)[0][0].camera_views == CAMERAS, "one model against four names"
        annotated(videos, server.url, model="another", view_episodes=0)
    rows, provenance = rows_of(tmp_path)
    assert provenance["models"] == {"openai:another": 4}
    assert all(row.camera_views == CAMERAS for row in rows), "it was not asked about views"


def test_what_was_rejected_is_asked_of_another_model_and_of_another_prompt(annotated, tmp_path, videos):
    out, say = tmp_path / "out", {"text": GOOD}

    def answer(handler, body, _):
        handler.send(200, completion(good_answer(body, say["text"])))

    def texts():
        return [row.task for row in rows_of(tmp_path)[0]]

    with serving(answer) as server:
        annotated(videos, server.url, view_episodes=0)
        for episode, verdict in ((0, "accepted"), (1, "rejected")):
            decision = {"repo_id": "ann/box", "episode": episode, "verdict": verdict, "task": GOOD}
            decide(out, {"ann/box"}, decision)
        append(out, "ann/box", Review(2, "rejected"))  # of whatever text
        assert annotated(videos, server.url, view_episodes=0).reused == 4
        assert texts() == [GOOD, None, None, GOOD]
        server.asked.clear()
        assert annotated(videos, server.url, model="another", view_episodes=0).done == 2
        assert server.of_stage("instruction") == 2
        assert texts() == [GOOD, None, None, GOOD], "the same text stays rejected"
        say["text"] = "Push the red cube."
        (tmp_path / "instruction.txt").write_text((FOLDER / "instruction.txt").read_text() + "\nBe brief.")
        assert annotated(videos, server.url, prompts=tmp_path, view_episodes=0).done == 2
        assert texts() == [GOOD, "Push the red cube.", None, "Push the red cube."]
        assert annotated(videos, server.url, prompts=tmp_path, view_episodes=0).reused == 4


def test_frames_are_decoded_once_and_come_from_the_cache_then(annotated, tmp_path, videos, monkeypatch):
    with serving() as server:
        annotated(videos, server.url)
        monkeypatch.setattr("depi.annotate.frames._decode", lambda *_: pytest.fail("decoded again"))
        (tmp_path / "out/ann/box.jsonl").unlink()
        summary = annotated(videos, server.url)
    assert summary.done == 4


def test_a_dataset_that_cannot_be_read_costs_only_itself(annotated, tmp_path, videos):
    path = tmp_path / "broken"
    write_v2(path, Recording(lengths=(5, 6, 7)))
    (path / "videos/chunk-000/observation.images.front/episode_000001.mp4").write_bytes(b"no video")
    with serving() as server:
        summary = annotated(path, server.url)
        assert summary.failures["ann/box"].keys() == {1}
        assert "episode_000001.mp4 at 0.000 s is unreadable" in summary.failures["ann/box"][1]
        assert (summary.done, summary.incomplete) == (2, True)
    assert [row.episode_index for row in rows_of(tmp_path)[0]] == [0, 2]


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ("videos/chunk-000/observation.images.front/episode_000001.mp4", "mp4 is missing"),
        ("data/chunk-000/episode_000001.parquet", "parquet is missing"),
    ],
)
def test_an_episode_that_is_lost_costs_only_itself(annotated, tmp_path, lost, reason):
    path = tmp_path / "lost"
    write_v2(path, Recording(lengths=(5, 6, 7)))
    (path / lost).unlink()
    with serving() as server:
        summary = annotated(path, server.url)
    assert reason in summary.failures["ann/box"][1]
    assert [row.episode_index for row in rows_of(tmp_path)[0]] == [0, 2]


def test_a_table_that_cannot_be_read_costs_its_episode(annotated, tmp_path):
    path = tmp_path / "broken"
    write_v2(path, Recording(lengths=(5, 6, 7)))
    (path / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1 no table PAR1")
    with serving() as server:
        summary = annotated(path, server.url)
    assert "cannot be read as parquet" in summary.failures["ann/box"][1]
    assert [row.episode_index for row in rows_of(tmp_path)[0]] == [0, 2]
