"""A dataset in a bucket, or in any other storage that fsspec opens.

Files are copied into DePi's cache as they are needed. It is laid out like the Hub's: `blobs/` has the files,
`snapshots/<revision>/` links to them under their names, `listings/<revision>.json` has what a state of the
folder consists of. The revision is a digest over names, sizes and versions of all files, such as their ETags:
it is another one as soon as a file is. Credentials are those that the storage's library finds by itself.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import fsspec

from depi.datasets.recording.addresses import STORAGES, VERSIONS, Storage
from depi.datasets.recording.checks import check_relative
from depi.datasets.recording.sources import DatasetSource, RemoteFiles, cache_faults
from depi.errors import DatasetError, UserError, machine_error
from depi.files import atomic_write, cache_folder, read_json, write_json, write_text
from depi.hub.names import path_problem
from depi.threads import threads

MAX_FILES = 100_000
PARALLEL_DOWNLOADS = 8

type _State = tuple[int, str]
"""Bytes and version of a file."""


class BucketFiles(RemoteFiles):
    """The folder at an address as it is now, or as it was last seen."""

    def __init__(self, source: DatasetSource, *, offline: bool = False) -> None:
        self.repo_id, self.offline, self.episodes = source.repo_id, offline, source.episodes
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", self.repo_id)[-100:]
        digest = hashlib.blake2b(self.repo_id.encode(), digest_size=8).hexdigest()
        self._cache = cache_folder() / "storage" / f"{name}-{digest}"
        self._files: dict[str, _State] = {}
        self.revision = self._known(source.revision) or self._look(source.revision)
        self.root = self._cache / "snapshots" / self.revision
        self.key = f"{self.repo_id}\n{self.revision}{source.describe_episodes()}"

    def _known(self, revision: str | None) -> str | None:
        """The revision that was asked for, or offline the newest, if the cache knows its files."""
        newest = self._cache / "newest"
        if revision is None and self.offline and newest.is_file():
            revision = newest.read_text()
        listing = self._cache / "listings" / f"{revision}.json"
        if revision is None or path_problem(revision) or not listing.is_file():
            if self.offline:
                name = revision or "its newest state"
                raise UserError(
                    f"dataset {self.repo_id} at {name} is not in the cache, open it once without offline"
                )
            return None
        self._files = {name: (size, version) for name, (size, version) in read_json(listing).items()}
        return revision

    def _look(self, expected: str | None) -> str:
        """List the folder as it is now; the revision of that state."""
        self._files = self._list()
        revision = hashlib.blake2b(repr(sorted(self._files.items())).encode(), digest_size=20).hexdigest()
        if expected not in (None, revision):
            raise UserError(
                f"{self.repo_id} is no longer at {ascii(expected)[1:-1][:40]}, and a bucket keeps no earlier "
                f"states: leave the revision out to use {revision}"
            )
        listing = self._cache / "listings" / f"{revision}.json"
        newest = self._cache / "newest"
        with cache_faults(self._cache):
            if not listing.is_file():
                write_json(listing, self._files)
            if not (newest.is_file() and newest.read_text() == revision):
                write_text(newest, revision)
        return revision

    def _list(self) -> dict[str, _State]:
        with _explained(self.repo_id):
            storage, folder = self._open()
            storage.invalidate_cache()
            found = storage.find(folder, detail=True)
        if len(found) > MAX_FILES:
            raise DatasetError(f"it holds more than {MAX_FILES} files")
        prefix = f"{folder}/"
        names = {path: path.removeprefix(prefix) for path in found if path.startswith(prefix)}
        files = {
            name: _state(found[path])
            for path, name in names.items()
            if found[path]["type"] == "file" and path_problem(name) is None
        }
        if not files:
            raise UserError(f"{self.repo_id} holds no files: check the bucket and the folder")
        return files

    def _open(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """The storage, which fsspec keeps for this process, and the folder's path there."""
        storage, folder = fsspec.url_to_fs(self.repo_id, use_listings_cache=False)
        return storage, folder.rstrip("/")

    def list_files(self) -> Mapping[str, int | None]:
        """The files of this state."""
        return {name: size for name, (size, _) in self._files.items()}

    def _download(self, names: Sequence[str]) -> None:
        with threads(min(PARALLEL_DOWNLOADS, len(names))) as pool:
            for _ in pool.map(self._download_one, names):
                pass

    def _download_one(self, name: str) -> None:
        check_relative(name, "path")
        state = self._files[name]
        digest = hashlib.blake2b(repr((name, state)).encode(), digest_size=20).hexdigest()
        blob, place = self._cache / "blobs" / digest, self.root / name
        if not blob.exists():
            with _explained(self.repo_id, name), atomic_write(blob) as draft:
                storage, folder = self._open()
                storage.get_file(f"{folder}/{name}", str(draft))
                # Whoever replaced the file meanwhile has made another state of the folder.
                if _state(storage.info(f"{folder}/{name}", refresh=True)) != state:
                    raise UserError(
                        f"{name} of {self.repo_id} is no longer as it was at {self.revision}: start again, "
                        "without that revision, when nobody writes there"
                    )
                if draft.stat().st_size != state[0]:
                    raise UserError(f"{name} of {self.repo_id} arrived cut short: try again")
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            place.symlink_to(os.path.relpath(blob, place.parent))


def _state(info: Mapping[str, Any]) -> _State:
    value = next((info[name] for name in VERSIONS if info.get(name)), "")
    # A file in memory has a number in a listing and a date elsewhere.
    return int(info["size"]), str(value.timestamp() if isinstance(value, datetime) else value)


@contextlib.contextmanager
def _explained(address: str, name: str = "") -> Iterator[None]:
    """Turn what a storage's library raises into one sentence without what may be a secret."""
    try:
        yield
    except (UserError, DatasetError):
        raise
    except Exception as error:  # each library has exceptions of its own
        storage = STORAGES[address.partition("://")[0]]
        raise _explain(error, storage, f"{name} of {address}" if name else address) from None


def _explain(error: Exception, storage: Storage, what: str) -> UserError:
    if isinstance(error, ImportError):
        return UserError(f"{what} needs a package that is not here: install {storage.install}")
    # An error of the server may carry a number too, but then it has a cause.
    full = None if error.__cause__ else machine_error(error, cache_folder(), "set DEPI_CACHE elsewhere")
    if full is not None:
        return full
    if isinstance(error, FileNotFoundError):
        return UserError(f"{what} does not exist: check the bucket and the folder")
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return UserError(f"{what} does not open with your credentials: check {storage.credentials}")
    return UserError(f"{what} cannot be read ({type(error).__name__}): check the network, and try again")
