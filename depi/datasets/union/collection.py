"""Open many datasets at once: from the cached index where it fits, else by reading what is new.

Several processes may open at the same time: one builds, the others wait for it.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from depi.datasets.recording.border import reading
from depi.datasets.recording.joints import check_native
from depi.datasets.recording.sources import DatasetFiles, DatasetSource
from depi.datasets.recording.storages import open_source
from depi.datasets.union.dataset_index import Options, Part, index_key, open_part
from depi.datasets.union.index import Index, prune, read_index
from depi.datasets.union.joining import join
from depi.errors import DatasetError, MachineError, UserError
from depi.files import cache_folder
from depi.hub.client.retry import HubSilent
from depi.progress import tracked
from depi.threads import threads

logger = logging.getLogger(__name__)

_OPEN_THREADS = 8


@dataclass(frozen=True)
class Collection:
    """Datasets that train together: their index, the folder of each, and what cannot be used, and why."""

    index: Index
    roots: tuple[Path, ...]
    quarantined: dict[str, str]


def open_collection(
    sources: Sequence[DatasetSource], options: Options, *, max_bad_datasets: float
) -> Collection:
    """Open every source; those that cannot be used are quarantined.

    Raises:
        UserError: no source is usable, more than the share `max_bad_datasets` is not, or `offline` and the
            cache lacks something.
        MachineError: a cache cannot be written.
        HubSilent: the Hub has gone away; what it does not give is no fault of the datasets.
    """
    outcomes = _in_threads(
        lambda source: open_source(source, offline=options.offline), sources, "Finding datasets"
    )
    quarantined = _reasons([source.repo_id for source in sources], outcomes, options)
    files = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    collection = _cached(files, options)
    if collection is None:
        folder = _folder(files, options)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder.parent} cannot be made ({error.strerror}), set DEPI_CACHE to a folder of yours"
            ) from None
        with WeakFileLock(f"{folder}.lock"):
            collection = _cached(files, options) or _build(files, options, quarantined)
    quarantined |= collection.quarantined if collection is not None else {}
    stop_if_too_bad(len(sources), quarantined, max_bad_datasets)
    assert collection is not None
    return Collection(collection.index, collection.roots, quarantined)


def _folder(files: Sequence[DatasetFiles], options: Options) -> Path:
    """Where the common index of these datasets is cached."""
    given = tuple(options.conventions.get(each.repo_id) for each in files)
    chosen = (options.max_cameras, options.episodes, options.cameras, [options.bad(each) for each in files])
    how = (options.joint_convention, given, options.correct_offsets)
    key = index_key([each.key for each in files], *chosen, *how)
    return cache_folder() / "index" / "sets" / key


def _cached(files: Sequence[DatasetFiles], options: Options) -> Collection | None:
    """The datasets' index from the cache; None where there is none, or where it names files that are gone."""
    index = read_index(_folder(files, options))
    if index is None:
        return None
    roots = tuple(files[number].root for number in index.manifest["sources"])
    if not _files_are_there(index, roots):
        return None
    return Collection(index, roots, index.manifest["quarantined"])


def _files_are_there(index: Index, roots: Sequence[Path]) -> bool:
    """Whether every file that the index names still is; one listing per folder."""
    folders: dict[tuple[int, str], set[str]] = {}
    for path, dataset in zip(index.files.to_pylist(), index.file_dataset.tolist(), strict=True):
        parent, _, name = path.rpartition("/")
        folders.setdefault((dataset, parent), set()).add(name)
    try:
        return all(
            names.issubset(os.listdir(roots[dataset] / parent))
            for (dataset, parent), names in folders.items()
        )
    except OSError:
        return False


def _build(files: Sequence[DatasetFiles], options: Options, quarantined: dict[str, str]) -> Collection | None:
    """Read what is new and join it; None where nothing is usable.

    What is wrong with a dataset at a revision is stored with the index. What the Hub failed to give is not:
    then the index is that of the datasets that came, and the next opening tries again.
    """
    outcomes = _in_threads(lambda each: open_part(each, options), files, "Opening datasets")
    names = [each.repo_id for each in files]
    failures = [outcome if isinstance(outcome, UserError) else None for outcome in outcomes]
    quarantined |= _reasons(names, failures, options)
    came = [number for number, failure in enumerate(failures) if failure is None]
    files, outcomes = [files[number] for number in came], [outcomes[number] for number in came]
    bad = _reasons([each.repo_id for each in files], outcomes, options)
    parts = {number: part for number, part in enumerate(outcomes) if isinstance(part, Part)}
    parts = keep_majority_kind(parts, bad)
    if not parts:
        quarantined |= bad
        return None
    if options.joint_convention == "native":
        check_native({part.entry["repo_id"]: part.detection for part in parts.values()})
    folder = _folder(files, options)
    if read_index(folder) is None:
        for kind in ("sets", "datasets"):
            prune(cache_folder() / "index" / kind)
        manifest = {"sources": list(parts), "quarantined": bad}
        join(folder, list(parts.values()), options.max_cameras, manifest)
    collection = _cached(files, options)
    if collection is None:
        raise UserError(
            f"the index {folder} cannot be read back, is the disk full or the cache being emptied?"
        )
    return collection


def _in_threads[Item, Result](
    function: Callable[[Item], Result], items: Sequence[Item], title: str
) -> list[Result | Exception]:
    """What `function` gives for each item, or the DatasetError or UserError that it raised, in order."""

    def outcome(item: Item) -> Result | Exception:
        try:
            with reading():
                return function(item)
        except (MachineError, HubSilent):
            raise
        except (DatasetError, UserError) as error:
            return error

    with threads(min(_OPEN_THREADS, len(items))) as pool:
        results = pool.map(outcome, items)
        return list(tracked(results, title, len(items)))


def _reasons(names: Sequence[str], outcomes: Sequence[object], options: Options) -> dict[str, str]:
    """Why what failed did; offline, what the user can mend is raised at once."""
    reasons = {}
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, UserError) and options.offline:
            raise outcome
        if isinstance(outcome, Exception):
            reasons[name] = str(outcome)
    return reasons


def keep_majority_kind(parts: dict[int, Part], quarantined: dict[str, str]) -> dict[int, Part]:
    """The datasets of the commonest kind (the first among equals); the others are quarantined."""
    kinds = [part.kind for part in parts.values()]
    if len(set(kinds)) <= 1:
        return parts
    expected = max(dict.fromkeys(kinds), key=kinds.count)
    for part in parts.values():
        if part.kind != expected:
            quarantined[part.entry["repo_id"]] = (
                f"{_name_kind(part.kind)}, the other datasets have {_name_kind(expected)}"
            )
    return {number: part for number, part in parts.items() if part.kind == expected}


def _name_kind(kind: tuple[int, int, bool]) -> str:
    unit = "in SO-100 joints" if kind[2] else "in numbers of its own robot"
    return f"a state of {kind[0]} and an action of {kind[1]} {unit}"


def stop_if_too_bad(total: int, quarantined: dict[str, str], max_bad_datasets: float) -> None:
    """Log what is quarantined; UserError where it is all, or too large a share of `total`."""
    if len(quarantined) < total and len(quarantined) <= max_bad_datasets * total:
        for repo_id, reason in quarantined.items():
            logger.warning("dataset %s is not used: %s", repo_id, reason)
        return
    reasons = "; ".join(f"{repo_id}: {reason}" for repo_id, reason in quarantined.items())
    raise UserError(
        f"{len(quarantined)} of {total} datasets cannot be used, leave them out "
        f"or raise max_bad_datasets: {reasons}"
    )
