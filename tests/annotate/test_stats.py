import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_annotations import HAND, REVISION, TOP, failure, result, write

from depi.annotate.episode_journal import RULES, Review, append, journal_path, to_line
from depi.annotate.sidecar import is_current, write_sidecar
from depi.annotate.stats import count, main
from depi.datasets.samples.annotations import EpisodeAnnotation, read_annotations, write_annotations
from depi.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    unsure = result(
        1, task=None, confidence=0.24, flags=("low_confidence: passes disagree", "low_confidence")
    )
    write(
        tmp_path,
        "ann/one",
        result(0),
        unsure,
        failure(2, "the server answered 500"),
        failure(3, "the server answered 500"),
        result(3, confidence=1.0),
        Review(0, "accepted", "Pick up the red cube.", REVISION),
    )
    write(
        tmp_path,
        "bob/two",
        result(0, backend=RULES, model=RULES, confidence=None, tokens={}, prompts={}, views={TOP: "top"}),
        result(4, tokens={"prompt": 10, "completion": 0}),
        result(4, tokens={"prompt": 20, "completion": 5}, views={TOP: "top"}),
    )
    write_annotations(
        tmp_path, "eve/three", [EpisodeAnnotation(0, "x", "Wipe the table.", {HAND: "side"})], {}
    )
    (tmp_path / "eve/broken.parquet").write_bytes(b"no parquet")
    (tmp_path / "report.jsonl").write_text("not an annotation\n")
    return tmp_path


def test_everything_is_counted_once(folder: Path):
    found = count(folder)
    assert found["datasets"] == 4
    assert found["episodes"] == {"all": 7, "with_task": 5, "kept_recorded": 1, "failed": 1, "reviewed": 1}
    assert found["flags"] == {"accepted": 1, "low_confidence": 1}
    # Accepted by a person is certain.
    assert found["confidence"] == {"unknown": 2, "0.9-1.0": 3, "0.2-0.3": 1}
    assert found["views"] == {"top": 2, "side": 1, "wrist": 1}
    assert found["models"] == {"openai:some/vlm": 4, "rules:rules": 1}
    assert found["prompts"] == {"instruct 1": 4, "refine 1": 4, "views 2": 4}
    # Both answers about episode 4 were paid for, and only four episodes have cost anything.
    assert found["tokens"] == {"prompt": 3030, "completion": 155, "per_episode": 796.2}
    assert found["reviews"] == {"accepted": 1}
    assert found["failures"] == {"the server answered 500": 1}
    assert list(found["damaged"]) == ["eve/broken"]


def test_printed_as_tables_and_as_json(folder: Path, capsys: pytest.CaptureFixture[str]):
    write(folder, "mallory/four", failure(0, "[bold]not markup[/bold] [/]"))
    assert main([f"--annotations={folder}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == count(folder)
    assert main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "[bold]not markup[/bold] [/]" in shown
    assert "low_confidence" in shown
    assert "openai:some/vlm" in shown


def test_only_the_newest_revision_counts(tmp_path: Path):
    newer = replace(result(0), revision="b" * 40, confidence=0.5)
    write(tmp_path, "ann/one", result(0), result(1), Review(0, "rejected", None, REVISION), newer)
    found = count(tmp_path)
    assert found["episodes"] == {"all": 1, "with_task": 1, "kept_recorded": 0, "failed": 0, "reviewed": 0}
    assert found["confidence"] == {"0.5-0.6": 1}


DAMAGE = [
    *[{"episode": value} for value in ("0", -1, True, 10**30, None)],
    *[{"revision": value} for value in (5, ["a"])],
    *[{"confidence": value} for value in ("x", 2, float("nan"), True)],
    *[{"tokens": value} for value in ({"prompt": "x"}, {"prompt": -1}, [], None)],
    *[{"prompts": value} for value in ([["a", "b"]], {"a": 1})],
    *[{"views": value} for value in ({TOP: "inside"}, {TOP: ["top"]}, [TOP])],
    *[{"frames": value} for value in ({TOP: "012"}, {TOP: [0.5]}, {TOP: [1] * 65})],
    *[{"flags": value} for value in ("low", [1], ["x"] * 65)],
    *[{"task": 5}, {"model": None}, {"at": 0}, {"instruction": "x"}, {"refinements": [1]}, {"more": 1}],
    *[{"seconds": value} for value in ("x", float("inf"))],
    *[{"recorded": "\ud800"}, {"kind": "review"}, {"kind": []}],
    *[{"kind": "failure", "reason": "x", "revision": 5}, {"kind": "review", "review": {"verdict": []}}],
]


@pytest.mark.parametrize("changes", DAMAGE, ids=str)
@pytest.mark.parametrize("revision", [REVISION, "b" * 40])
def test_a_line_of_wrong_types_is_passed_over(tmp_path, caplog, changes, revision):
    """As one may come with the journal of a stranger, also about a revision that no longer counts."""
    line = json.loads(to_line(result(1, revision=revision))) | changes
    if line["kind"] == "failure":
        line = {key: line[key] for key in ("kind", "episode", "backend", "model", "reason", "revision")}
    path = journal_path(tmp_path, "ann/one")
    path.parent.mkdir()
    path.write_text(json.dumps(line) + "\n")
    write(tmp_path, "ann/one", result(0))
    assert count(tmp_path)["episodes"]["all"] == 1
    assert "1 of 2 lines of" in caplog.text
    assert [row.episode_index for row in read_annotations(tmp_path, "ann/one")[0]] == [0]


def test_a_sidecar_that_a_kill_left_half_written_is_written_again(tmp_path, monkeypatch):
    """At any moment it can be read, and the next call sees that it must be made anew."""
    other = "b" * 40
    write(tmp_path, "ann/one", result(0, revision=other), result(0), result(1, model="a/new"))
    assert is_current(tmp_path, "ann/one", REVISION)
    for revision, prepare in ((REVISION, lambda: append(tmp_path, "ann/one", result(2))), (other, int)):
        prepare()
        for killed in ("write_json", "pq.write_table"):
            monkeypatch.setattr(f"depi.datasets.samples.annotations.{killed}", stop)
            with pytest.raises(KeyboardInterrupt):
                write_sidecar(tmp_path, "ann/one", revision)
            monkeypatch.undo()
            assert len(read_annotations(tmp_path, "ann/one")[0]) >= 2
            assert not is_current(tmp_path, "ann/one", revision)
        write_sidecar(tmp_path, "ann/one", revision)
        assert is_current(tmp_path, "ann/one", revision)
        rows, provenance = read_annotations(tmp_path, "ann/one")
        assert (provenance["revision"], provenance["counts"]["episodes"]) == (revision, len(rows))


def stop(*args, **flags):
    raise KeyboardInterrupt


def test_an_empty_folder_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path} holds no annotations yet: `depi annotate` writes them\n"


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no folder .*/none of annotations"):
        count(tmp_path / "none")
