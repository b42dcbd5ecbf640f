"""`depi collect-ids`: find candidates on the Hub, inspect and judge them, write the lists of ids."""

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from depi import engine
from depi.catalog import video_rules
from depi.catalog.catalogue import ACCEPTED, CATALOG_FILES, FAILED, REJECTED, Row, read_rows, write_catalog
from depi.catalog.counts import count_by_rule
from depi.catalog.deep import look_deep, optional_rules
from depi.catalog.episodes import count_faults
from depi.catalog.facts import Thresholds
from depi.catalog.find import WIDE, Candidate, contributions, find
from depi.catalog.inspect import Collection, Inspector, bare_row
from depi.catalog.journal import Journal
from depi.catalog.order import settle
from depi.catalog.rules import CATALOGUE_FLAGS, CATALOGUE_RULES, FLAGS, RULES_VERSION, TIERS, check_disabled
from depi.catalog.rules_file import parse_with_rules
from depi.catalog.thumbnails import THUMBNAILS_FILE
from depi.catalog.videos import look_at_videos
from depi.datasets.judging.rules import ALWAYS, OPTIONAL
from depi.engine import ENGINES, RayConfig, make_runner
from depi.engine.cluster import count_cpus
from depi.errors import UserError, machine_error
from depi.files import remove_drafts
from depi.flags import check_ranges, parse_flags
from depi.hub.client import session
from depi.hub.client.api import HubUnreachable
from depi.progress import progress_bar

# After this many candidates in a row without an answer, the Hub is taken to be away.
GIVE_UP_AFTER = 8
SHOWN = 10


@dataclass
class CollectConfig(Thresholds):
    """Find datasets on the Hub, judge each by named rules, and write into --data_ids:

    dataset_list.json        every candidate
    dataset_list_valid.json  the accepted ones, best first; with --top only the best of them
    bad_dataset_ids.json     the rejected ones with their reasons
    episodes.parquet         one row per episode with its faults; training leaves the bad ones out
    catalog.parquet          one row per candidate with everything found
    thumbnails.parquet       with --deep: one small picture per camera

    Without --tags, --search, --author and --repo_ids, the usual tags and names of SO-100 and SO-101
    datasets are searched: --wide also finds those without the robot in their tags, or inside longer words.
    What has not changed since the last call is not inspected again.

    Exit status: 0 when every candidate was judged, 3 when some could not be inspected (they are named,
    and the next call tries them again), 2 when the command cannot work at all.
    """

    # Where the files are written.
    data_ids: Path = Path("data_ids")
    # Look for datasets tagged "LeRobot" and one of these, as in --tags=[so100,so101].
    tags: list[str] | None = None
    # Look for datasets with one of these in their name, as in --search=[so100,so101].
    search: list[str] | None = None
    # Only datasets of this user or organisation; without --tags and --search all of them.
    author: str | None = None
    # Also the datasets named in this file: a JSON list, or one id per line.
    repo_ids: Path | None = None
    # Look farther: tags, or the flag alone, for every dataset tagged "LeRobot", whatever its robot; names for
    # every name on the Hub with SO-100 or SO-101 in it, which takes about 1,000 requests; all for both.
    wide: bool | str = False
    # Only datasets whose metadata names one of these robots, as in --robot_types=[so100_follower]. The others
    # are not stored: the next call inspects them again.
    robot_types: list[str] | None = None
    # The largest number of candidates, the first by name.
    limit: int | None = None
    # Inspections, and connections to the Hub, at the same time.
    workers: int = 32
    # The most requests per second; by default as many as the connections allow.
    max_requests_per_second: float | None = None
    # The most seconds for all requests about one dataset; one that takes longer is tried again next time.
    max_seconds: float = 900.0
    # Look at videos too: the index and a few frames of each camera in each episode, of 64 episodes at most,
    # evenly chosen. What lasts less than a tenth of an episode may be missed. Also writes thumbnails.parquet,
    # one small picture per camera. A refused dataset stays refused until it changes.
    deep: bool = False
    # Datasets whose videos are checked at the same time; 0 for one per CPU.
    deep_workers: int = 0
    # Where videos are checked: local, the processes of this machine; or ray, a cluster with shared folders.
    engine: str = "local"
    ray: RayConfig = field(default_factory=RayConfig)
    # The largest number of accepted datasets in dataset_list_valid.json, the best ones.
    top: int | None = None
    # A YAML file of thresholds and `disable_rules`, as configs/catalog/strict.yaml; flags win over it.
    rules: Path | None = None
    # Rules to switch off, as in --disable_rules=[not_gated]; --list-rules prints their names.
    disable_rules: list[str] = field(default_factory=list)
    # Inspect everything again, also what has not changed since the last call.
    refresh: bool = False
    # Print the rules, and nothing else.
    list_rules: bool = False
    # Print the summary as JSON instead of tables.
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_1 = dict.fromkeys(("workers", "limit", "top"), (1, None))
        check_ranges(self, **at_least_1, deep_workers=(0, None))
        for name in ("max_requests_per_second", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} must be above 0, not {value}")
        if isinstance(self.wide, str) and self.wide not in WIDE:
            raise UserError(f"--wide={self.wide} is none of {', '.join(WIDE)}")
        if self.engine not in ENGINES:
            raise UserError(f"--engine={self.engine} is none of {', '.join(ENGINES)}")


