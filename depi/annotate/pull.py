"""Download published annotations into a folder.

What comes from a Hub was written by strangers: only files whose names and sizes are as expected are fetched,
each is read and checked completely, and the files in the folder are written from the checked values.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from depi.annotate import episode_journal as store
from depi.annotate.sidecar import write_sidecar
from depi.catalog.text import clean
from depi.datasets.samples.annotations import (
    EpisodeAnnotation,
    annotation_path,
    check_text,
    read_annotations,
    write_annotations,
)
from depi.engine.confined import confined
from depi.errors import DatasetError, UserError
from depi.files import draft_folder
from depi.hub.names import is_dataset_id
from depi.journal import LineFile, read_lines

# Suffix -> bytes that a file may have.
MAX_BYTES = {".parquet": 64 * 2**20, ".json": 2**20, ".jsonl": 256 * 2**20}
SUFFIXES = tuple(MAX_BYTES)
MAX_FILES = 100_000
MAX_TOTAL_BYTES = 8 * 2**30
_NAMED = 5


@dataclass(frozen=True)
class Pulled:
    """What a pull did: the commit, the datasets that are new here, those whose annotations were replaced,
    those that were the same already, and the files or datasets that were refused, with the reason.
    """

    commit: str
    new: tuple[str, ...]
    replaced: tuple[str, ...]
    same: tuple[str, ...]
    refused: dict[str, str]


def pull(folder: Path, repo_id: str, *, revision: str | None = None, overwrite: bool = False) -> Pulled:
    """Download the annotations of a repository into a folder; nothing is written before all is checked.

    Raises:
        UserError: it holds no annotations, too many, or ones that differ from those reviewed here.
        HubError: missing, private or unreachable.
    """
    from depi.hub.client import api as client

    info = client.repo_info(repo_id, revision=revision, files_metadata=True)
    if info.sha is None:
        raise UserError(f"the Hub names no commit for {repo_id}")
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    wanted, refused = choose(sizes)
    if not wanted:
        raise UserError(f"{repo_id} holds no annotations: expected files USER/NAME.parquet")
    root = client.download_files(repo_id, wanted, revision=info.sha, progress=True)
    names = [name.removesuffix(".parquet") for name in wanted if name.endswith(".parquet")]
    with draft_folder(folder / "pull") as work:
        checked = _check(root, work, names, refused)
        same = [name for name in checked if _rows(folder, name) == _rows(work, name)]
        other = [name for name in checked if name not in set(same)]
        # After a kill a journal may be all that there is.
        there = {
            name
            for name in other
            if annotation_path(folder, name).exists() or store.journal_path(folder, name).exists()
        }
        reviewed = [name for name in other if is_reviewed(folder, name)]
        if reviewed and not overwrite:
            named = ", ".join(reviewed[:_NAMED]) + (", ..." if len(reviewed) > _NAMED else "")
            raise UserError(
                f"annotations of {len(reviewed)} datasets were reviewed here and differ from those of "
                f"{repo_id}: {named}; nothing is changed, --overwrite replaces them"
            )
        put = [name for name in other if _put(work, folder, name, refused, overwrite)]
    new = tuple(name for name in put if name not in there)
    replaced = tuple(sorted(there.intersection(put)))
    return Pulled(info.sha, new, replaced, tuple(same), refused)


def choose(sizes: dict[str, int]) -> tuple[list[str], dict[str, str]]:
    """Which of a repository's files to fetch, and why not the others that look like annotations.

    Args:
        sizes: path -> bytes, as the Hub says.

    Raises:
        UserError: there are too many, or they are too large together.
    """
    refused: dict[str, str] = {}
    stems: dict[str, list[str]] = {}
    for name, size in sorted(sizes.items()):
        stem, dot, suffix = name.rpartition(".")
        limit = MAX_BYTES.get(dot + suffix)
        if limit is None:
            continue
        if not (is_dataset_id(stem) and not stem.startswith(".")):
            refused[name] = "its name is not of the form USER/NAME"
        elif size > limit:
            refused[name] = f"it has {size} bytes, at most {limit} are read"
        else:
            stems.setdefault(stem, []).append(name)
    # Without its sidecar the rest is of no use; a part that is refused leaves the others out.
    bad = {name.rpartition(".")[0] for name in refused}
    wanted = [
        name
        for stem, names in stems.items()
        if f"{stem}.parquet" in names and stem not in bad
        for name in names
    ]
    total = sum(sizes[name] for name in wanted)
    if len(wanted) > MAX_FILES or total > MAX_TOTAL_BYTES:
        raise UserError(
            f"{len(wanted)} files of {total / 1e9:.1f} GB are annotations: at most {MAX_FILES} of "
            f"{MAX_TOTAL_BYTES / 1e9:.1f} GB are fetched"
        )
    return wanted, {name[:200]: reason for name, reason in refused.items()}


def _check(root: Path, work: Path, names: Iterable[str], refused: dict[str, str]) -> list[str]:
    """Check the downloaded files and write them again into `work`; return the datasets that are valid."""
    good = []
    for name in names:
        try:
            confined(_write_anew, root, work, name)
            good.append(name)
        except DatasetError as error:
            refused[name] = str(error)
    return good


def _write_anew(root: Path, work: Path, name: str) -> None:
    """Read a dataset's three files and write them again.

    Raises:
        DatasetError: a file is missing or not valid.
    """
    found = read_annotations(root, name)
    if found is None:
        raise DatasetError("the sidecar is missing")
    rows, provenance = found
    lines = [_checked_line(line) for line in read_lines(store.journal_path(root, name))]
    if lines:
        with LineFile(store.journal_path(work, name)) as file:
            for line in lines:
                file.add(line)
    try:
        # The next run writes the sidecar from the journal: that must be possible.
        write_sidecar(work, name)
        read_annotations(work, name)
        write_annotations(work, name, rows, provenance)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DatasetError(f"it cannot be written again: {str(error)[:200]}") from None


def _checked_line(line: bytes) -> str:
    try:
        item = store.from_line(line)
        check_text(item.at, "at")
        check_text(item.revision, "a revision")
        if isinstance(item, store.Review):
            check_text(item.task, "a reviewed text")
        else:
            for text in (item.backend, item.model, item.recorded):
                check_text(text, "a text")
        if isinstance(item, store.Result):
            named = (item.prompts, item.views, item.frames, item.tokens)
            for said in (item.proposed, item.task, *item.flags, *item.prompts.values(), *chain(*named)):
                check_text(said, "a text")
        elif isinstance(item, store.Failure):
            check_text(item.reason, "a reason")
        return store.to_line(item)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise DatasetError(f"the journal is damaged: {clean(error, 200)}") from None


def _rows(folder: Path, name: str) -> list[EpisodeAnnotation] | None:
    """A sidecar's rows; None where there is none that can be read."""
    try:
        found = read_annotations(folder, name)
    except DatasetError:
        return None
    return found and found[0]


