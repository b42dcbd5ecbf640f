"""Which defects of strangers' recordings do DePi and other dataset doctors find?

    uv run python benchmarks/doctors.py --seeds=table --output=DIR

Plants 34 kinds of defects at three strengths, one into each copy of a clean set of 12 episodes, into four
sets: two simulated ones and two cut from real tables, whose pictures are of a simulated arm that gets the
same commands. Runs `depi collect-ids` on an embedded Hub over all copies, tables only and with `--deep`; and
rdq, lerobot-lint, lerobot-doctor and kalanos over the clean copies and those of `--others_bases` and
`--others_strengths`, in environments under `--output`, where everything else is kept too: a second call goes
on where the first one stopped, but for DePi, which is asked again.

A tool has found a defect if it says of the copy what it does not say of the clean one; numbers in its
sentences do not count. DePi must also name a spoilt episode, unless the set as a whole or its files are
spoilt.

Prints tables. The last line is JSON: for each tool the number found by set and strength, its remarks on the
clean sets, seconds of processor time for a dataset, the copies whose score is above the clean one's, and the
number of good episodes that were complained of in copies where others are spoilt.
"""

import json
import multiprocessing
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clean_sets import BASES, RecordedSet, make_set, write_set
from doctor_tools import NO_REPORT, TOOLS, Remark, Report, examine, examine_by_depi, install, read_reports
from planting import STRENGTHS, load_kinds, plant
from rich.progress import track

from depi.errors import UserError
from depi.files import write_json
from depi.flags import parse_flags
from depi.sim.record import quiet_libraries

CLEAN = "clean"
SEEDS = {"development": 11, "table": 2028}


@dataclass
class DoctorsConfig:
    """Plant defects, and see who finds them. Lists are separated by commas; empty for all.

    Attributes:
        seeds: development or table; who writes rules sees only figures of the first.
        kinds, strengths, bases: which copies to make.
        tools: depi and others; by default all but rdq-full, which takes longest.
        others_bases, others_strengths: which planted copies the other tools see; they see all clean ones.
        output: a folder for sets, copies, environments and results.
        workers: processes at a time.
    """

    seeds: str = "development"
    kinds: str = ""
    strengths: str = ""
    bases: str = ""
    tools: str = ",".join(("depi", *(name for name in TOOLS if name != "rdq-full")))
    others_bases: str = "simulated"
    others_strengths: str = "middle"
    output: Path = Path("outputs/doctors")
    workers: int = 2

    def __post_init__(self) -> None:
        if self.seeds not in SEEDS:
            raise UserError(f"--seeds={self.seeds} is none of {', '.join(SEEDS)}")


@dataclass(frozen=True)
class Planted:
    """One copy. episodes: those spoilt, none for the set as a whole. files: its defect lies in files."""

    name: str
    base: str
    kind: str
    strength: str
    episodes: tuple[int, ...] = ()
    files: bool = False
    says: str = ""

    @property
    def repo_id(self) -> str:
        """Its name on the Hub."""
        return f"{self.base}/so101_{self.name.partition('-')[2]}"


def chosen(flag: str, value: str, known: Iterable[str]) -> list[str]:
    """The items of a list flag.

    Raises:
        UserError: one is not known.
    """
    names = list(known)
    wanted = value.split(",") if value else names
    for name in wanted:
        if name not in names:
            raise UserError(f"--{flag}={name} is none of {', '.join(names)}")
    return wanted


def make_copies(config: DoctorsConfig) -> list[Planted]:
    """Write the clean sets and the planted copies that are not there yet; returns all of them."""
    folder = config.output / config.seeds
    kinds = chosen("kinds", config.kinds, load_kinds())
    strengths = chosen("strengths", config.strengths, STRENGTHS)
    wanted = [
        (base, kind, strength)
        for base in chosen("bases", config.bases, BASES)
        for kind, strength in [(CLEAN, ""), *((kind, strength) for kind in kinds for strength in strengths)]
    ]
    # Forked: each process would spend ten seconds on imports.
    with ProcessPoolExecutor(config.workers, multiprocessing.get_context("fork")) as pool:
        bases = list(dict.fromkeys(base for base, _, _ in wanted))
        list(pool.map(partial(clean_set, folder, config.seeds), bases))
        copies = pool.map(partial(make_copy, folder, config.seeds), wanted, chunksize=4)
        return list(track(copies, "planting", len(wanted), transient=True))


def clean_set(folder: Path, seeds: str, base: str) -> RecordedSet:
    """The clean set of a base."""
    return make_set(base, seeds, folder / "sets" / base)