@dataclass(frozen=True)
class Summary:
    """The result of a call of `collect`.

    listed: of the accepted, how many are in dataset_list_valid.json
    reused: of all candidates, how many were taken from the earlier catalogue
    rejected_by_rule: rule -> datasets that it refused; one dataset may fail several
    bad_episodes: of the accepted datasets, how many episodes training leaves out by default
    episodes_by_rule: rule -> episodes of the accepted datasets in which it found a fault, or made a remark
    ways: way of finding -> what it contributed, see `depi.catalog.find.contributions`
    """

    output_dir: Path
    found: int
    accepted: int
    listed: int
    rejected: int
    failed: int
    reused: int
    seconds: float
    rejected_by_rule: dict[str, int]
    bad_episodes: int
    episodes_by_rule: dict[str, int]
    ways: dict[str, dict[str, int]]
    rows: list[Row] = field(repr=False)

    def to_json(self) -> dict[str, object]:
        """The numbers, and the reasons of all that were rejected or could not be inspected."""
        value = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name not in ("rows", "output_dir")
        }
        refused = {row.repo_id: row.reasons for row in self.rows if row.verdict == REJECTED}
        not_inspected = {row.repo_id: row.reasons for row in self.rows if row.verdict == FAILED}
        return {**value, "output_dir": str(self.output_dir), "reasons": refused, "failures": not_inspected}


def main(args: list[str]) -> int:
    """Run `depi collect-ids`; returns the exit status (see `CollectConfig`)."""
    parse = partial(parse_with_rules, CollectConfig)
    config = parse_flags(CollectConfig, args, "depi collect-ids", parse=parse)
    console = Console()
    if config.list_rules:
        print_rules(console)
        return 0
    summary = collect(config)
    if config.json:
        print(json.dumps(summary.to_json(), ensure_ascii=True))
    else:
        print_summary(console, summary)
    return 3 if summary.failed else 0


