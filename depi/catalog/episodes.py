"""The verdict per episode: `episodes.parquet`, beside the catalogue, and what follows for the dataset."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import pyarrow as pa

from depi.catalog.facts import EpisodeVerdict, Thresholds
from depi.catalog.text import clean
from depi.datasets.judging.faults import Fault

_NAMED = 5
_OF_EPISODES = re.compile(r"bad_episodes: |\w+: in episodes? \d")

SCHEMA = pa.schema(
    {
        "repo_id": pa.string(),
        "revision": pa.string(),
        "episode": pa.int64(),
        "frames": pa.int64(),
        "bad": pa.bool_(),
        "faults": pa.list_(pa.string()),
        "leaves_out": pa.list_(pa.bool_()),
        "begin": pa.list_(pa.int64()),
        "end": pa.list_(pa.int64()),
    }
)


class Judged(Protocol):
    """The fields of a catalogue's row (`depi.catalog.catalogue.Row`) that tell of its episodes."""

    repo_id: str
    revision: str | None
    judged: str | None
    bad_episodes: int | None
    good_frames: int | None
    num_remarks: int | None
    flags: list[str]


def verdicts_of(
    numbers: Sequence[int], frames: Sequence[int], faults: Iterable[Fault]
) -> list[EpisodeVerdict]:
    """The verdict on each episode, by its number and length, from the faults of all."""
    found: dict[int, list[Fault]] = {}
    for fault in map(_printable, faults):
        found.setdefault(fault.episode, []).append(fault)
    return [
        EpisodeVerdict(number, length, tuple(found.get(number, ())))
        for number, length in zip(numbers, frames, strict=True)
    ]


def add_verdicts(row: Judged, verdicts: Sequence[EpisodeVerdict]) -> None:
    """Fill in what a row says of its episodes."""
    row.judged = _pack(verdicts)
    row.bad_episodes = sum(verdict.bad for verdict in verdicts)
    row.good_frames = sum(verdict.frames for verdict in verdicts if not verdict.bad)
    row.num_remarks = sum(not fault.leaves_out for verdict in verdicts for fault in verdict.faults)


def add_faults(row: Judged, faults: Sequence[Fault], limits: Thresholds) -> str | None:
    """Add faults that were found later, as in the videos, to a row's episodes.

    Returns:
        The reason for refusing the dataset, where it has too few good episodes now.
    """
    known = verdicts(row)
    everything = [*(fault for verdict in known for fault in verdict.faults), *map(_printable, faults)]
    # A row of an earlier call has those of its videos already.
    everything = list(dict.fromkeys(everything))
    changed = verdicts_of([each.episode for each in known], [each.frames for each in known], everything)
    add_verdicts(row, changed)
    row.flags = [flag for flag in row.flags if not _OF_EPISODES.match(flag)] + episode_flags(changed)
    return too_few_good(changed, limits)


def episode_flags(verdicts: Sequence[EpisodeVerdict]) -> list[str]:
    """What a dataset's flags say of its episodes: which are left out, and the remarks on others."""
    bad = "; ".join(summaries(verdicts, leaves_out=True))
    flags = [f"bad_episodes: {bad}"] if bad else []
    return [clean(flag, 500) for flag in (*flags, *summaries(verdicts, leaves_out=False))]


def too_few_good(verdicts: Sequence[EpisodeVerdict], limits: Thresholds) -> str | None:
    """Why a dataset with these episodes is not worth training on; None where it is."""
    bad = [verdict for verdict in verdicts if verdict.bad]
    if not bad:
        return None
    named = f"{len(bad)} of {len(verdicts)} episodes are bad ({'; '.join(summaries(bad, leaves_out=True))})"
    if len(bad) == len(verdicts) or len(bad) > limits.max_bad_episodes * len(verdicts):
        return f"{named}, at most {limits.max_bad_episodes:.0%} may be (--max_bad_episodes)"
    if len(verdicts) - len(bad) < limits.min_episodes:
        return f"{named}, at least {limits.min_episodes} good ones are needed (--min_episodes)"
    frames = sum(verdict.frames for verdict in verdicts if not verdict.bad)
    if frames < limits.min_frames:
        return f"{named}, the others have {frames} frames, {limits.min_frames} are needed (--min_frames)"
    return None


def summaries(verdicts: Iterable[EpisodeVerdict], leaves_out: bool) -> list[str]:
    """One text for each rule: "rule: in episodes 3, 7: what was found in the first of them"."""
    by_rule: dict[str, list[Fault]] = {}
    for verdict in verdicts:
        for fault in verdict.faults:
            if fault.leaves_out == leaves_out:
                by_rule.setdefault(fault.rule, []).append(fault)
    return [f"{rule}: in {_episodes(faults)}: {faults[0].text}" for rule, faults in by_rule.items()]


def _printable(fault: Fault) -> Fault:
    return replace(fault, text=clean(fault.text, 300))


def count_faults(rows: Iterable[Judged]) -> dict[str, int]:
    """How many episodes of these datasets have a fault of each rule, most first."""
    counts: Counter[str] = Counter()
    for row in rows:
        for verdict in verdicts(row):
            counts.update({fault.rule for fault in verdict.faults})
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _episodes(faults: Sequence[Fault]) -> str:
    numbers = list(dict.fromkeys(fault.episode for fault in faults))
    named = ", ".join(map(str, numbers[:_NAMED]))
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"episode{'s' if len(numbers) > 1 else ''} {named}{more}"


def verdicts(row: Judged) -> list[EpisodeVerdict]:
    """The verdicts on the episodes of a row; none where its tables were not judged."""
    return [
        EpisodeVerdict(episode, frames, tuple(Fault(rule, episode, *rest) for rule, *rest in faults))
        for episode, frames, faults in json.loads(row.judged or "[]")
    ]


def are_verdicts(judged: str | None) -> bool:
    """Whether a text of a row is what `add_verdicts` writes, or None."""
    try:
        packed = json.loads(judged or "[]")
    except (ValueError, RecursionError):
        return False
    return isinstance(packed, list) and all(map(_is_verdict, packed))


def _is_verdict(packed: Any) -> bool:
    match packed:
        case [int(number), int(frames), list(faults)] if number >= 0 and frames >= 0:
            return all(map(_is_fault, faults))
    return False


def _is_fault(packed: Any) -> bool:
    match packed:
        case [str(), str(), bool(), int() | None, int() | None]:
            return True
    return False


def _pack(verdicts: Sequence[EpisodeVerdict]) -> str:
    """As short text, since a catalogue in memory has a hundred thousand episodes."""
    packed = [
        [
            verdict.episode,
            verdict.frames,
            [[each.rule, each.text, each.leaves_out, each.begin, each.end] for each in verdict.faults],
        ]
        for verdict in verdicts
    ]
    return json.dumps(packed, separators=(",", ":"))


def episodes_table(rows: Iterable[Judged]) -> pa.Table:
    """The content of `episodes.parquet`: a row for each episode of each dataset whose tables were judged."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in rows:
        for verdict in verdicts(row):
            columns["repo_id"].append(row.repo_id)
            columns["revision"].append(row.revision)
            columns["episode"].append(verdict.episode)
            columns["frames"].append(verdict.frames)
            columns["bad"].append(verdict.bad)
            columns["faults"].append([str(fault) for fault in verdict.faults])
            for name in ("leaves_out", "begin", "end"):
                columns[name].append([getattr(fault, name) for fault in verdict.faults])
    return pa.table(columns, schema=SCHEMA)
