"""Decisions over the whole catalogue: duplicates, and the order of the datasets."""

from collections.abc import Iterable
from datetime import UTC, datetime

from depi.catalog.catalogue import ACCEPTED, FAILED, REJECTED, Row
from depi.catalog.duplicates import Kept, Overlap
from depi.catalog.facts import Thresholds
from depi.catalog.score import score

_NEVER = datetime.max.replace(tzinfo=UTC)
# Up to this many equal runs of landmarks occur by chance.
_CHANCE = 6
_NAMED = 4


def not_duplicate(overlap: Overlap, limits: Thresholds) -> str | None:
    """No more than `--max_shared_episodes` of its episodes are in accepted datasets published earlier.

    Exactly, number by number: forks, re-uploads, renamed copies, subsets and merges. The earliest is kept.
    """
    if overlap.equal is not None:
        return f"same actions as {overlap.equal}, published earlier"
    if overlap.episode_share <= limits.max_shared_episodes:
        return None
    return _shared_text(overlap)


def not_near_duplicate(overlap: Overlap, limits: Thresholds) -> str | None:
    """No more than `--max_shared_motion` of its motion is in accepted datasets published earlier.

    Motion that is equal to the frame, as no person repeats it: episodes that were trimmed, rounded or
    converted to other units. Unchanged episodes are counted by the rule for exact duplicates.
    """
    share = overlap.run_share - overlap.episode_share
    if sum(overlap.runs.values()) <= _CHANCE or share <= limits.max_shared_motion:
        return None
    found = f"{overlap.run_share:.0%} of it found again"
    return f"same motion as {_named(overlap.runs)}, published earlier ({found})"


def shared_episodes(overlap: Overlap, limits: Thresholds) -> str | None:
    """Some of its episodes, and no more than allowed, are in accepted datasets published earlier."""
    return _shared_text(overlap) if overlap.episodes else None


def settle(
    rows: Iterable[Row], disabled: frozenset[str] = frozenset(), limits: Thresholds | None = None
) -> list[Row]:
    """Reject duplicates, score what remains, and return all rows in the order of the catalogue.

    Accepted come first, best first; then rejected and failed, each by repo_id. Rows of an earlier
    catalogue may be among them: their duplicates are found again. A dataset is compared with those kept
    before it, never with a refused one, so that a chain of copies does not lose data.
    """
    rows, limits = list(rows), limits or Thresholds()
    for row in rows:
        _forget_duplicate(row)
    accepted = [row for row in rows if row.verdict == ACCEPTED]
    accepted.sort(key=lambda row: (row.created_at or _NEVER, row.repo_id))
    kept = Kept(accepted)
    for position, row in enumerate(accepted):
        overlap = kept.overlap(position)
        if not _refuse(row, overlap, disabled, limits):
            if remark := shared_episodes(overlap, limits):
                row.flags = [*row.flags, f"shared_episodes: {remark}"]
            kept.keep(position)
    for row in rows:
        row.score = score(row) if row.verdict == ACCEPTED else None
    place = {ACCEPTED: 0, REJECTED: 1, FAILED: 2}
    return sorted(rows, key=lambda row: (place[row.verdict], -(row.score or 0), row.repo_id))


def _refuse(row: Row, overlap: Overlap, disabled: frozenset[str], limits: Thresholds) -> bool:
    """Reject a duplicate; an exact one is kept where the rule for exact ones is switched off."""
    exact = not_duplicate(overlap, limits)
    reason = exact or not_near_duplicate(overlap, limits)
    rule = "not_duplicate" if exact else "not_near_duplicate"
    if reason is None or rule in disabled:
        return False
    row.verdict, row.reasons = REJECTED, [f"{rule}: {reason}"]
    if exact:
        row.duplicate_of = overlap.equal or next(iter(overlap.episodes))
    else:
        row.near_duplicate_of = next(iter(overlap.runs))
    return True


def _forget_duplicate(row: Row) -> None:
    if row.duplicate_of is not None or row.near_duplicate_of is not None:
        row.verdict, row.reasons, row.duplicate_of, row.near_duplicate_of = ACCEPTED, [], None, None
    row.flags = [flag for flag in row.flags if not flag.startswith("shared_episodes:")]


def _shared_text(overlap: Overlap) -> str:
    count = sum(overlap.episodes.values())
    each = [f"{repo_id} ({number})" for repo_id, number in list(overlap.episodes.items())[:_NAMED]]
    names = ", ".join(each) if len(overlap.episodes) > 1 else _named(overlap.episodes)
    more = f" and {len(overlap.episodes) - _NAMED} more" if len(overlap.episodes) > _NAMED else ""
    return f"{count} of {overlap.total} episodes are in {names}{more}, published earlier"


def _named(counts: dict[str, int]) -> str:
    more = f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else ""
    return ", ".join(list(counts)[:_NAMED]) + more
