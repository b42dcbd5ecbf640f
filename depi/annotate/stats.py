"""`depi annotate stats`: the annotations of a folder in numbers."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depi.annotate.episode_journal import Journal, annotated_datasets, read_results
from depi.annotate.sidecar import rows_of, typed
from depi.catalog.counts import most_first
from depi.datasets.samples.annotations import EpisodeAnnotation, read_annotations
from depi.errors import DatasetError, UserError
from depi.flags import parse_flags

UNKNOWN = "unknown"


@dataclass
class StatsConfig:
    """Count the annotations in a folder: datasets, episodes, texts, flags, confidence, views, models, prompt
    versions, tokens, failures and reviews.
    """

    # The folder of the sidecars.
    annotations: Path = Path("so100_data/annotations")
    # Print JSON instead of tables.
    json: bool = False


@dataclass
class _Counts:
    """The sums over all datasets."""

    datasets: int = 0
    episodes: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    deciles: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, str] = field(default_factory=dict)


def main(args: list[str]) -> int:
    """Run `depi annotate stats`; returns the exit status."""
    config = parse_flags(StatsConfig, args, "depi annotate stats", ["annotations"])
    found = count(config.annotations)
    if config.json:
        print(json.dumps(found, ensure_ascii=True))
    elif not found["datasets"]:
        print(f"{config.annotations} holds no annotations yet: `depi annotate` writes them")
    else:
        _print(found)
    return 0


def count(folder: Path) -> dict[str, Any]:
    """JSON-able numbers over all datasets annotated in a folder.

    `datasets`; `episodes` (`all`, `with_task`: a new text, `kept_recorded`, `failed`, `reviewed`); `flags`;
    `confidence` (decile, such as "0.8-0.9", or "unknown" -> episodes); `views` (view -> cameras of
    datasets); `models` ("backend:model") and `prompts` ("stage version") -> episodes; `tokens` (`prompt`,
    `completion`, `per_episode`: of those that a model was asked about, over all requests ever made);
    `reviews` (verdict -> episodes); `failures` (reason -> episodes); `damaged` (repo id -> reason): sidecars
    that training would not use.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} of annotations: `depi annotate` writes one")
    counts = _Counts()
    for repo_id in annotated_datasets(folder):
        counts.datasets += 1
        journal = read_results(folder, repo_id)
        try:
            sidecar = read_annotations(folder, repo_id)
        except DatasetError as error:
            counts.damaged[repo_id] = str(error)
            sidecar = None
        rows = rows_of(journal) or (sidecar[0] if sidecar else [])
        _count_rows(counts, rows)
        _count_journal(counts, journal)
    return _result(counts)


def _count_rows(counts: _Counts, rows: Iterable[EpisodeAnnotation]) -> None:
    views: set[tuple[str, str]] = set()
    for row in rows:
        counts.episodes["with_task" if row.task else "kept_recorded"] += 1
        counts.flags.update({flag.partition(":")[0] for flag in row.flags})
        counts.deciles[_decile(row.confidence)] += 1
        views |= set(row.camera_views.items())
    counts.views.update(view for _, view in views)


def _count_journal(counts: _Counts, journal: Journal) -> None:
    counts.episodes["failed"] += len(journal.failures) - len(typed(journal))
    counts.episodes["reviewed"] += len(journal.reviews)
    counts.failures.update(failure.reason for failure in journal.failures.values())
    counts.reviews.update(review.verdict for review in journal.reviews.values())
    for result in journal.results.values():
        counts.models[f"{result.backend}:{result.model}"] += 1
        counts.prompts.update(f"{stage} {version}" for stage, version in result.prompts.items())
        counts.tokens["episodes"] += bool(result.tokens)
    for result in journal.everything:
        counts.tokens.update({kind: result.tokens.get(kind, 0) for kind in ("prompt", "completion")})


def _decile(confidence: float | None) -> str:
    if confidence is None:
        return UNKNOWN
    lower = min(int(confidence * 10), 9)
    return f"{lower / 10:.1f}-{(lower + 1) / 10:.1f}"


def _result(counts: _Counts) -> dict[str, Any]:
    episodes, tokens = counts.episodes, counts.tokens
    everything = tokens["prompt"] + tokens["completion"]
    return {
        "datasets": counts.datasets,
        "episodes": {
            "all": episodes["with_task"] + episodes["kept_recorded"] + episodes["failed"],
            **{name: episodes[name] for name in ("with_task", "kept_recorded", "failed", "reviewed")},
        },
        "flags": most_first(counts.flags),
        "confidence": dict(sorted(counts.deciles.items(), reverse=True)),
        "views": most_first(counts.views),
        "models": most_first(counts.models),
        "prompts": most_first(counts.prompts),
        "tokens": {
            "prompt": tokens["prompt"],
            "completion": tokens["completion"],
            "per_episode": round(everything / tokens["episodes"], 1) if tokens["episodes"] else 0.0,
        },
        "reviews": most_first(counts.reviews),
        "failures": most_first(counts.failures),
        "damaged": counts.damaged,
    }


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    # As rows: side by side they do not fit into 80 columns.
    totals = Table("total", "")
    totals.add_row("datasets", f"{found['datasets']:,}")
    for name, value in found["episodes"].items():
        totals.add_row(f"episodes, {name.replace('_', ' ')}", f"{value:,}")
    console.print(totals)
    titles = {
        "flags": ("flag", "episodes"),
        "confidence": ("confidence", "episodes"),
        "views": ("view", "cameras"),
        "models": ("model", "episodes"),
        "prompts": ("prompt", "episodes"),
        "tokens": ("tokens", ""),
        "reviews": ("review", "episodes"),
        "failures": ("failed because", "episodes"),
        "damaged": ("sidecar not usable", "because"),
    }
    for name, titled in titles.items():
        if found[name]:
            table = Table(*titled)
            for key, value in found[name].items():
                # Text, not markup: reasons and flags may quote what strangers wrote.
                table.add_row(Text(key), Text(value if isinstance(value, str) else f"{value:,}"))
            console.print(table)