def collect(config: CollectConfig) -> Summary:
    """Find, inspect, judge and write; prints progress to stderr.

    Raises:
        UserError: the Hub cannot be reached, nothing was found, or a flag is not valid. Nothing is
            written then.
        MachineError: a disk is full. The lists stay as they were; finished inspections are in the journal.
    """
    started = time.monotonic()
    of_videos = optional_rules() & set(config.disable_rules)
    disabled = check_disabled([name for name in config.disable_rules if name not in of_videos]) | of_videos
    _check_writable(config.data_ids)
    judged_by = {
        "rules_version": RULES_VERSION,
        "disabled": sorted(disabled),
        **{item.name: getattr(config, item.name) for item in dataclasses.fields(Thresholds)},
    }
    earlier = [] if config.refresh else read_rows(config.data_ids, judged_by)
    journal = Journal(config.data_ids, {**judged_by, "refresh": config.refresh})
    limits = session.Settings(config.workers, config.max_requests_per_second)
    with closing(journal), session.limited(limits):
        candidates = _find(config)
        journal.open()
        for name in (*CATALOG_FILES, THUMBNAILS_FILE):
            remove_drafts(config.data_ids / name)
        rows, reused = inspect_found(config, disabled, candidates, [*earlier, *journal.rows], journal)
        rows = settle(rows, disabled, config)
        if config.deep:
            run = make_runner(config.engine, workers=config.deep_workers, address=config.ray.address)
            look = partial(look_at_videos, max_seconds=config.max_seconds, settings=_share(config))
            rows = look_deep(config.data_ids, rows, run, look, config, disabled)
        write_catalog(config.data_ids, rows, judged_by, top=config.top)
        journal.finish()
    verdicts = Counter(row.verdict for row in rows)
    accepted = [row for row in rows if row.verdict == ACCEPTED]
    return Summary(
        output_dir=config.data_ids,
        found=len(rows),
        accepted=verdicts[ACCEPTED],
        listed=min(verdicts[ACCEPTED], config.top or verdicts[ACCEPTED]),
        rejected=verdicts[REJECTED],
        failed=verdicts[FAILED],
        reused=reused,
        seconds=round(time.monotonic() - started, 2),
        rejected_by_rule=count_by_rule(rows),
        bad_episodes=sum(row.bad_episodes or 0 for row in accepted),
        episodes_by_rule=count_faults(accepted),
        ways=contributions(candidates, (row.repo_id for row in rows if row.verdict == ACCEPTED)),
        rows=rows,
    )


def _share(config: CollectConfig) -> session.Settings:
    """The limits on requests to the Hub for each process that checks videos."""
    rate, processes = config.max_requests_per_second, config.deep_workers
    if rate is None:
        return session.Settings(config.workers)
    if not processes:
        processes = count_cpus(config.ray.address) if config.engine == "ray" else os.cpu_count() or 1
    return session.Settings(config.workers, rate / processes)


def _find(config: CollectConfig) -> list[Candidate]:
    named = (config.tags, config.search, config.author, config.repo_ids)
    only_robot_types = config.robot_types is not None and all(each is None for each in named)
    wide = config.wide if isinstance(config.wide, str) else "tags" if config.wide else None
    return find(
        tags=config.tags,
        search=config.search,
        author=config.author,
        repo_ids=config.repo_ids,
        wide=wide or ("tags" if only_robot_types else None),
        limit=config.limit,
    )


def inspect_found(
    config: CollectConfig,
    disabled: frozenset[str],
    candidates: Sequence[Candidate],
    known: Sequence[Row],
    journal: Journal,
) -> tuple[list[Row], int]:
    """Inspect what is not known; returns a row for each dataset, and how many of them were known."""
    inspector = Inspector(config, disabled, {row.repo_id: row for row in known}, config.max_seconds)
    rows = inspect_all(inspector, candidates, config.workers, journal)
    if config.robot_types is not None:
        # The robot of a dataset that could not be inspected is not known: it is reported, and tried again.
        rows = [row for row in rows if row.robot_type in config.robot_types or row.verdict == FAILED]
        if not rows:
            raise UserError(f"no dataset names one of these robots: {', '.join(config.robot_types)}")
    kept = {id(row) for row in known}
    return rows, sum(id(row) in kept for row in rows)


def inspect_all(
    inspector: Inspector, candidates: Sequence[Candidate], workers: int, journal: Journal
) -> list[Row]:
    """Inspect the candidates concurrently; one row each, and one for each dataset of a collection.

    Raises:
        HubUnreachable: the Hub has gone away; what was inspected before is in the journal.
        MachineError: their files cannot be stored here.
    """
    rows: dict[str, Row] = {}
    silent = done = 0
    waiting, total = list(candidates), len(candidates)
    with progress_bar("Inspecting", total) as show:
        while waiting:
            opened: list[Candidate] = []
            for candidate, outcome in engine.run(inspector, waiting, workers=workers):
                done += 1
                show(done)
                if fault := machine_error(outcome):
                    raise fault
                if isinstance(outcome, Collection):
                    opened += outcome.candidates
                    continue
                silent = silent + 1 if isinstance(outcome, HubUnreachable) else 0
                if silent >= min(GIVE_UP_AFTER, len(candidates)):
                    raise HubUnreachable(f"{outcome}; what was inspected is kept, run the same command again")
                failed = f"not inspected: {outcome}"
                row = outcome if isinstance(outcome, Row) else bare_row(candidate.repo_id, FAILED, failed)
                rows[row.repo_id] = row
                if row is not inspector.known.get(row.repo_id):
                    journal.add(row)
            waiting = [candidate for candidate in opened if candidate.repo_id not in rows]
            total += len(waiting)
            show(done, total)
    return list(rows.values())


