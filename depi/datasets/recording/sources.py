"""Where a dataset is, and what all storages have in common: how its files are listed and fetched."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from depi.datasets.recording.addresses import storable_name
from depi.datasets.recording.formats import INFO_FILE, DatasetMeta, metadata_files
from depi.errors import DatasetError, UserError, machine_error
from depi.files import naming


@dataclass(frozen=True)
class DatasetSource:
    """Where a dataset is: in a local folder `root`, at an address, or else on the Hub.

    repo_id: "user/name", or "user/name:path/inside" for a dataset in a folder of a collection; or an address
        such as "s3://bucket/folder", see `depi.datasets.recording.addresses`
    revision: a commit, tag or branch of the Hub, or a state of a bucket; None for the newest
    root: the folder; of an address file:///folder that one
    episodes: recorded episode indices to use, None for all

    Raises:
        UserError: `repo_id` is an address that cannot be opened, or that holds credentials.
    """

    repo_id: str
    revision: str | None = None
    root: Path | None = None
    episodes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "repo_id", storable_name(self.repo_id))
        scheme, _, path = self.repo_id.partition("://")
        if scheme == "file" and self.root is None:
            object.__setattr__(self, "root", Path(path))

    def describe_episodes(self) -> str:
        """What the choice of episodes adds to the key of a cache."""
        return "" if self.episodes is None else f"\nepisodes {sorted(set(self.episodes))}"


@contextmanager
def cache_faults(path: Path) -> Iterator[None]:
    """Raise a MachineError where the body cannot write `path`, which lies in DePi's cache."""
    try:
        with naming(path):
            yield
    except OSError as error:
        if (fault := machine_error(error, instead="set DEPI_CACHE to another folder")) is None:
            raise
        raise fault from None


class DatasetFiles(Protocol):
    """The files of a dataset at one state.

    repo_id: as the dataset is named
    revision: which state: a commit, or what stands for one; a local folder's is None unless it was given
    root: the folder that has the files, or has them once they are fetched
    episodes: as in `DatasetSource`
    key: of caches; it is another one where the files may be others
    is_local: the files are read where the user keeps them
    """

    repo_id: str
    revision: str | None
    root: Path
    episodes: tuple[int, ...] | None
    key: str
    is_local: bool

    @property
    def licence(self) -> str | None:
        """What the dataset's card says; None where it says nothing, or where nobody was asked."""
        return None

    def list_files(self) -> Mapping[str, int | None]:
        """All files: path in the dataset -> bytes, None where that is not known."""
        ...

    def lacking(self, names: Iterable[str]) -> set[str]:
        """Those of these files that the dataset is known to lack."""
        ...

    def fetch_metadata(self) -> None:
        """Have the files under `meta/` that are read in `root`; fails like `fetch`."""
        ...

    def fetch(self, names: Sequence[str]) -> None:
        """Have these files in `root`.

        Raises:
            DatasetError: the dataset lacks one.
            UserError: the storage does not give one, or one would have to be fetched offline.
        """
        ...

    def check_complete(self, meta: DatasetMeta) -> None:
        """UserError where `root` may lack some of the files that list the dataset's episodes."""
        return


class RemoteFiles(DatasetFiles, Protocol):
    """Files that are fetched as they are needed. What the cache has needs no request."""

    revision: str
    offline: bool
    is_local: bool = False

    def lacking(self, names: Iterable[str]) -> set[str]:
        """Those that are not listed; none if `offline`, where nothing is known of what the cache lacks."""
        return set() if self.offline else set(names) - self.list_files().keys()

    def fetch_metadata(self) -> None:
        """Fetch the files under `meta/` that are read."""
        names = metadata_files(self.list_files())
        if INFO_FILE not in names:
            raise DatasetError(f"{INFO_FILE} is missing")
        self.fetch(names)

    def fetch(self, names: Sequence[str]) -> None:
        """Fetch those of these files that the cache lacks."""
        wanted = [name for name in dict.fromkeys(names) if not (self.root / name).exists()]
        if not wanted:
            return
        if self.offline:
            others = f" and {len(wanted) - 1} other files" if len(wanted) > 1 else ""
            raise UserError(
                f"dataset {self.repo_id} at {self.revision} is not completely in the cache: "
                f"{wanted[0]}{others} must be fetched, open it once without offline"
            )
        present = self.list_files()
        missing = [name for name in wanted if name not in present]
        if missing:
            raise DatasetError(f"{missing[0]} is missing ({len(missing)} of {len(names)} files are)")
        self._download(wanted)

    def _download(self, names: Sequence[str]) -> None:
        """Put files that the storage has and the cache lacks into `root`."""
        ...