def make_copy(folder: Path, seeds: str, wanted: tuple[str, str, str]) -> Planted:
    """Write one copy, unless it is there."""
    base, kind, strength = wanted
    name = "-".join(filter(None, wanted))
    place, truth = folder / "copies" / name, folder / "truth" / f"{name}.json"
    if truth.exists():
        stored = json.loads(truth.read_text())
        return Planted(**{**stored, "episodes": tuple(stored["episodes"])})
    shutil.rmtree(place, ignore_errors=True)
    clean = clean_set(folder, seeds, base)
    planted, edits, recorded = Planted(name, base, kind, strength), [], clean
    if kind != CLEAN:
        seed = SEEDS[seeds] + 1000 * list(BASES).index(base)
        copy, episodes = plant(clean, kind, strength, folder / "films" / name, seed)
        found = load_kinds()[kind]
        says = found.says[STRENGTHS.index(strength)]
        planted = Planted(name, base, kind, strength, tuple(episodes), found.changes == {"files"}, says)
        edits, recorded = copy.edits, copy.set
    write_set(recorded, place, folder / "joined", planted.repo_id)
    for edit in edits:
        edit(place)
    truth.parent.mkdir(exist_ok=True)
    write_json(truth, planted.__dict__)
    return planted


def ask_depi(config: DoctorsConfig, copies: list[Planted]) -> dict[str, dict[str, Report]]:
    """DePi's reports, tables only and deep, by copy."""
    folder = config.output / config.seeds
    datasets = {copy.repo_id: folder / "copies" / copy.name for copy in copies}
    found = {}
    for tool, deep in (("depi", False), ("depi --deep", True)):
        reports = examine_by_depi(datasets, folder / "depi", deep)
        found[tool] = {copy.name: reports[copy.repo_id] for copy in copies}
        lines = [json.dumps({"copy": name, **report.to_json()}) for name, report in found[tool].items()]
        (folder / f"{tool.replace(' --', '_')}.jsonl").write_text("".join(line + "\n" for line in lines))
    return found


def ask_other(config: DoctorsConfig, tool: str, copies: list[Planted]) -> dict[str, Report] | None:
    """Another tool's reports by copy, each stored when it is there; None where it cannot be installed."""
    complaint = install(tool, config.output.absolute() / "environments")
    if complaint:
        print(f"{tool} cannot be installed: {complaint}")
        return None
    folder = config.output / config.seeds
    path = folder / f"{tool}.jsonl"
    reports = read_reports(path)
    missing = [copy.name for copy in copies if copy.name not in reports]
    ask = partial(examine, tool, config.output.absolute() / "environments")
    with ThreadPoolExecutor(config.workers) as pool, path.open("a") as file:
        answers = pool.map(ask, [folder.absolute() / "copies" / name for name in missing])
        for name, report in track(zip(missing, answers, strict=True), tool, len(missing), transient=True):
            file.write(json.dumps({"copy": name, **report.to_json()}) + "\n")
            file.flush()
            reports[name] = report
    return {copy.name: reports[copy.name] for copy in copies}


def news(copy: Planted, reports: dict[str, Report]) -> list[Remark]:
    """What a tool says of a copy and not of its clean set."""
    known = {(remark.key, remark.episode) for remark in reports[f"{copy.base}-{CLEAN}"].remarks}
    return [remark for remark in reports[copy.name].remarks if (remark.key, remark.episode) not in known]


def is_found(tool: str, copy: Planted, reports: dict[str, Report]) -> bool:
    """Whether a tool has found the defect of a copy."""
    remarks = news(copy, reports)
    if not tool.startswith("depi") or not copy.episodes or copy.files:
        return bool(remarks)
    return any(remark.episode in copy.episodes for remark in remarks)


def wrongly_named(copy: Planted, reports: dict[str, Report]) -> int:
    """How many episodes a tool complains of, newly and by number, that are not spoilt."""
    if not copy.episodes or copy.files:
        return 0
    named = {remark.episode for remark in news(copy, reports)} - {None}
    return len(named - set(copy.episodes))


def summarize(copies: list[Planted], found: dict[str, dict[str, Report]]) -> dict[str, Any]:
    """The last line: for each tool, what it found on which bases, false alarms and costs."""
    summary: dict[str, Any] = {}
    for tool, reports in found.items():
        seen = [copy for copy in copies if copy.name in reports]
        planted = [copy for copy in seen if copy.kind != CLEAN]
        by_base = {}
        for base in dict.fromkeys(copy.base for copy in planted):
            rows = [copy for copy in planted if copy.base == base]
            by_base[base] = {
                strength: sum(is_found(tool, copy, reports) for copy in rows if copy.strength == strength)
                for strength in dict.fromkeys(copy.strength for copy in rows)
            }
        clean = {copy.base: _count(reports[copy.name]) for copy in seen if copy.kind == CLEAN}
        wrong = sum(wrongly_named(copy, reports) for copy in planted)
        cpu_s = sum(report.cpu_s for report in reports.values()) / len(reports)
        summary[tool] = {"found": by_base, "clean_remarks": clean, "cpu_s": round(cpu_s, 3)}
        summary[tool]["wrong_episodes"] = wrong
        summary[tool]["raised"] = [copy.name for copy in planted if _gain(copy, reports) > 1e-9]
    return summary


