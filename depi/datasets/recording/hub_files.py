"""A dataset in a repository of the Hub, at one commit."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import DatasetInfo, constants
from huggingface_hub.file_download import repo_folder_name

from depi.datasets.recording.formats import INFO_FILE, DatasetMeta, metadata_files
from depi.datasets.recording.sources import DatasetSource, RemoteFiles, cache_faults
from depi.errors import DatasetError, UserError
from depi.files import cache_folder, write_text
from depi.hub.names import parse_dataset_id

_COMMIT = re.compile(r"[0-9a-f]{40}")
# What is asked of a repository whose files are listed folder by folder.
_ABOUT = ("sha", "tags", "cardData", "gated", "disabled", "createdAt", "lastModified", "downloads", "likes")


class HubFiles(RemoteFiles):
    """A Hub repository, or a folder of one, at one commit.

    sizes: have the sizes of the files listed too, in a longer answer
    """

    def __init__(self, source: DatasetSource, *, offline: bool = False, sizes: bool = False) -> None:
        self.repo_id, self.offline, self._sizes = source.repo_id, offline, sizes
        try:
            self.dataset = parse_dataset_id(source.repo_id)
        except ValueError as error:
            raise UserError(str(error)) from None
        self._info: DatasetInfo | None = None
        self._too_large: Exception | None = None
        self._files: Mapping[str, int | None] | None = None
        self.revision = self._commit(source.revision)
        folder = repo_folder_name(repo_id=self.dataset.repo_id, repo_type="dataset")
        self.root = Path(constants.HF_HUB_CACHE, folder, "snapshots", self.revision, self.dataset.path)
        self.episodes = source.episodes
        self.key = f"{source.repo_id}\n{self.revision}{source.describe_episodes()}"

    def _commit(self, revision: str | None) -> str:
        if revision is not None and _COMMIT.fullmatch(revision):
            return revision
        name = revision or "main"
        folder = repo_folder_name(repo_id=self.dataset.repo_id, repo_type="dataset")
        memory = cache_folder() / "refs" / folder / quote(name, safe="")
        if self.offline:
            for file in (memory, Path(constants.HF_HUB_CACHE, folder, "refs") / quote(name)):
                if file.is_file() and _COMMIT.fullmatch(known := file.read_text().strip()):
                    return known
            raise UserError(
                f"dataset {self.repo_id} at {name} is not in the cache, open it once without offline"
            )
        commit = self._ask(revision).sha
        if commit is None or not _COMMIT.fullmatch(commit):
            raise DatasetError("the Hub names no commit")
        if not (memory.is_file() and memory.read_text() == commit):
            with cache_faults(memory):
                write_text(memory, commit)
        return commit

    def about(self) -> DatasetInfo:
        """What the Hub says of the repository at the commit; it is asked once.

        Raises:
            HubError: missing, closed or unreachable.
        """
        return self._ask(self.revision)

    def _ask(self, revision: str | None) -> DatasetInfo:
        from depi.hub.client import api as client

        if self._info is None and not self.dataset.path:
            try:
                found = client.repo_info(self.dataset.repo_id, revision=revision, files_metadata=self._sizes)
                assert isinstance(found, DatasetInfo)
                self._info = found
            except client.TooLarge as error:
                self._too_large = error
        if self._info is None:
            # The file list of a collection is long; its folder's own is asked for instead.
            ask = _about if revision and _COMMIT.fullmatch(revision) else _about.__wrapped__
            self._info = ask(client.endpoint(), self.dataset.repo_id, revision)
        return self._info

    @property
    def licence(self) -> str | None:
        """What the dataset's card says; None where it says nothing, or no Hub was asked."""
        licence = getattr(getattr(self._info, "card_data", None), "license", None)
        return licence if isinstance(licence, str) and licence.isprintable() else None

    def list_files(self) -> Mapping[str, int | None]:
        """The files of the dataset, from what the Hub says of the repository where that has them all.

        Raises:
            HubError: missing, closed or unreachable.
            TooLarge: there are more than can be listed.
        """
        from depi.hub.client import api as client

        if self._files is None:
            siblings = () if self.dataset.path else self.about().siblings or ()
            if self._too_large is not None:
                raise self._too_large
            if 0 < len(siblings) <= client.LISTED_WHOLE:
                self._files = {file.rfilename: file.size for file in siblings}
            else:
                folder = self.dataset.path
                self._files = {**client.list_files(self.dataset.repo_id, folder, revision=self.revision)}
        return self._files

    def fetch_metadata(self) -> None:
        """Fetch the files under `meta/` that are read."""
        if not self.offline:
            super().fetch_metadata()
            return
        names = [path.relative_to(self.root).as_posix() for path in self.root.glob("meta/**/*")]
        families = (("meta/tasks.jsonl", "meta/episodes.jsonl"), ("meta/tasks.parquet", "meta/episodes"))
        lacking = [[name for name in each if not (self.root / name).exists()] for each in families]
        self.fetch([INFO_FILE])
        self.fetch(min(lacking, key=len))
        self.fetch(metadata_files(names))

    def check_complete(self, meta: DatasetMeta) -> None:
        """UserError where, `offline`, the cache may lack some of the files that list a dataset's episodes."""
        listed, expected = len(meta.episodes), meta.info.total_episodes
        if self.offline and meta.info.version.startswith("v3") and listed < expected:
            raise UserError(
                f"dataset {self.repo_id} at {self.revision} is not completely in the cache: "
                f"{listed} of its {expected} episodes are listed there, open it once without offline"
            )

    def _download(self, names: Sequence[str]) -> None:
        from depi.hub.client import api as client

        inside = [self.dataset.inside(name) for name in names]
        client.download_files(self.dataset.repo_id, inside, revision=self.revision)


@lru_cache(maxsize=64)
def _about(endpoint: str, repo_id: str, revision: str | None) -> DatasetInfo:
    """The repository of a collection; asked once for all datasets in it, if the commit is known."""
    from depi.hub.client import api as client

    info = client.repo_info(repo_id, revision=revision, expand=_ABOUT)
    assert isinstance(info, DatasetInfo)
    return info
