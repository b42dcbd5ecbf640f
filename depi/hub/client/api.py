"""Listing, reading and publishing on a Hub, through huggingface_hub: the one that HF_ENDPOINT names.

Failures that pass are retried; those that stay are a `HubError`, one sentence that says what to do.
"""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import DatasetInfo, HfApi, ModelInfo, RepoFile, constants, get_token, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import tqdm as hub_tqdm
from huggingface_hub.utils import validate_repo_id

from depi import __version__
from depi.addresses import without_credentials
from depi.errors import DatasetError, UserError
from depi.hub.client import session
from depi.hub.client.fetch import (
    TooLarge,
    TooSlow,
    check_time,
    fetch_small,
    get_json,
    get_page,
    snapshot_folder,
    time_limit,
)
from depi.hub.client.retry import (
    EXPECTED,
    LOGIN,
    FileMissing,
    HubError,
    HubSilent,
    HubUnreachable,
    RepoGated,
    RepoMissing,
    RevisionMissing,
    Target,
    TokenMissing,
    explain,
    retried,
)
from depi.hub.names import path_problem
from depi.progress import progress_bar
from depi.threads import threads

__all__ = [
    "FileMissing",
    "HubError",
    "HubSilent",
    "HubUnreachable",
    "RepoGated",
    "RepoMissing",
    "RevisionMissing",
    "TokenMissing",
    "TooLarge",
    "TooSlow",
    "check_time",
    "download_file",
    "download_files",
    "endpoint",
    "existing_files",
    "go_offline",
    "list_datasets",
    "list_files",
    "list_folders",
    "list_names",
    "repo_info",
    "require_token",
    "time_limit",
    "upload_folder",
]

PARALLEL_DOWNLOADS = 8
# Fewer files than this are fetched one after another: starting threads would take longer.
PARALLEL_FROM = 4
MAX_FILES = 100_000
_PATHS_PER_QUESTION = 500
_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")

session.install()