def _count(report: Report) -> int | None:
    """The number of remarks; None where the tool could not read the set."""
    return None if any(remark.key == NO_REPORT for remark in report.remarks) else len(report.remarks)


def _gain(copy: Planted, reports: dict[str, Report]) -> float:
    """By how much a copy's score is above its clean set's; a refused copy has none."""
    before, after = reports[f"{copy.base}-{CLEAN}"].score, reports[copy.name].score
    return -1.0 if before is None or after is None else after - before


def print_summary(summary: dict[str, Any], kinds: int) -> None:
    """Print a row for each tool and base."""
    columns = [f"{strength}, of {kinds}" for strength in STRENGTHS]
    columns = ["tool", "set", *columns, "on the clean set", "good episodes named, all sets", "CPU s"]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for tool, row in summary.items():
        for base, remarks in row["clean_remarks"].items():
            counts = row["found"].get(base, {})
            cells = [tool, base, *(str(counts.get(strength, "")) for strength in STRENGTHS)]
            cells += ["does not read it" if remarks is None else str(remarks), str(row["wrong_episodes"])]
            print(f"| {' | '.join(cells)} | {row['cpu_s']:.2f} |")


def print_kinds(copies: list[Planted], found: dict[str, dict[str, Report]]) -> None:
    """Print who found what: for each kind and tool, in how many of the sets at each strength."""
    print(f"\n| defect, {' / '.join(STRENGTHS)} | {' | '.join(found)} | DePi's score, change at most |")
    print("|---" * (len(found) + 2) + "|")
    for kind in dict.fromkeys(copy.kind for copy in copies if copy.kind != CLEAN):
        rows = [copy for copy in copies if copy.kind == kind]
        cells = [_cell(tool, rows, reports) for tool, reports in found.items()]
        print(f"| {kind} | {' | '.join(cells)} | {_change(rows, found)} |")


def _cell(tool: str, rows: list[Planted], reports: dict[str, Report]) -> str:
    parts = []
    for strength in STRENGTHS:
        seen = [copy for copy in rows if copy.strength == strength and copy.name in reports]
        parts.append(str(sum(is_found(tool, copy, reports) for copy in seen)) if seen else "-")
    return f"{'/'.join(parts)} of {len({copy.base for copy in rows if copy.name in reports})}"


def _change(rows: list[Planted], found: dict[str, dict[str, Report]]) -> str:
    reports = found.get("depi --deep", {})
    gains = [_gain(copy, reports) for copy in rows if copy.name in reports]
    scored = [gain for gain in gains if gain > -1]
    refused = len(gains) - len(scored)
    return ", ".join(
        [*([f"{max(scored):+.4f}"] if scored else []), *([f"{refused} refused"] if refused else [])]
    )


def print_misses(copies: list[Planted], found: dict[str, dict[str, Report]]) -> None:
    """Print what DePi said at the middle strength: each clean set, and each copy that it did not find."""
    reports = found.get("depi --deep", {})
    for copy in copies:
        if copy.name in reports and (copy.kind == CLEAN or copy.strength == "middle"):
            remarks = reports[copy.name].remarks if copy.kind == CLEAN else news(copy, reports)
            if copy.kind == CLEAN or not is_found("depi", copy, reports):
                said = "; ".join(dict.fromkeys(remark.text for remark in remarks)) or "nothing"
                print(f"{copy.name} {list(copy.episodes)}: {said}")


def main() -> None:
    """Make copies, ask everybody, print."""
    config = parse_flags(DoctorsConfig, sys.argv[1:], "doctors.py")
    quiet_libraries()
    tools = chosen("tools", config.tools, ["depi", *TOOLS])
    bases = chosen("others_bases", config.others_bases, BASES)
    strengths = chosen("others_strengths", config.others_strengths, STRENGTHS)
    copies = make_copies(config)
    found = ask_depi(config, copies) if "depi" in tools else {}
    others = [
        copy for copy in copies if copy.kind == CLEAN or (copy.base in bases and copy.strength in strengths)
    ]
    for tool in tools:
        if tool in TOOLS:
            reports = ask_other(config, tool, others)
            found |= {tool: reports} if reports else {}
    summary = summarize(copies, found)
    print_misses(copies, found)
    print_kinds(copies, found)
    print_summary(summary, len({copy.kind for copy in copies} - {CLEAN}))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
