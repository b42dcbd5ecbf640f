"""The catalogue in numbers."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from depi.catalog.catalogue import ACCEPTED, REJECTED, Row
from depi.catalog.episodes import count_faults

NOT_KNOWN = "not known"

KINDS: dict[str, Callable[[Row], object]] = {
    "version": lambda row: row.codebase_version,
    "joint convention": lambda row: row.joint_convention,
    "fps": lambda row: None if row.fps is None else f"{row.fps:g}",
    "cameras": lambda row: row.num_cameras,
    "arms": lambda row: None if row.bimanual is None else 2 if row.bimanual else 1,
    "evaluation run": lambda row: None if row.evaluation is None else "yes" if row.evaluation else "no",
    "licence": lambda row: row.license,
    "robot type": lambda row: row.robot_type,
}


def count(rows: Sequence[Row]) -> dict[str, Any]:
    """JSON-able numbers: `datasets`, totals of the `accepted`, and counts by `verdict`, `rule`,
    `episode rule` and `kinds`.

    `kinds` holds for each of KINDS the numbers of accepted and of all datasets, largest first; datasets
    without a value count as "not known".
    """
    accepted = [row for row in rows if row.verdict == ACCEPTED]
    seconds = sum((row.frames or 0) / row.fps for row in accepted if row.fps)
    return {
        "datasets": len(rows),
        "accepted": {
            "accepted": len(accepted),
            "episodes": sum(row.episodes or 0 for row in accepted),
            "bad episodes": sum(row.bad_episodes or 0 for row in accepted),
            "frames": sum(row.frames or 0 for row in accepted),
            "hours": round(seconds / 3600, 1),
        },
        "verdict": most_first(row.verdict for row in rows),
        "rule": count_by_rule(rows),
        "episode rule": count_faults(accepted),
        "kinds": {title: _count_kind(rows, kind) for title, kind in KINDS.items()},
    }


def count_by_rule(rows: Iterable[Row]) -> dict[str, int]:
    """How many rejected rows each rule refused, most first; a row counts for each of its reasons."""
    return most_first(
        reason.partition(":")[0] for row in rows if row.verdict == REJECTED for reason in row.reasons
    )


def most_first(names: Iterable[str] | Counter[str]) -> dict[str, int]:
    """How often each name occurs, most first, then by name; of a Counter, its counts."""
    return dict(sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0])))


def _count_kind(rows: Sequence[Row], kind: Callable[[Row], object]) -> dict[str, dict[str, int]]:
    named = [(row.verdict, NOT_KNOWN if (value := kind(row)) is None else str(value)) for row in rows]
    accepted = Counter(name for verdict, name in named if verdict == ACCEPTED)
    everything = most_first(name for _, name in named)
    return {name: {"accepted": accepted[name], "all": number} for name, number in everything.items()}
