"""`depi catalog`: show what `depi collect-ids` has found."""

import difflib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from depi.catalog.catalogue import ACCEPTED, Row, load_catalog
from depi.catalog.compare import Difference, compare
from depi.catalog.counts import count
from depi.catalog.duplicates import unpack
from depi.catalog.episodes import verdicts
from depi.catalog.score import parts
from depi.datasets.judging.faults import Fault
from depi.datasets.recording.joints import JOINTS
from depi.errors import UserError
from depi.flags import parse_flags

USAGE = """usage: depi catalog VERB [--flag=value ...]

  show REPO_ID   everything known about one dataset
  export         the good episodes of datasets, for LeRobot's --dataset.episodes
  stats          how many datasets of which kind, and why others were rejected
  diff OLD NEW   what changed between two catalogues

`depi catalog VERB --help` lists a verb's flags."""


@dataclass
class ShowConfig:
    """Print everything that the catalogue knows about one dataset."""

    # The dataset: user/name, or user/name:folder in a collection.
    repo_id: str = ""
    # The folder that `depi collect-ids` wrote.
    data_ids: Path = Path("data_ids")
    # Print JSON instead of a table.
    json: bool = False

    def __post_init__(self) -> None:
        if not self.repo_id:
            raise UserError("depi catalog show needs a dataset: `depi catalog show USER/NAME`")


@dataclass
class ExportConfig:
    """Print the good episodes of a dataset, as LeRobot's commands take them:

    lerobot-train --dataset.repo_id=USER/NAME --dataset.episodes="$(depi catalog export USER/NAME)" ...

    Without a dataset, of all accepted ones: a JSON object {repo_id: {"revision": ..., "episodes": [...]}}.
    """

    # The dataset: user/name, or user/name:folder in a collection.
    repo_id: str = ""
    # The folder that `depi collect-ids` wrote.
    data_ids: Path = Path("data_ids")
    # Print a JSON object for a single dataset too.
    json: bool = False


@dataclass
class StatsConfig:
    """Count the catalogue's datasets by verdict, rule, format version, joint convention, fps, cameras, arms,
    evaluation runs, licence and robot type, and the episodes, frames and hours of the accepted ones.
    """

    # The folder that `depi collect-ids` wrote.
    data_ids: Path = Path("data_ids")
    # Print JSON instead of tables.
    json: bool = False


@dataclass
class DiffConfig:
    """Print what changed between two catalogues: datasets added (+) and removed (-), and those (~) with
    another verdict, other reasons or another commit.

    Exit status: 0 when nothing changed, 1 when something did, 2 when the catalogues cannot be compared.
    """

    # The earlier one: a folder that `depi collect-ids` wrote, or a copy of its catalog.parquet.
    old: Path | None = None
    # The later one.
    new: Path | None = None
    # Print JSON instead of lines.
    json: bool = False

    def __post_init__(self) -> None:
        if self.old is None or self.new is None:
            raise UserError("depi catalog diff needs two catalogues: `depi catalog diff OLD NEW`")


def main(args: list[str]) -> int:
    """Run `depi catalog`; returns the exit status."""
    verbs: dict[str, Callable[[list[str]], int]] = {
        "show": show,
        "export": export,
        "stats": stats,
        "diff": diff,
    }
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] not in verbs:
        raise UserError(f"depi catalog has no verb {args[0]!r}: choose one of {', '.join(verbs)}")
    return verbs[args[0]](args[1:])


def show(args: list[str]) -> int:
    """Run `depi catalog show`."""
    config = parse_flags(ShowConfig, args, "depi catalog show", ["repo_id"])
    rows = load_catalog(config.data_ids)
    row = _find(rows, config.repo_id)
    known = evidence(row, rows)
    if config.json:
        print(json.dumps(known, ensure_ascii=True))
        return 0
    table = Table("", escape(row.repo_id))
    for name, value in known.items():
        if name != "repo_id" and value not in (None, []):
            table.add_row(name, Text(_readable(name, value)))
    Console().print(table)
    return 0


def evidence(row: Row, rows: list[Row]) -> dict[str, Any]:
    """All columns of a row as JSON values, the hashes counted, with its copies and the parts of its score."""
    known = {
        name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in vars(row).items()
    }
    known["episode_hashes"] = len(unpack(row.episode_hashes, "<u8"))
    known["landmark_hashes"] = len(unpack(row.landmark_hashes, "<u4"))
    del known["judged"]
    known["faults"] = [
        {"episode": verdict.episode, "frames": verdict.frames, "bad": verdict.bad, "faults": faults}
        for verdict in verdicts(row)
        if (faults := [_placed(fault) for fault in verdict.faults])
    ]
    known["copies"] = sorted(
        other.repo_id for other in rows if row.repo_id in (other.duplicate_of, other.near_duplicate_of)
    )
    if row.verdict == ACCEPTED:
        known["score_parts"] = {name: round(value, 4) for name, value in parts(row).items()}
    return known


