"""What changed between two catalogues."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from depi.catalog.catalogue import Row

COMPARED = ("verdict", "reasons", "revision")


@dataclass(frozen=True)
class Difference:
    """Rows by repo_id: those only in the later catalogue, only in the earlier, and pairs that differ."""

    added: list[Row]
    removed: list[Row]
    changed: list[tuple[Row, Row]]

    def __bool__(self) -> bool:
        """Whether there is any difference."""
        return bool(self.added or self.removed or self.changed)

    def to_json(self) -> dict[str, Any]:
        """repo_id -> the compared columns; for changed rows those of before (`old`) and after (`new`)."""
        return {
            "added": {row.repo_id: _compared(row) for row in self.added},
            "removed": {row.repo_id: _compared(row) for row in self.removed},
            "changed": {
                new.repo_id: {"old": _compared(old), "new": _compared(new)} for old, new in self.changed
            },
        }


def compare(old: Iterable[Row], new: Iterable[Row]) -> Difference:
    """Compare verdict, reasons and commit; when and how a dataset was scored does not count."""
    before = {row.repo_id: row for row in old}
    after = {row.repo_id: row for row in new}
    both = sorted(before.keys() & after.keys())
    return Difference(
        added=[after[repo_id] for repo_id in sorted(after.keys() - before.keys())],
        removed=[before[repo_id] for repo_id in sorted(before.keys() - after.keys())],
        changed=[
            (before[repo_id], after[repo_id])
            for repo_id in both
            if _compared(before[repo_id]) != _compared(after[repo_id])
        ],
    )


def _compared(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in COMPARED}
