from datetime import UTC, datetime

import pytest

from depi.catalog.catalogue import Row
from depi.catalog.order import settle
from depi.catalog.score import WEIGHTS, parts, score


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


BEST = {
    "frames": 100_000,
    "episodes": 100,
    "bad_episodes": 0,
    "good_frames": 100_000,
    "num_remarks": 0,
    "num_cameras": 3,
    "camera_sizes": ["640x480"] * 3,
    "tasks": ["pick up the cube"],
    "idle": 0.0,
    "smoothness": 0.95,
    "success_column": "next.success",
    "downloads": 999,
}
WORST = {
    **{"frames": 100, "episodes": 1, "bad_episodes": 1, "good_frames": 0, "num_remarks": 10**6},
    **{"num_cameras": 0, "tasks": [], "smoothness": 0.0, "idle": 1.0},
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (BEST, 1.0),
        ({**BEST, "good_frames": 10**9, "num_cameras": 9, "downloads": 10**9}, 1.0),
        ({**WORST, "repo_id": "a/test"}, 0.0),
        ({**WORST, "repo_id": "a/test", "frames": 1, "tasks": ["test"], "downloads": 0}, 0.0),
        ({**BEST, "good_frames": 1000}, 0.8333),
        ({**BEST, "good_frames": None, "frames": 1000}, 0.8333),
        ({**BEST, "good_frames": 99_000}, 0.9996),
        ({**BEST, "bad_episodes": 50}, 0.9),
        ({**BEST, "bad_episodes": 1}, 0.9961),
        ({**BEST, "num_remarks": 1}, 0.998),
        ({**BEST, "num_remarks": 100, "bad_episodes": 50}, 0.8667),
        ({**BEST, "bad_episodes": None}, 0.9),
        ({**BEST, "flags": ["approximate_joints: x", "junk_task_text: y"]}, 1.0),
        ({**BEST, "flags": ["shared_episodes: 3 of 100"]}, 0.998),
        ({**BEST, "idle": 0.9}, 0.8267),
        ({**BEST, "idle": None}, 0.9),
        ({**BEST, "num_cameras": 1}, 0.925),
        ({**BEST, "camera_sizes": ["640x480", "320x240"]}, 0.9719),
        ({**BEST, "tasks": ["test", "pick up the cube"]}, 0.95),
        ({**BEST, "smoothness": 0.45}, 0.96),
        ({**BEST, "smoothness": None}, 0.96),
        ({**BEST, "success_column": None}, 0.97),
        ({**BEST, "repo_id": "test/pick_failed_2"}, 0.94),
        ({**BEST, "repo_id": "a/all:sets/pick_wip"}, 0.94),
        ({**BEST, "repo_id": "test/pick_the_latest_trials_outside"}, 1.0),
        ({**BEST, "downloads": None}, 0.94),
        ({**BEST, "downloads": 30}, 0.9698),
    ],
)
def test_the_score_is_the_documented_sum(fields, expected):
    assert score(row(**{"repo_id": "a/a", **fields})) == expected


def test_the_weights_add_up_and_every_part_has_one():
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    values = parts(row("a/a"))
    assert set(values) == set(WEIGHTS)
    assert all(0 <= value <= 1 for value in values.values())
    assert all(f"{name}:" in (parts.__doc__ or "") for name in WEIGHTS)


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