def _placed(fault: Fault) -> str:
    """A fault with the frames in which it shows."""
    if fault.begin is None or fault.end is None:
        return str(fault)
    return f"{fault} (frames {fault.begin} to {fault.end - 1})"


def export(args: list[str]) -> int:
    """Run `depi catalog export`."""
    config = parse_flags(ExportConfig, args, "depi catalog export", ["repo_id"])
    rows = load_catalog(config.data_ids)
    chosen = [_find(rows, config.repo_id)] if config.repo_id else [r for r in rows if r.verdict == ACCEPTED]
    good = {
        row.repo_id: {
            "revision": row.revision,
            "episodes": [verdict.episode for verdict in verdicts(row) if not verdict.bad],
        }
        for row in chosen
        if row.judged is not None
    }
    if config.repo_id and not good:
        raise UserError(
            f"the episodes of {config.repo_id} were not judged: it is {chosen[0].verdict} "
            f"({'; '.join(chosen[0].reasons)})"
        )
    print(json.dumps(good if config.json or not config.repo_id else good[config.repo_id]["episodes"]))
    return 0


def stats(args: list[str]) -> int:
    """Run `depi catalog stats`."""
    config = parse_flags(StatsConfig, args, "depi catalog stats", ["data_ids"])
    found = count(load_catalog(config.data_ids))
    if config.json:
        print(json.dumps(found, ensure_ascii=True))
        return 0
    console = Console()
    # As rows: side by side they do not fit into 80 columns.
    totals = Table("total", "accepted")
    totals.add_row("datasets, all", f"{found['datasets']:,}")
    for name, value in found["accepted"].items():
        totals.add_row(name, f"{value:,}")
    console.print(totals)
    for title, counts, unit in (
        ("verdict", found["verdict"], "datasets"),
        ("rejected by rule", found["rule"], "datasets"),
        ("fault in accepted datasets", found["episode rule"], "episodes"),
    ):
        table = Table(title, unit)
        for name, number in counts.items():
            table.add_row(Text(name), str(number))
        console.print(table)
    for title, kinds in found["kinds"].items():
        table = Table(title, "accepted", "all")
        for name, numbers in kinds.items():
            table.add_row(Text(name), str(numbers["accepted"]), str(numbers["all"]))
        console.print(table)
    return 0


def diff(args: list[str]) -> int:
    """Run `depi catalog diff`."""
    config = parse_flags(DiffConfig, args, "depi catalog diff", ["old", "new"])
    assert config.old is not None
    assert config.new is not None
    found = compare(load_catalog(config.old), load_catalog(config.new))
    if config.json:
        print(json.dumps(found.to_json(), ensure_ascii=True))
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines(found))
    return 1 if found else 0


def lines(found: Difference) -> list[str]:
    """One line for each dataset, by name, and a last one with the numbers."""
    shown = [(row.repo_id, f"+ {row.repo_id}: {_verdict(row)}") for row in found.added]
    shown += [(row.repo_id, f"- {row.repo_id}: {_verdict(row)}") for row in found.removed]
    for old, new in found.changed:
        if (old.verdict, old.reasons) != (new.verdict, new.reasons):
            shown.append((new.repo_id, f"~ {new.repo_id}: {_verdict(old)} -> {_verdict(new)}"))
        else:
            revisions = " -> ".join(str(row.revision)[:8] for row in (old, new))
            shown.append((new.repo_id, f"~ {new.repo_id}: {new.verdict}, commit {revisions}"))
    numbers = f"{len(found.added)} added, {len(found.removed)} removed, {len(found.changed)} changed"
    return [*(line for _, line in sorted(shown)), numbers]


def _verdict(row: Row) -> str:
    return f"{row.verdict} ({'; '.join(row.reasons)})" if row.reasons else row.verdict


def _find(rows: list[Row], repo_id: str) -> Row:
    ids = {row.repo_id: row for row in rows}
    if repo_id in ids:
        return ids[repo_id]
    inside = sum(name.startswith(f"{repo_id}:") for name in ids)
    if inside:
        raise UserError(f"{repo_id} is a collection of {inside} datasets: name one as {repo_id}:FOLDER")
    close = difflib.get_close_matches(repo_id, ids, n=3)
    hint = f"; there is {', '.join(close)}" if close else ""
    raise UserError(f"{ascii(repo_id)[1:-1]} is not in the catalogue of {len(rows)} datasets{hint}")


def _readable(name: str, value: Any) -> str:
    if name.startswith("action_"):
        return ", ".join(f"{joint} {number:g}" for joint, number in zip(JOINTS, value, strict=False))
    if name == "faults":
        return "\n".join(
            f"episode {one['episode']}{' (left out)' if one['bad'] else ''}: {'; '.join(one['faults'])}"
            for one in value
        )
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:g}" for key, number in value.items())
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