def is_reviewed(folder: Path, name: str) -> bool:
    """Whether a person has decided about an episode of a dataset, at whatever revision."""
    flags = {flag for row in _rows(folder, name) or [] for flag in row.flags}
    items = store.read_journal(folder, name)
    return bool(flags & set(store.VERDICTS)) or any(isinstance(item, store.Review) for item in items)


def _put(work: Path, folder: Path, name: str, refused: dict[str, str], overwrite: bool) -> bool:
    """Move a dataset's checked files into the folder, unless it is being annotated or reviewed there."""
    try:
        claimed = store.claim(folder, name)
    except UserError as error:
        refused[name] = str(error)
        return False
    try:
        _move(work, folder, name, overwrite)
    except UserError as error:
        refused[name] = str(error)
        return False
    finally:
        store.release(claimed)
    return True


def _move(work: Path, folder: Path, name: str, overwrite: bool) -> None:
    """The journal first: the sidecar is made from it."""
    found = store.journal_path(work, name)
    with LineFile(store.journal_path(folder, name), wait=True) as file:
        if not overwrite and is_reviewed(folder, name):
            raise UserError("it has been reviewed here since; --overwrite replaces that")
        if found.exists():
            found.replace(file.path)
        else:
            file.remove()
        for suffix in (".json", ".parquet"):
            path = annotation_path(work, name).with_suffix(suffix)
            path.replace(annotation_path(folder, name).with_suffix(suffix))
