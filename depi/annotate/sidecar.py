"""The sidecar of a dataset, which can be written again from its journal at any time.

See `depi.annotate.episode_journal` for the journal and `depi.datasets.samples.annotations` for the sidecar.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from depi.annotate.consistency import majority_views, unify
from depi.annotate.episode_journal import (
    RULES,
    Failure,
    Journal,
    Result,
    Review,
    journal_path,
    now,
    read_results,
)
from depi.datasets.samples.annotations import EpisodeAnnotation, annotation_path, write_annotations
from depi.errors import UserError
from depi.files import read_json, remove_drafts
from depi.journal import LineFile


def rows_of(journal: Journal) -> list[EpisodeAnnotation]:
    """The rows of a sidecar: made consistent over the dataset, then changed by the reviewers' decisions.

    An episode that failed has a row where a person has typed its text.
    """
    results = [journal.results[episode] for episode in sorted(journal.results)]
    views = _views(journal)
    tasks = unify([(result.recorded, result.task, result.confidence) for result in results])
    rows = [
        _row(result, task, views, journal.reviews.get(result.episode))
        for result, task in zip(results, tasks, strict=True)
    ]
    rows += [_typed(journal.failures[episode], journal.reviews[episode], views) for episode in typed(journal)]
    return sorted(rows, key=lambda row: row.episode_index)


def _views(journal: Journal) -> dict[str, str]:
    """camera key -> the view that models saw, or else the one that the camera's name suggests.

    Of each episode the newest answer counts, also where a later model was not asked about views.
    """
    seen: dict[int, Mapping[str, str]] = {}
    named: dict[int, Mapping[str, str]] = {}
    for result in journal.everything:
        if result.views and result.revision == journal.revision:
            (named if result.backend == RULES else seen)[result.episode] = result.views
    by_name, by_sight = (majority_views(votes[one] for one in sorted(votes)) for votes in (named, seen))
    return by_name | by_sight


def typed(journal: Journal) -> list[int]:
    """The episodes that failed and have a text by a person."""
    reviews = journal.reviews
    return [item for item in journal.failures if item in reviews and reviews[item].verdict == "edited"]


def _typed(failure: Failure, review: Review, views: Mapping[str, str]) -> EpisodeAnnotation:
    return EpisodeAnnotation(
        episode_index=failure.episode,
        original_task=failure.recorded or None,
        task=review.task,
        camera_views=dict(views),
        flags=(review.verdict,),
        confidence=1.0,
    )


def _row(
    result: Result, task: str | None, views: Mapping[str, str], review: Review | None
) -> EpisodeAnnotation:
    flags, confidence = list(result.flags), result.confidence
    if task != result.task:
        flags.append("unified")
    if review is not None and review.verdict == "rejected" and review.task not in (None, result.proposed):
        review = None
    if review is not None:
        accepted = review.task or result.proposed or result.task
        chosen = {"accepted": accepted, "edited": review.task, "rejected": None}
        task = chosen[review.verdict]
        confidence = confidence if review.verdict == "rejected" else 1.0
        flags = [flag for flag in flags if flag != "unified"] + [review.verdict]
    return EpisodeAnnotation(
        episode_index=result.episode,
        original_task=result.recorded or None,
        task=task,
        camera_views=dict(views),
        flags=tuple(flags),
        refinements=len(result.refinements),
        confidence=confidence,
    )


def is_current(folder: Path, repo_id: str, state: str | None) -> bool:
    """Whether the sidecar is up to date with the journal, for a revision; true where there is no journal."""
    journal, sidecar = journal_path(folder, repo_id), annotation_path(folder, repo_id)
    if not journal.exists():
        return True
    try:
        # In the order of writing; a process killed in between leaves another order.
        times = [path.stat().st_mtime_ns for path in (journal, sidecar.with_suffix(".json"), sidecar)]
        if not times[0] < times[1] <= times[2]:
            return False
        return read_json(sidecar.with_suffix(".json")).get("state") == state
    except (OSError, UserError, AttributeError):
        return False


def write_sidecar(folder: Path, repo_id: str, revision: str | None = None) -> Path | None:
    """Write a dataset's sidecar, and the JSON beside it, from its journal.

    Without rows no sidecar is written and None is returned; a sidecar that came without a journal is kept.

    The JSON: `revision` (None for a local folder, then `state` is its digest), `model`, `backend`,
    `prompts` (stage -> newest version) of most episodes, `models` (name -> episodes), `counts`, `tokens`,
    `written_at`.
    """
    path = journal_path(folder, repo_id)
    if not path.exists():
        return None
    # Locked, so that an older state of the journal cannot overwrite a newer one.
    with LineFile(path, wait=True):
        for suffix in (".parquet", ".json"):
            remove_drafts(path.with_suffix(suffix))
        journal = read_results(folder, repo_id, revision)
        rows = rows_of(journal)
        if not rows:
            if journal.reviews:  # a person withdrew the only text
                for suffix in (".parquet", ".json"):
                    path.with_suffix(suffix).unlink(missing_ok=True)
            return None
        return write_annotations(folder, repo_id, rows, _provenance(journal, rows))


def _provenance(journal: Journal, rows: Iterable[EpisodeAnnotation]) -> dict[str, Any]:
    results, rows = journal.results.values(), list(rows)
    models = Counter((result.backend, result.model) for result in results)
    tried = models or Counter((item.backend, item.model) for item in journal.failures.values())
    (backend, model), _ = tried.most_common(1)[0]
    prompts: dict[str, str] = {}
    for result in sorted(results, key=lambda result: result.at):
        if (result.backend, result.model) == (backend, model):
            prompts |= result.prompts
    state = journal.revision
    counts = {
        "episodes": len(rows),
        "with_task": sum(row.task is not None for row in rows),
        "failed": len(journal.failures) - len(typed(journal)),
        "reviewed": len(journal.reviews),
        "flags": dict(Counter(flag.partition(":")[0] for row in rows for flag in row.flags)),
    }
    tokens = {
        kind: sum(result.tokens.get(kind, 0) for result in results) for kind in ("prompt", "completion")
    }
    return {
        "revision": None if state is None or state.startswith("local-") else state,
        "state": state,
        "backend": backend,
        "model": model,
        "prompts": prompts,
        "models": {f"{name[0]}:{name[1]}": count for name, count in models.items()},
        "counts": counts,
        "tokens": tokens,
        "written_at": now(),
    }
