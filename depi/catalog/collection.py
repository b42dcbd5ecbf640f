"""Collections: repositories that hold many datasets, one in each of their folders.

Some have hundreds of thousands of files, so that not even their names can be asked for at once. Then the
folders are walked from the top, and of each only whether it holds a dataset is asked.
"""

import logging
from collections.abc import Iterable
from contextvars import copy_context

from huggingface_hub.file_download import repo_folder_name

from depi.datasets.recording.formats import INFO_FILE
from depi.datasets.recording.sources import cache_faults
from depi.errors import UserError
from depi.files import cache_folder, read_json, write_json
from depi.hub.client import api as client
from depi.hub.names import DatasetId, is_dataset_id
from depi.threads import threads

logger = logging.getLogger(__name__)

MAX_DEPTH = 3
MAX_FOLDERS = 5_000
_THREADS = 8


def remembered(repo_id: str, revision: str) -> list[DatasetId] | None:
    """The datasets of a collection as it was at a commit, if they have been looked for before."""
    path = cache_folder() / "collections" / repo_folder_name(repo_id=repo_id, repo_type="dataset")
    try:
        folders = read_json(path / f"{revision}.json")
    except UserError:
        return None
    return _datasets(repo_id, folders) if isinstance(folders, list) else None


def from_file_list(repo_id: str, revision: str, files: Iterable[str]) -> list[DatasetId]:
    """The datasets in folders of a repository whose files are known."""
    ending = "/" + INFO_FILE
    return _remember(
        repo_id, revision, [path.removesuffix(ending) for path in files if path.endswith(ending)]
    )


def by_walking(repo_id: str, revision: str) -> list[DatasetId]:
    """The datasets in folders of a repository that has too many files to list them.

    Raises:
        HubError: unreachable.
        TooLarge: more than MAX_FOLDERS folders would have to be listed.
    """
    found: list[str] = []
    level = [""]
    for _ in range(MAX_DEPTH):
        folders = _below(repo_id, revision, level)
        if len(folders) > MAX_FOLDERS:
            raise client.TooLarge(f"{repo_id} holds more than {MAX_FOLDERS} folders")
        questions = {f"{folder}/{INFO_FILE}": folder for folder in folders}
        there = client.existing_files(repo_id, list(questions), revision=revision)
        found += [folder for question, folder in questions.items() if question in there]
        level = [folder for question, folder in questions.items() if question not in there]
        if not level:
            break
    return _remember(repo_id, revision, found)


def _below(repo_id: str, revision: str, folders: list[str]) -> list[str]:
    with threads(_THREADS) as pool:
        listings = [
            pool.submit(copy_context().run, client.list_folders, repo_id, folder, revision=revision)
            for folder in folders
        ]
        return [below for listing in listings for below in listing.result()]


def _remember(repo_id: str, revision: str, folders: list[str]) -> list[DatasetId]:
    folder = cache_folder() / "collections" / repo_folder_name(repo_id=repo_id, repo_type="dataset")
    if folders:
        with cache_faults(folder):
            write_json(folder / f"{revision}.json", sorted(folders))
    return _datasets(repo_id, folders)


def _datasets(repo_id: str, folders: list[str]) -> list[DatasetId]:
    datasets = [DatasetId(repo_id, str(folder)) for folder in sorted(folders)]
    for dataset in datasets:
        if not is_dataset_id(str(dataset)):
            logger.warning("left out: %s cannot be named as a dataset", ascii(str(dataset))[:200])
    return [dataset for dataset in datasets if is_dataset_id(str(dataset))]
