"""A dataset in a local folder, read where it is."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from depi.datasets.recording.sources import DatasetFiles, DatasetSource
from depi.errors import DatasetError

MAX_ENTRIES = 5_000_000

_STAMPED = (".json", ".jsonl", ".parquet")


class LocalFiles(DatasetFiles):
    """A folder that has everything already."""

    is_local = True

    def __init__(self, source: DatasetSource) -> None:
        self.repo_id = source.repo_id
        self.root = Path(source.root or ".").absolute()
        self.revision = source.revision
        if not self.root.is_dir():
            raise DatasetError(f"there is no folder {self.root}")
        self.episodes = source.episodes
        self.key = f"{source.repo_id}\n{source.revision}\n{self.root}\n{fingerprint(self.root)}"
        self.key += source.describe_episodes()

    def list_files(self) -> Mapping[str, int | None]:
        """All files of the folder."""
        paths = (path for path in self.root.rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in paths}

    def lacking(self, names: Iterable[str]) -> set[str]:
        """Those that are no file here."""
        return {name for name in names if not (self.root / name).is_file()}

    def fetch_metadata(self) -> None:
        """The metadata is here, or will be found missing."""

    def fetch(self, names: Sequence[str]) -> None:
        """All files are here, or will be found missing."""


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
