"""DePi and other dataset doctors, run through their own commands: what each remarks on a dataset.

The others live in environments of their own, made by uv with pinned versions from the package index.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
from environments import make_environment, run_command

from depi.errors import UserError

TIMEOUT_S = 300
NO_REPORT = "no report"
# Several run at a time: their threads would only wait for one another.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")


@dataclass(frozen=True)
class Remark:
    """One complaint. key: its rule or check, with what tells it from others of that rule, without numbers."""

    key: str
    episode: int | None
    text: str


@dataclass
class Report:
    """What a tool says of one dataset. cpu_s: processor time of its command, or its share of it."""

    remarks: list[Remark] = field(default_factory=list)
    cpu_s: float = 0.0
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Report":
        """A report that was stored."""
        return cls(**{**values, "remarks": [Remark(**remark) for remark in values["remarks"]]})


@dataclass(frozen=True)
class Tool:
    """A doctor from the package index.

    packages: pinned, the first is its own. command: its arguments before the dataset; `{report}` is a path.
    read: finds the remarks in its JSON.
    """

    packages: tuple[str, ...]
    command: tuple[str, ...]
    read: Callable[[Any], tuple[list[Remark], float | None]]


def install(name: str, folder: Path) -> str | None:
    """Make a tool's environment unless it is there; the reason why that failed, or None."""
    return make_environment(folder / name, TOOLS[name].packages)


def examine(name: str, folder: Path, dataset: Path) -> Report:
    """Run one of the other tools on a dataset. That it fails is a remark too: it says why."""
    tool = TOOLS[name]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        words = [word.format(report=report) for word in tool.command]
        command: list[str | Path] = [
            "timeout",
            str(TIMEOUT_S),
            folder / name / "bin" / words[0],
            *words[1:],
            dataset,
        ]
        env = {**os.environ, **ONE_THREAD, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
        status, output, cpu_s = run_command(command, env)
        try:
            text = report.read_text() if report.exists() else output[output.index("{") :]
            remarks, score = tool.read(json.JSONDecoder().raw_decode(text)[0])
        except (ValueError, KeyError, TypeError):
            last = (output.strip().splitlines() or [f"status {status}"])[-1]
            return Report([Remark(NO_REPORT, None, last[:300])], cpu_s)
    return Report(remarks, cpu_s, score)


def _read_rdq(report: Any) -> tuple[list[Remark], float | None]:
    remarks = []
    for found in report["findings"]:
        episodes = found.get("episodes") or [found.get("episode")]
        text = f"{found.get('severity')}: {found.get('message')}"
        remarks += [Remark(str(found.get("check")), episode, text) for episode in episodes]
    return remarks, report["score"]["dataset_score"] / 100


def _read_lint(report: Any) -> tuple[list[Remark], float | None]:
    return [
        Remark(f"{found['check']} joint {found['joint']}", found["episode"], found["message"])
        for found in report["findings"]
    ], None


def _read_doctor(report: Any) -> tuple[list[Remark], float | None]:
    remarks = []
    for check in report["checks"]:
        for message in check["messages"]:
            if message["severity"] != "PASS":
                text = message["message"]
                named = re.search(r"[Ee]p(?:isode)?s?[ _:#]*(\d+)", text)
                key = f"{check['name']} {re.sub(r'[-+]?\d[\d.e%-]*', '', text)}"
                remarks.append(Remark(key, int(named[1]) if named else None, text))
    return remarks, None


def _read_kalanos(report: Any) -> tuple[list[Remark], float | None]:
    remarks = [
        Remark(
            f"{found['metric_id']} {found['source_field']} {found['channel']}",
            int(found["episode_id"].rpartition("_")[2]) if found["episode_id"] else None,
            f"{found['severity']}: {found['value']} {found['unit']}",
        )
        for found in report["findings"]
    ]
    for each in report["operational_errors"]:
        remarks.append(Remark("operational error", None, str(each)[:300]))
    return remarks, report["score"]["score"] / 100


TOOLS = {
    "rdq": Tool(
        ("rdq[video]==0.3.4",),
        ("rdq", "check", "--no-color", "--video", "--json", "{report}"),
        _read_rdq,
    ),
    # The same, looking at every frame: five times the processor time.
    "rdq-full": Tool(
        ("rdq[video]==0.3.4",),
        ("rdq", "check", "--no-color", "--video-full", "--json", "{report}"),
        _read_rdq,
    ),
    # It does not look at videos yet, says its own page.
    "lerobot-lint": Tool(
        ("lerobot-lint==0.1.1", "lerobot[dataset]==0.6.1"),
        ("lelint", "check", "--no-video", "--json", "{report}"),
        _read_lint,
    ),
    "lerobot-doctor": Tool(
        ("lerobot-doctor==0.2.0",),
        ("lerobot-doctor", "check", "--json"),
        _read_doctor,
    ),
    "kalanos": Tool(
        ("kalanos[all]==0.8.2",),
        (
            *("kalanos", "grade", "--tier", "full", "--profile", "vision-imitation-v1"),
            *("--map", "observation.state=proprio.joint_position", "--report", "{report}"),
        ),
        _read_kalanos,
    ),
}


CROSS_RULES = ("not_duplicate", "not_near_duplicate")
CROSS_REMARKS = (*CROSS_RULES, "shared_episodes")
"""They compare datasets: all copies of one clean set would be remarked on as copies. Left out."""


def examine_by_depi(datasets: dict[str, Path], folder: Path, deep: bool) -> dict[str, Report]:
    """Run `depi collect-ids` over datasets, repo id -> folder, on an embedded Hub.

    Raises:
        UserError: the command failed.
    """
    out = folder / ("deep" if deep else "tables")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "ids.json").write_text(json.dumps(list(datasets)))
    with _hub(folder / "hub", datasets) as environment:
        env = {**os.environ, **environment, "HF_HOME": str(out / "home"), "DEPI_CACHE": str(out / "cache")}
        flags = [f"--repo_ids={out / 'ids.json'}", f"--data_ids={out / 'data_ids'}", "--json"]
        flags += [f"--disable_rules=[{','.join(CROSS_RULES)}]", *(["--deep"] if deep else [])]
        status, output, cpu_s = run_command([sys.executable, "-m", "depi.cli", "collect-ids", *flags], env)
    if status not in (0, 3):
        raise UserError(f"depi collect-ids failed:\n{output[-2000:]}")
    return _read_depi(out / "data_ids", cpu_s / len(datasets))


