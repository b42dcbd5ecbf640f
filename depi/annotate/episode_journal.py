"""A dataset's journal: everything that was found out about its episodes.

Beside the sidecar `FOLDER/<user>/<name>.parquet` (see `depi.annotate.sidecar`) lies its journal,
`FOLDER/<user>/<name>.jsonl`, which is only added to. A line is a JSON object of one of three kinds:

    {"kind": "result", ...}      the fields of `Result`: an episode is finished
    {"kind": "failure", ...}     the fields of `Failure`: it was tried, and is tried again next time
    {"kind": "review", "episode": 3, "revision": ..., "at": ..., "review": {"verdict": "edited", "task": ...}}
                                 a person's decision, which wins over the model's text

Of results for the same episode and revision the last one counts, except that one without a model (`rules`)
never replaces a model's. Damaged lines are skipped with a warning.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from depi.datasets.recording.addresses import from_path, is_address
from depi.datasets.recording.checks import short
from depi.datasets.samples.annotations import ANNOTATED_VIEWS, annotation_path
from depi.errors import UserError
from depi.hub.names import is_dataset_id
from depi.journal import LineFile, read_lines

logger = logging.getLogger(__name__)

RULES = "rules"
"""The `backend` and `model` of results that no model gave."""
VERDICTS = ("accepted", "rejected", "edited")
MAX_LINE = 1_000_000
MAX_ITEMS = 64
_Fits = Callable[[Any], bool]


@dataclass(frozen=True)
class Result:
    """What one annotator found out about one episode.

    episode: as recorded
    revision: the commit, or for a local folder "local-" and a digest of its metadata
    backend, model: what wrote it; both RULES without a model
    prompts: stage -> version of the prompt that it was asked with; see `depi.annotate.templates`
    recorded: the recorded task text, on one line
    proposed: the new text, whether or not it is trusted; None where there is none
    task: the text to train on; None keeps the recorded one, and a flag says why
    confidence: of `proposed`, 0..1, None where it is not known
    flags: remarks; see `depi.annotate.checks`
    instruction: the checked answer of the first stage, None where it was not asked or not given
    refinements: the checked answers of the second stage, in order
    views: camera key -> the view that the model saw in this episode's frames; empty where not asked
    frames: camera key -> numbers of the frames (from 0 in the episode) that the model saw
    tokens: "prompt" and "completion", as the server counts them, over all requests of this line
    requests: how many were answered
    seconds: from the first request to the last answer
    at: when, ISO 8601 in UTC
    """

    episode: int
    revision: str | None
    backend: str
    model: str
    prompts: Mapping[str, str] = field(default_factory=dict)
    recorded: str = ""
    proposed: str | None = None
    task: str | None = None
    confidence: float | None = None
    flags: tuple[str, ...] = ()
    instruction: Mapping[str, Any] | None = None
    refinements: tuple[Mapping[str, Any], ...] = ()
    views: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    requests: int = 0
    seconds: float = 0.0
    at: str = ""


@dataclass(frozen=True)
class Failure:
    """Why an episode has no result; `reason` is one sentence, the rest as in `Result`."""

    episode: int
    revision: str | None
    backend: str
    model: str
    reason: str
    at: str = ""
    recorded: str = ""


@dataclass(frozen=True)
class Review:
    """A person's decision about an episode.

    task: the text of an edit, or the one that was accepted; of a rejection the proposed text, so that
        another one may be used, or None to use none whatever is proposed later
    revision: that was looked at; None for whatever revision is annotated
    """

    episode: int
    verdict: str
    task: str | None = None
    revision: str | None = None
    at: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r} is none of {', '.join(VERDICTS)}")
        if self.verdict == "edited" and not (self.task or "").strip():
            raise ValueError("an edit needs a text")


@dataclass
class Journal:
    """The content of a dataset's journal.

    results: episode -> the result that counts, of `revision`
    failures: episode -> its failure, where it has no result; a person may still have typed its text
    reviews: episode -> the last decision about it, of `revision`
    everything: all results of all revisions, models and prompts, in order
    revision: of the newest result or, without one, the newest failure
    """

    results: dict[int, Result] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    reviews: dict[int, Review] = field(default_factory=dict)
    everything: list[Result] = field(default_factory=list)
    revision: str | None = None


def journal_path(folder: Path, repo_id: str) -> Path:
    """Where a dataset's journal is; DatasetError where the repo id would lead out of the folder."""
    return annotation_path(folder, repo_id).with_suffix(".jsonl")


def claim(folder: Path, repo_id: str) -> LineFile:
    """Keep others from annotating a dataset until `release`, or until this process ends.

    Raises:
        UserError: another process annotates it.
    """
    path = journal_path(folder, repo_id)
    try:
        return LineFile(path.with_name(f".{path.stem}.annotating"))
    except BlockingIOError:
        raise UserError(f"another depi annotate works on {repo_id}") from None


def release(claimed: LineFile) -> None:
    """Let others annotate the dataset."""
    claimed.remove()
    claimed.close()


