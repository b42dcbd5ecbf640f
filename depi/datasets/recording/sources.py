"""Where a dataset comes from: a local folder, or a Hub repository of which files are fetched as needed."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from depi.datasets.recording.formats import DatasetMeta, metadata_files
from depi.errors import DatasetError, UserError
from depi.files import write_text
from depi.hub.names import parse_dataset_id

MAX_ENTRIES = 5_000_000

_COMMIT = re.compile(r"[0-9a-f]{40}")
_STAMPED = (".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class DatasetSource:
    """Where a dataset is: on the Hub at a revision (None: its newest), or, with `root`, in a local folder.

    repo_id: "user/name", or "user/name:path/inside" for a dataset in a folder of a collection
    episodes: recorded episode indices to use, None for all
    """

    repo_id: str
    revision: str | None = None
    root: Path | None = None
    episodes: tuple[int, ...] | None = None


def cache_folder() -> Path:
    """Where DePi keeps what it can build again: DEPI_CACHE, by default `depi` in HF_HOME."""
    return Path(os.environ.get("DEPI_CACHE") or Path(constants.HF_HOME, "depi"))


def open_source(source: DatasetSource, *, offline: bool = False) -> "LocalFiles | HubFiles":
    """The dataset's files at one state: a folder as it is now, or a repository at a commit.

    Args:
        source: which dataset.
        offline: ask no Hub; a revision that is no commit is the one it was when last asked for.

    Raises:
        DatasetError: the folder is missing.
        UserError: the Hub does not name the commit, or `offline` and it was never asked.
    """
    return LocalFiles(source) if source.root is not None else HubFiles(source, offline)


class LocalFiles:
    """A folder that has everything already."""

    def __init__(self, source: DatasetSource) -> None:
        self.repo_id = source.repo_id
        self.root = Path(source.root or ".").absolute()
        self.revision = source.revision
        if not self.root.is_dir():
            raise DatasetError(f"there is no folder {self.root}")
        self.episodes = source.episodes
        self.key = f"{source.repo_id}\n{source.revision}\n{self.root}\n{fingerprint(self.root)}"
        self.key += _chosen(self.episodes)

    @property
    def licence(self) -> str | None:
        """Not known of a folder."""
        return None

    def metadata(self) -> None:
        """The metadata is here, or will be found missing."""

    def check_complete(self, meta: DatasetMeta) -> None:
        """All files are here, whatever the metadata claims."""

    def fetch(self, names: Sequence[str]) -> None:
        """All files are here, or will be found missing."""


class HubFiles:
    """A Hub repository at one commit. What the cache has needs no request."""

    def __init__(self, source: DatasetSource, offline: bool) -> None:
        self.repo_id, self.offline = source.repo_id, offline
        try:
            self.dataset = parse_dataset_id(source.repo_id)
        except ValueError as error:
            raise UserError(str(error)) from None
        self._info: Any = None
        self._files: set[str] | None = None
        self.revision = self._commit(source.revision)
        folder = repo_folder_name(repo_id=self.dataset.repo_id, repo_type="dataset")
        self.root = Path(constants.HF_HUB_CACHE, folder, "snapshots", self.revision, self.dataset.path)
        self.episodes = source.episodes
        self.key = f"{source.repo_id}\n{self.revision}{_chosen(self.episodes)}"

    def _commit(self, revision: str | None) -> str:
        if revision is not None and _COMMIT.fullmatch(revision):
            return revision
        name = revision or "main"
        folder = repo_folder_name(repo_id=self.dataset.repo_id, repo_type="dataset")
        memory = cache_folder() / "refs" / folder / quote(name, safe="")
        if self.offline:
            for file in (memory, Path(constants.HF_HUB_CACHE, folder, "refs") / quote(name)):
                if file.is_file() and _COMMIT.fullmatch(commit := file.read_text().strip()):
                    return commit
            raise UserError(
                f"dataset {self.repo_id} at {name} is not in the cache, open it once without offline"
            )
        commit = self._ask(revision).sha
        if commit is None or not _COMMIT.fullmatch(commit):
            raise DatasetError("the Hub names no commit")
        if not (memory.is_file() and memory.read_text() == commit):
            write_text(memory, commit)
        return commit

    def _ask(self, revision: str | None) -> Any:
        from depi.hub.client import api as client

        if self._info is None:
            # The file list of a collection is long; its folder's own is asked for instead.
            expand = ("sha", "cardData") if self.dataset.path else ()
            self._info = client.repo_info(self.dataset.repo_id, revision=revision, expand=expand)
        return self._info

    @property
    def licence(self) -> str | None:
        """What the dataset's card says; None where it says nothing, or no Hub was asked."""
        licence = getattr(getattr(self._info, "card_data", None), "license", None)
        return licence if isinstance(licence, str) and licence.isprintable() else None

    def _present(self) -> set[str]:
        from depi.hub.client import api as client

        if self._files is None:
            repo_id, path = self.dataset.repo_id, self.dataset.path
            siblings = () if path else self._ask(self.revision).siblings or ()
            if 0 < len(siblings) <= client.LISTED_WHOLE:
                self._files = {file.rfilename for file in siblings}
            else:
                self._files = set(client.list_files(repo_id, path, revision=self.revision))
        return self._files

    def metadata(self) -> None:
        """Fetch the files under `meta/` that are read."""
        if self.offline:
            names = [path.relative_to(self.root).as_posix() for path in self.root.glob("meta/**/*")]
            names = metadata_files(names)
            families = (
                ("meta/tasks.jsonl", "meta/episodes.jsonl"),
                ("meta/tasks.parquet", "meta/episodes"),
            )
            lacking = [[name for name in each if not (self.root / name).exists()] for each in families]
            self.fetch(["meta/info.json"])
            self.fetch(min(lacking, key=len))
        else:
            names = metadata_files(self._present())
            if "meta/info.json" not in names:
                raise DatasetError("meta/info.json is missing")
        self.fetch(names)

    def check_complete(self, meta: DatasetMeta) -> None:
        """UserError where, `offline`, the cache may lack some of the files that list a dataset's episodes."""
        listed, expected = len(meta.episodes), meta.info.total_episodes
        if self.offline and meta.info.version.startswith("v3") and listed < expected:
            raise UserError(
                f"dataset {self.repo_id} at {self.revision} is not completely in the cache: "
                f"{listed} of its {expected} episodes are listed there, open it once without offline"
            )

    def fetch(self, names: Sequence[str]) -> None:
        """Have these files in `root`.

        Raises:
            DatasetError: the repository lacks one.
            UserError: the Hub does not give one, or `offline` and the cache lacks one.
        """
        from depi.hub.client import api as client

        wanted = [name for name in dict.fromkeys(names) if not (self.root / name).exists()]
        if not wanted:
            return
        if self.offline:
            others = f" and {len(wanted) - 1} other files" if len(wanted) > 1 else ""
            raise UserError(
                f"dataset {self.repo_id} at {self.revision} is not completely in the cache: "
                f"{wanted[0]}{others} must be fetched, open it once without offline"
            )
        present = self._present()
        missing = [name for name in wanted if name not in present]
        if missing:
            raise DatasetError(f"{missing[0]} is missing ({len(missing)} of {len(names)} files are)")
        inside = [self.dataset.inside(name) for name in wanted]
        client.download_files(self.dataset.repo_id, inside, revision=self.revision)


def _chosen(episodes: tuple[int, ...] | None) -> str:
    return "" if episodes is None else f"\nepisodes {sorted(set(episodes))}"


def fingerprint(root: Path) -> str:
    """A digest of a folder's file names, and of sizes and times of its JSON and parquet files.

    Videos enter by name alone: they are looked at when a frame is decoded. Hidden files and what links
    to folders point at are passed over.
    """
    digest = hashlib.blake2b(digest_size=16)
    folders, count = [str(root)], 0
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            raise DatasetError(f"a folder cannot be listed: {error.strerror}") from None
        count += len(entries)
        if count > MAX_ENTRIES:
            raise DatasetError(f"the folder holds more than {MAX_ENTRIES} files")
        digest.update(os.fsencode(folder[len(str(root)) :]) + b"\0")
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
                continue
            digest.update(os.fsencode(entry.name) + b"\0" + _stamp(entry))
    return digest.hexdigest()


def _stamp(entry: "os.DirEntry[str]") -> bytes:
    if not entry.name.endswith(_STAMPED):
        return b""
    try:
        state = entry.stat()
    except OSError:
        return b"missing"
    # The time of modification can be set back, as `cp -p` does, the time of change cannot.
    return b"%d %d %d" % (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