def print_rules(console: Console) -> None:
    """Print every rule with its tier and its documentation, in the order in which they are checked."""
    table = Table("rule", "tier", "passes when")
    for tier in TIERS:
        for rule in tier.needs:
            table.add_row(rule.__name__, f"{tier.name}, always", _first_line(rule))
        for rule in tier.rules:
            table.add_row(rule.__name__, tier.name, _first_line(rule))
    for check in ALWAYS:
        table.add_row(check.__name__, "episode, always", _first_line(check))
    for episode_rule in OPTIONAL:
        kind = "bad" if episode_rule.leaves_out else "remark"
        table.add_row(episode_rule.name, f"episode, {kind}", _first_line(episode_rule.check))
    for catalogue_rule in CATALOGUE_RULES:
        table.add_row(catalogue_rule.__name__, "catalogue", _first_line(catalogue_rule))
    for flag in FLAGS:
        table.add_row(flag.__name__, "remark only", _first_line(flag))
    for catalogue_flag in CATALOGUE_FLAGS:
        table.add_row(catalogue_flag.__name__, "remark only", _first_line(catalogue_flag))
    for video_rule in (*video_rules.NEEDS, *video_rules.RULES):
        table.add_row(video_rule.__name__, "videos (--deep)", _first_line(video_rule))
    console.print(table)
    console.print(f"rules version {RULES_VERSION}; switch rules off with --disable_rules=\\[name,...]")


def print_summary(console: Console, summary: Summary) -> None:
    """Print the totals, the rejections by rule, and the first few rejected or failed with their reasons."""
    totals = Table("found", "accepted", "rejected", "not inspected", "unchanged", "seconds")
    numbers = (summary.found, summary.accepted, summary.rejected, summary.failed, summary.reused)
    totals.add_row(*map(str, numbers), f"{summary.seconds:.1f}")
    console.print(totals)
    if summary.ways:
        by_way = Table("found by", "datasets", "by no other way", "accepted")
        for way, counts in summary.ways.items():
            by_way.add_row(escape(way), *map(str, counts.values()))
        console.print(by_way)
    if summary.rejected_by_rule:
        by_rule = Table("rejected by rule", "datasets")
        for name, count in summary.rejected_by_rule.items():
            by_rule.add_row(name, str(count))
        console.print(by_rule)
    if summary.episodes_by_rule:
        title = f"faults in accepted datasets ({summary.bad_episodes} episodes are left out of training)"
        by_rule = Table(title, "episodes")
        for name, count in summary.episodes_by_rule.items():
            by_rule.add_row(name, str(count))
        console.print(by_rule)
    for verdict, title in ((REJECTED, "rejected"), (FAILED, "not inspected")):
        rows = [row for row in summary.rows if row.verdict == verdict]
        if rows:
            table = Table(
                f"{title}, {min(SHOWN, len(rows))} of {len(rows)}", Column("reasons", overflow="fold")
            )
            for row in rows[:SHOWN]:
                table.add_row(escape(row.repo_id), escape("\n".join(row.reasons)))
            console.print(table)
    if summary.listed < summary.accepted:
        console.print(f"listed: the best {summary.listed} of {summary.accepted} accepted (--top)")
    console.print(f"written to {escape(str(summary.output_dir))}", soft_wrap=True)


def _check_writable(folder: Path) -> None:
    """Check that the folder can be written, before hours of inspections."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not there.is_dir():
        raise UserError(f"cannot write the lists into {folder}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write the lists into {folder}: you may not write to {there}")


def _first_line(rule: Callable[..., object]) -> str:
    return escape(" ".join((rule.__doc__ or "").split()))
