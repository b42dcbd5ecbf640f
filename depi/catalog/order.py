"""What is decided over the whole catalogue: duplicates, and which dataset comes first."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime

from depi.catalog.store import ACCEPTED, FAILED, REJECTED, Row
from depi.catalog.text import is_instruction

_NEVER = datetime.max.replace(tzinfo=UTC)


def not_duplicate(row: Row, originals: dict[str, Row]) -> str | None:
    """No accepted dataset that was published earlier has exactly the same actions."""
    original = originals.get(row.fingerprint or "")
    return None if original is None else f"same actions as {original.repo_id}, published earlier"


def settle(rows: Iterable[Row], disabled: frozenset[str] = frozenset()) -> list[Row]:
    """Reject duplicates, score what remains, and return all rows in the order of the catalogue.

    Accepted come first, best first; then rejected and failed, each by repo_id. Rows of an earlier
    catalogue may be among them: that they were a duplicate of something is decided anew.
    """
    rows = list(rows)
    for row in rows:
        _forget_duplicate(row)
    originals: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (row.created_at or _NEVER, row.repo_id)):
        if row.verdict != ACCEPTED:
            continue
        reason = not_duplicate(row, originals)
        if reason is not None and "not_duplicate" not in disabled:
            row.verdict = REJECTED
            row.reasons = [f"not_duplicate: {reason}"]
            row.duplicate_of = originals[row.fingerprint or ""].repo_id
        elif row.fingerprint is not None:
            originals.setdefault(row.fingerprint, row)
    for row in rows:
        row.score = score(row) if row.verdict == ACCEPTED else None
    place = {ACCEPTED: 0, REJECTED: 1, FAILED: 2}
    return sorted(rows, key=lambda row: (place[row.verdict], -(row.score or 0), row.repo_id))


def score(row: Row) -> float:
    """How much a dataset has to teach, 0..1, rounded to 4 places.

    0.5 x length (0 at 100 frames, 1 at 100,000, logarithmic) + 0.3 x cameras (up to 3)
    + 0.2 x share of its task texts that are usable instructions.
    """
    length = min(1.0, max(0.0, math.log10(max(row.frames or 0, 1) / 100) / 3))
    cameras = min(row.num_cameras or 0, 3) / 3
    tasks = row.tasks or []
    usable = sum(is_instruction(task) for task in tasks) / len(tasks) if tasks else 0.0
    return round(0.5 * length + 0.3 * cameras + 0.2 * usable, 4)


def _forget_duplicate(row: Row) -> None:
    if row.duplicate_of is not None:
        row.verdict, row.reasons, row.duplicate_of = ACCEPTED, [], None