@contextmanager
def _hub(root: Path, datasets: dict[str, Path]):
    """Serve the datasets; yields the environment variables by which a client finds them."""
    from depi.hub.server.folder import Store
    from depi.hub.server.serve import serve

    with patch("os.fsync", lambda file: None):  # what is stored here need not survive a power cut
        store = Store(root)
        for repo_id, dataset in datasets.items():
            if store.find("dataset", repo_id) is None:
                store.commit_folder(store.create("dataset", repo_id, "bench"), dataset, "Add data", "bench")
        store.close()
    with serve(root) as hub:
        yield hub.environment()


def _read_depi(folder: Path, cpu_s: float) -> dict[str, Report]:
    reports = {}
    for row in pq.read_table(folder / "catalog.parquet").to_pylist():
        said = [*row["reasons"], *row["flags"]]
        remarks = [
            Remark(rule, _episode_in(text), text)
            for text in said
            if (rule := text.partition(":")[0]) not in CROSS_REMARKS
        ]
        reports[row["repo_id"]] = Report(remarks, cpu_s, row["score"])
    if (folder / "episodes.parquet").exists():
        for row in pq.read_table(folder / "episodes.parquet").to_pylist():
            for fault in row["faults"]:
                remark = Remark(fault.partition(":")[0], row["episode"], fault)
                reports[row["repo_id"]].remarks.append(remark)
    return reports


def _episode_in(text: str) -> int | None:
    """The first episode that a sentence names."""
    named = re.search(r"\b(?:episodes?|first number) (\d+)", text)
    return int(named[1]) if named else None


def read_reports(path: Path) -> dict[str, Report]:
    """Stored reports by copy; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row.pop("copy"): Report.from_json(row) for row in map(json.loads, lines)}
