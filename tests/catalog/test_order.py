from datetime import UTC, datetime

import pytest

from depi.catalog.order import score, settle
from depi.catalog.store import Row


def row(repo_id: str, verdict: str = "accepted", day: int | None = 1, **fields) -> Row:
    created = None if day is None else datetime(2025, 1, day, tzinfo=UTC)
    fields = {
        "frames": 1000,
        "num_cameras": 1,
        "tasks": ["pick up the cube"],
        "fingerprint": repo_id,
        **fields,
    }
    return Row(repo_id=repo_id, verdict=verdict, created_at=created, **fields)


def ids(rows: list[Row]) -> list[str]:
    return [row.repo_id for row in rows]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"frames": 100, "num_cameras": 0, "tasks": []}, 0.0),
        ({"frames": 100_000, "num_cameras": 3, "tasks": ["pick up the cube"]}, 1.0),
        ({"frames": 10**9, "num_cameras": 9, "tasks": ["pick up the cube"]}, 1.0),
        ({"frames": 1, "num_cameras": 0, "tasks": ["test"]}, 0.0),
        ({"frames": 1000, "num_cameras": 1, "tasks": ["test", "pick up the cube"]}, 0.3667),
    ],
)
def test_the_score_is_the_documented_sum(fields, expected):
    assert score(row("a/a", **fields)) == expected


def test_best_first_then_rejected_then_failed_and_names_break_ties():
    rows = [
        row("a/failed", "failed"),
        row("z/long", frames=50_000),
        row("b/same"),
        row("a/rejected", "rejected", reasons=["x: y"]),
        row("a/same"),
    ]
    settled = settle(rows)
    assert ids(settled) == ["z/long", "a/same", "b/same", "a/rejected", "a/failed"]
    assert ids(settle(reversed(rows))) == ids(settled)
    assert [settled[0].score is None, settled[3].score is None] == [False, True]


def test_the_earliest_of_equal_datasets_is_kept():
    rows = [
        row("a/copy", day=3, fingerprint="f"),
        row("b/unknown_date", day=None, fingerprint="f"),
        row("z/original", day=1, fingerprint="f"),
    ]
    settled = settle(rows)
    assert ids(settled) == ["z/original", "a/copy", "b/unknown_date"]
    for copy in settled[1:]:
        assert copy.verdict == "rejected"
        assert copy.duplicate_of == "z/original"
        assert copy.reasons == ["not_duplicate: same actions as z/original, published earlier"]


def test_a_rejected_original_does_not_cost_its_copy():
    rows = [row("a/broken", "rejected", day=1, fingerprint="f"), row("b/copy", day=2, fingerprint="f")]
    assert [row.verdict for row in settle(rows)] == ["accepted", "rejected"]


def test_duplicates_are_decided_anew_when_the_original_is_gone():
    rows = settle([row("a/original", day=1, fingerprint="f"), row("b/copy", day=2, fingerprint="f")])
    copy = rows[1]
    assert copy.verdict == "rejected"
    (alone,) = settle([copy])
    assert (alone.verdict, alone.reasons, alone.duplicate_of) == ("accepted", [], None)
    assert alone.score is not None


def test_the_rule_can_be_switched_off():
    rows = [row("a/original", fingerprint="f"), row("b/copy", fingerprint="f")]
    assert {row.verdict for row in settle(rows, frozenset({"not_duplicate"}))} == {"accepted"}