def annotated_datasets(folder: Path) -> list[str]:
    """The repo ids of all datasets that have a sidecar or a journal in a folder, sorted."""
    names = {
        from_path(path.relative_to(folder).with_suffix("").as_posix())
        for suffix in ("parquet", "jsonl")
        for path in folder.glob(f"*/**/*.{suffix}")
    }
    return sorted(name for name in names if is_address(name) or is_dataset_id(name))


def now() -> str:
    """The time, for `at`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def append(folder: Path, repo_id: str, *items: Result | Failure | Review) -> None:
    """Add to a dataset's journal; several processes may do so at a time.

    Raises:
        OSError: it cannot be written.
    """
    with LineFile(journal_path(folder, repo_id), wait=True) as file:
        for item in items:
            file.add(to_line(item))


def to_line(item: Result | Failure | Review) -> str:
    """The JSON of a journal's line."""
    values = dataclasses.asdict(item)
    if isinstance(item, Review):
        decision = {"verdict": values.pop("verdict"), "task": values.pop("task")}
        values |= {"review": decision}
    kind = type(item).__name__.lower()
    return json.dumps({"kind": kind, **values}, ensure_ascii=False, allow_nan=False)


def from_line(line: bytes) -> Result | Failure | Review:
    """Parse a line of a journal; ValueError, KeyError or TypeError where it is not valid."""
    if len(line) > MAX_LINE:
        raise ValueError("the line is too long")
    values = json.loads(line)
    if b"\\u" in line:
        json.dumps(values, ensure_ascii=False).encode()  # ValueError for a lone surrogate
    kind = values.pop("kind")
    if kind == "review":
        values |= values.pop("review")
    for name, value in values.items():
        if not _FITS[name](value):
            raise ValueError(f"{name} is {short(value)}")
    if kind == "review":
        return Review(**values)
    if kind == "failure":
        return Failure(**values)
    if kind != "result":
        raise ValueError(f"kind is {short(kind)}")
    for name in ("flags", "refinements"):
        values[name] = tuple(values[name])
    values["frames"] = {key: tuple(frames) for key, frames in values["frames"].items()}
    return Result(**values)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_number(value: Any, most: float = 1e12) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _is_answer(value: Any) -> bool:
    return isinstance(value, dict)


def _may_lack(fits: _Fits) -> _Fits:
    return lambda value: value is None or fits(value)


def _list_of(fits: _Fits) -> _Fits:
    return lambda value: isinstance(value, list) and len(value) <= MAX_ITEMS and all(map(fits, value))


def _by_name(fits: _Fits) -> _Fits:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


# Field -> whether a value of JSON is one; journals may come from strangers.
_FITS: Mapping[str, _Fits] = {
    **dict.fromkeys(("backend", "model", "recorded", "reason", "at", "verdict"), _is_text),
    **dict.fromkeys(("revision", "proposed", "task"), _may_lack(_is_text)),
    **dict.fromkeys(("episode", "requests"), _is_whole),
    "prompts": _by_name(_is_text),
    "confidence": _may_lack(partial(_is_number, most=1.0)),
    "flags": _list_of(_is_text),
    "instruction": _may_lack(_is_answer),
    "refinements": _list_of(_is_answer),
    "views": _by_name(ANNOTATED_VIEWS.__contains__),
    "frames": _by_name(_list_of(_is_whole)),
    "tokens": _by_name(_is_whole),
    "seconds": _is_number,
}


def read_journal(folder: Path, repo_id: str) -> list[Result | Failure | Review]:
    """All that a dataset's journal holds, in order; damaged lines are skipped with a warning."""
    path = journal_path(folder, repo_id)
    items: list[Result | Failure | Review] = []
    damaged = 0
    for line in read_lines(path):
        try:
            items.append(from_line(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
    if damaged:
        logger.warning("%s of %s lines of %s are damaged and not used", damaged, damaged + len(items), path)
    return items


def read_results(folder: Path, repo_id: str, revision: str | None = None) -> Journal:
    """Read a dataset's journal, also while another process adds to it; empty where there is none.

    Args:
        folder: of the annotations.
        repo_id: of the dataset.
        revision: whose results count; by default the one annotated last.
    """
    journal, items = Journal(), read_journal(folder, repo_id)
    journal.everything = [item for item in items if isinstance(item, Result)]
    tried: Sequence[Result | Failure] = journal.everything
    if not tried:
        tried = [item for item in items if isinstance(item, Failure)]
    journal.revision = revision or (tried[-1].revision if tried else None)
    for item in items:
        if isinstance(item, Review):
            if item.revision in (None, journal.revision):
                journal.reviews[item.episode] = item
        elif item.revision == journal.revision:
            _count(journal, item)
    return journal


def _count(journal: Journal, item: Result | Failure) -> None:
    before = journal.results.get(item.episode)
    if isinstance(item, Failure):
        if before is None:
            journal.failures[item.episode] = item
    elif before is None or item.backend != RULES or before.backend == RULES:
        journal.results[item.episode] = item
        journal.failures.pop(item.episode, None)
