"""The embedded Hub's folder: all repositories and the contents that they share.

root/blobs/ab/ab12...                          file contents by their sha256
root/incoming/                                 what is being received or deleted
root/repos/datasets/<user>/<name>/             see depi/hub/server/repos.py
"""

import fcntl
import shutil
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from depi.errors import UserError
from depi.files import remove_drafts, write_json
from depi.hub.names import RequestError, check_path, check_repo_id
from depi.hub.server.blobs import GITATTRIBUTES, Blobs
from depi.hub.server.repos import DEFAULT_BRANCH, Commit, Repo, Settings, write_commit

REPO_TYPES = ("dataset", "model")


class Store:
    """All repositories under one folder. Only one process at a time may open it."""

    def __init__(self, root: Path):
        """Open `root`, creating it when it is missing, and delete what killed processes left half-written.

        Raises:
            UserError: it cannot be written, or another process serves it.
        """
        self.root = Path(root).absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._owner = (self.root / "lock").open("w")
        except OSError as error:
            raise UserError(f"the Hub's folder {root} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._owner.close()
            raise UserError(
                f"another embedded Hub serves {root}: stop it, or choose another folder"
            ) from None
        self._lock = threading.Lock()
        try:
            self.blobs = Blobs(self.root)
            self._repos = {(repo.repo_type, repo.id): repo for repo in self._open_repos()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the store, so that another process can open the folder."""
        self._owner.close()

    def _open_repos(self) -> Iterator[Repo]:
        for repo_type in REPO_TYPES:
            for settings in sorted((self.root / "repos" / f"{repo_type}s").glob("*/*/repo.json")):
                path = settings.parent
                remove_drafts(path)
                remove_drafts(path / "commits")
                yield Repo(self.blobs, path, repo_type, f"{path.parent.name}/{path.name}")

    def repos(self, repo_type: str) -> list[Repo]:
        """Return all repositories of a type."""
        with self._lock:
            return [repo for (kind, _), repo in self._repos.items() if kind == repo_type]

    def find(self, repo_type: str, repo_id: str) -> Repo | None:
        """Return a repository, or None."""
        return self._repos.get((repo_type, repo_id))

    def create(self, repo_type: str, repo_id: str, author: str, *, private: bool = False) -> Repo:
        """Create a repository with a first commit, which holds `.gitattributes`.

        Raises:
            RequestError: the name is taken or not allowed.
        """
        check_repo_id(repo_id)
        with self._lock:
            if (repo_type, repo_id) in self._repos:
                raise RequestError(409, f"You already created this {repo_type} repo: {repo_id}")
            draft = self.blobs.incoming / uuid.uuid4().hex
            files = {".gitattributes": self.blobs.put_bytes(GITATTRIBUTES.encode())}
            commit = write_commit(draft, None, "initial commit", "", author, files)
            write_json(draft / "repo.json", asdict(Settings(private=private, created_at=commit.date)))
            write_json(draft / "refs.json", {"branches": {DEFAULT_BRANCH: commit.sha}, "tags": {}})
            path = self._path(repo_type, repo_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.replace(path)
            repo = Repo(self.blobs, path, repo_type, repo_id)
            self._repos[repo_type, repo_id] = repo
            return repo

    def delete(self, repo: Repo) -> None:
        """Delete a repository; its contents are kept, because other repositories may share them."""
        with self._lock:
            if self._repos.pop((repo.repo_type, repo.id), None) is not repo:
                return
            trash = self.blobs.incoming / uuid.uuid4().hex
            with repo.closing():
                self._path(repo.repo_type, repo.id).replace(trash)
        shutil.rmtree(trash)

    def _path(self, repo_type: str, repo_id: str) -> Path:
        return self.root / "repos" / f"{repo_type}s" / repo_id

    def commit_folder(self, repo: Repo, folder: Path, title: str, author: str) -> Commit:
        """Commit all files of a local folder, in place of those with the same path."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {
            check_path(path.relative_to(folder).as_posix()): self.blobs.put_bytes(path.read_bytes())
            for path in paths
        }
        return repo.add_commit(DEFAULT_BRANCH, lambda old: old.update(files), title=title, author=author)