def endpoint() -> str:
    """Return the address of the Hub in use, without a final slash, and without user and password.

    huggingface_hub reads HF_ENDPOINT once, when it is imported; here it is read at every call. The session
    sends user and password.
    """
    return without_credentials(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def go_offline() -> None:
    """Keep this process off the network from now on; huggingface_hub and transformers use what is cached."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def _api() -> HfApi:
    return HfApi(endpoint=endpoint(), library_name="depi", library_version=__version__)


def list_datasets(
    *,
    tags: Sequence[str] = (),
    search: str | None = None,
    author: str | None = None,
    limit: int | None = None,
    full: bool = False,
) -> Iterator[DatasetInfo]:
    """Yield the datasets that carry all `tags`, most recently changed first.

    `search` looks in their ids, `author` is the user or organisation. Each has at least id, sha,
    last_modified, tags, private and gated; with `full` also card_data and siblings (the file names).

    Raises:
        HubError: the Hub cannot be reached or refuses.
    """
    target = Target(endpoint())

    def first_page() -> tuple[list[DatasetInfo], Iterator[DatasetInfo]]:
        found = iter(
            _api().list_datasets(
                filter=list(tags) or None,
                search=search,
                author=author,
                limit=limit,
                sort="last_modified",
                full=full or None,
            )
        )
        return list(islice(found, 1)), found

    first, rest = retried(first_page, target)
    yield from first
    while True:
        try:
            found = next(rest, None)
        except EXPECTED as error:
            raise explain(error, target) from error
        if found is None:
            return
        yield found


_NAMES_PER_PAGE = 1_000


@dataclass(frozen=True)
class Names:
    """A page of `list_names`: pairs of id and sha, as the Hub has them; and where the next page begins."""

    pairs: list[tuple[str, str | None]]
    cursor: str | None


def list_names(author: str | None = None, cursor: str | None = None) -> Iterator[Names]:
    """Yield the ids of all datasets, newest first, page by page; of each only what a listing must have.

    A listing that ends early goes on with the `cursor` of its last page, also days later: datasets that came
    since are before it.

    Raises:
        HubError: the Hub cannot be reached, refuses, or answers something else.
    """
    target = Target(endpoint())
    params: dict[str, Any] = {"sort": "createdAt", "expand": ["sha"], "limit": _NAMES_PER_PAGE}
    if author is not None:
        params["author"] = author
    while True:
        asked = params if cursor is None else {**params, "cursor": cursor}
        found, following = retried(partial(get_page, target, "/api/datasets", asked), target)
        if not (isinstance(found, list) and all(isinstance(entry, dict) for entry in found)):
            raise HubError(f"the Hub at {endpoint()} answers a listing with something else")
        texts = [(entry.get("id"), entry.get("sha")) for entry in found]
        pairs = [
            (name, sha if isinstance(sha, str) else None) for name, sha in texts if isinstance(name, str)
        ]
        if following == cursor:
            following = None
        yield Names(pairs, following)
        if following is None:
            return
        cursor = following


def repo_info(
    repo_id: str,
    *,
    repo_type: str = "dataset",
    revision: str | None = None,
    files_metadata: bool = False,
    expand: Sequence[str] = (),
) -> DatasetInfo | ModelInfo:
    """Return what a Hub knows of a repository at a branch, tag or commit: .sha, .siblings, .tags, ...

    Of its card, .card_data, only the licence is there, if it names one. With `files_metadata` the siblings
    have sizes. `expand` names the only properties wanted, in the Hub's
    spelling, as for repositories whose list of files is long.

    Raises:
        HubError: missing, private or unreachable. Gated repositories do show their info.
        TooLarge: the list of its files is too long to be held.
    """
    target = Target(endpoint(), repo_id, repo_type, revision)
    kind = {"dataset": DatasetInfo, "model": ModelInfo}[repo_type]

    def ask() -> Any:
        validate_repo_id(repo_id)
        path = f"/api/{repo_type}s/{repo_id}"
        if revision is not None:
            path += f"/revision/{quote(revision, safe='')}"
        params: dict[str, Any] = {"blobs": "true"} if files_metadata else {}
        if expand:
            params["expand"] = list(expand)
        answer = get_json(target, path, params)
        # Its author wrote the card. The client makes attributes of all its fields, `self` and `get` included.
        card = answer.pop("cardData", None)
        if isinstance(card, dict) and "license" in card:
            answer["cardData"] = {"license": card["license"]}
        return kind(**answer)

    return retried(ask, target)


# Of a repository with some thousands of files `repo_info` may leave some out; it never does below this many.
LISTED_WHOLE = 1_000


def list_files(repo_id: str, folder: str, *, revision: str) -> dict[str, int]:
    """Return the files below a folder of a dataset's repository, as path inside that folder -> bytes.

    Raises:
        HubError: no such folder, missing or unreachable.
        TooLarge: more than MAX_FILES files.
    """
    target = Target(endpoint(), repo_id, revision=revision, filename=folder)

    def ask() -> dict[str, int]:
        files: dict[str, int] = {}
        tree = _api().list_repo_tree(
            repo_id, folder or None, recursive=True, revision=revision, repo_type="dataset"
        )
        for entry in tree:
            check_time()
            if isinstance(entry, RepoFile):
                files[entry.path.removeprefix(f"{folder}/" if folder else "")] = entry.size
            if len(files) > MAX_FILES:
                raise TooLarge(f"{folder or repo_id} holds more than {MAX_FILES} files")
        return files

    return retried(ask, target)


def list_folders(repo_id: str, folder: str, *, revision: str) -> list[str]:
    """Return the paths of the folders right below a folder of a dataset's repository, sorted.

    Raises:
        HubError: no such folder, missing or unreachable.
        TooLarge: more than MAX_FILES entries.
    """
    target = Target(endpoint(), repo_id, revision=revision, filename=folder)

    def ask() -> list[str]:
        found = []
        tree = _api().list_repo_tree(repo_id, folder or None, revision=revision, repo_type="dataset")
        for number, entry in enumerate(tree):
            check_time()
            if number >= MAX_FILES:
                raise TooLarge(f"{folder or repo_id} holds more than {MAX_FILES} entries")
            if not isinstance(entry, RepoFile):
                found.append(entry.path)
        return sorted(found)

    return retried(ask, target)


def existing_files(repo_id: str, filenames: Sequence[str], *, revision: str) -> set[str]:
    """Return those of the named files that a dataset's repository has; a request for every 500 of them.

    Raises:
        HubError: missing or unreachable.
    """
    target = Target(endpoint(), repo_id, revision=revision)
    found: set[str] = set()
    for start in range(0, len(filenames), _PATHS_PER_QUESTION):
        asked = list(filenames[start : start + _PATHS_PER_QUESTION])
        ask = partial(_api().get_paths_info, repo_id, asked, revision=revision, repo_type="dataset")
        answer = retried(ask, target)
        found.update(entry.path for entry in answer if isinstance(entry, RepoFile))
    return found


class _Silent(hub_tqdm):
    """No bar per file: many files arrive at once."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "disable": True})


def download_file(repo_id: str, filename: str, *, revision: str, repo_type: str = "dataset") -> Path:
    """Return the local path of one file of a repository, downloaded unless the cache has it.

    With a commit sha as `revision` a cached file needs no network.

    Raises:
        HubError: missing, gated, private or unreachable.
        DatasetError: the name is not a plain relative path.
    """
    check_name(repo_id, filename)
    target = Target(endpoint(), repo_id, repo_type, revision, filename)

    def fetch() -> Path | str:
        if _COMMIT_SHA.fullmatch(revision) and (small := fetch_small(target)):
            return small
        return hf_hub_download(
            repo_id,
            filename,
            repo_type=repo_type,
            revision=revision,
            endpoint=target.endpoint,
            library_name="depi",
            library_version=__version__,
            tqdm_class=_Silent,
        )

    return Path(retried(fetch, target))


def download_files(
    repo_id: str,
    filenames: Sequence[str],
    *,
    revision: str,
    repo_type: str = "dataset",
    progress: bool = False,
) -> Path:
    """Download the named files of a repository, several at a time, and return the snapshot folder.

    The folder holds them under their names, and whatever was downloaded of that commit before. Files that
    are there already need no network when `revision` is a commit sha; other revisions are resolved first,
    so that all files come from one commit.

    Raises:
        HubError: the first failure; the other downloads are given up.
        DatasetError: a name is not a plain relative path.
    """
    for name in filenames:
        check_name(repo_id, name)
    if not _COMMIT_SHA.fullmatch(revision):
        sha = repo_info(repo_id, repo_type=repo_type, revision=revision).sha
        if sha is None:
            raise HubError(f"the Hub at {endpoint()} names no commit for {repo_id} at {revision}")
        revision = sha
    folder = snapshot_folder(repo_id, repo_type, revision)
    missing = [name for name in dict.fromkeys(filenames) if not (folder / name).exists()]
    if len(missing) < PARALLEL_FROM and not progress:
        for name in missing:
            download_file(repo_id, name, revision=revision, repo_type=repo_type)
        return folder
    with ExitStack() as stack:
        bar = progress_bar(f"Downloading {repo_id}", len(missing)) if progress else nullcontext()
        show = stack.enter_context(bar)
        pool = stack.enter_context(threads(PARALLEL_DOWNLOADS))
        fetches = [
            pool.submit(
                copy_context().run, download_file, repo_id, name, revision=revision, repo_type=repo_type
            )
            for name in missing
        ]
        for done, fetch in enumerate(as_completed(fetches), start=1):
            fetch.result()
            if show:
                show(done)
    return folder


def check_name(repo_id: str, filename: str) -> None:
    """Raise a DatasetError unless a file's name is a plain relative path."""
    problem = path_problem(filename)
    if problem:
        raise DatasetError(f"{repo_id}: the file name {filename[:200]!r} {problem}")


def require_token() -> None:
    """Refuse early what will need a token to upload.

    Raises:
        TokenMissing: there is none. Whether it may write only an upload shows.
    """
    if get_token() is None:
        raise TokenMissing(
            f"uploading needs a token: create one with write access at {endpoint()}/settings/tokens "
            f"and log in with {LOGIN}"
        )


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    repo_type: str,
    commit_message: str,
    private: bool = False,
    tag: str | None = None,
) -> str:
    """Upload the files of `folder`, creating the repository when it is missing; return the commit sha.

    Files of the repository that the folder lacks stay. With `private` a new repository is, and one that is
    public is refused. `tag` is set to the new commit, and moved when it exists. On Hubs other than
    huggingface.co files go by plain HTTP in one commit; Xet may split a folder of hundreds of files into
    several.

    Raises:
        TokenMissing: no token, or none that may write.
        HubError: refused or unreachable.
        UserError: the folder is missing or empty, or the repository public against `private`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: nothing to upload")
    if not any(path.is_file() for path in folder.rglob("*")):
        raise UserError(f"{folder} holds no files: nothing to upload")
    require_token()
    target = Target(endpoint(), repo_id, repo_type, writes=True)
    if target.endpoint != constants.HUGGINGFACE_CO_URL_HOME.rstrip("/"):
        constants.HF_HUB_DISABLE_XET = True  # the client would insist on Xet, which only the public Hub has
    api = _api()
    retried(
        lambda: api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True), target
    )
    # What exists stays as it is, and the Hub does not say so.
    if private and not repo_info(repo_id, repo_type=repo_type, expand=["private"]).private:
        raise UserError(
            f"{repo_id} is public: make it private in its settings, choose another name, or leave out "
            "--private"
        )
    commit = retried(
        lambda: api.upload_folder(
            repo_id=repo_id, repo_type=repo_type, folder_path=folder, commit_message=commit_message
        ),
        target,
    )
    if tag is not None:
        retried(lambda: _move_tag(api, repo_id, repo_type, tag, commit.oid), target)
    return commit.oid


def _move_tag(api: HfApi, repo_id: str, repo_type: str, tag: str, sha: str) -> None:
    try:
        api.create_tag(repo_id, tag=tag, revision=sha, repo_type=repo_type)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        api.delete_tag(repo_id, tag=tag, repo_type=repo_type)
        api.create_tag(repo_id, tag=tag, revision=sha, repo_type=repo_type)
