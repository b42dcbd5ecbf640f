"""One repository on disk: one JSON manifest per commit, and the refs that name commits.

    repo.json            visibility, gate, users with access
    refs.json            branches and tags -> commit sha
    commits/<sha>.json   what a commit holds

A commit writes its contents, then its manifest, then replaces refs.json: after a
kill in between, the repository still has its old commit.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from depi.files import write_json
from depi.hub.names import RequestError, check_ref_name
from depi.hub.server.blobs import Blobs, StoredFile
from depi.hub.server.cards import card_tags, parse_card

DEFAULT_BRANCH = "main"
_CACHED_MANIFESTS = 4

Gate = Literal["auto", "manual", False]


@dataclass(frozen=True)
class Commit:
    """A state of a repository; `files` maps repo-relative paths to contents."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, StoredFile]


@dataclass
class Settings:
    """What repo.json holds."""

    private: bool = False
    gated: Gate = False
    created_at: str = ""
    accepted: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)


def now() -> str:
    """Return the time as the Hub writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Repo:
    """One repository. Commits to it are serialised; readers need no lock, because manifests never change."""

    def __init__(self, blobs: Blobs, path: Path, repo_type: str, repo_id: str):
        self._blobs = blobs
        self._path = path
        self._lock = threading.RLock()
        self._deleted = False
        self._manifests: OrderedDict[str, Commit] = OrderedDict()
        self._head: tuple[str, str, dict[str, Any], list[str]] | None = None
        self.repo_type = repo_type
        self.id = repo_id
        self.settings = Settings(**_read(path / "repo.json"))
        refs = _read(path / "refs.json")
        self.branches: Mapping[str, str] = refs["branches"]
        self.tags: Mapping[str, str] = refs["tags"]

    @property
    def author(self) -> str:
        """The namespace that the repository lives in."""
        return self.id.partition("/")[0]

    def resolve(self, revision: str | None) -> Commit:
        """Return the commit that a branch, tag, full or shortened sha names; None is the default branch.

        Raises:
            RequestError: there is no such revision.
        """
        name = DEFAULT_BRANCH if revision is None else revision
        name = name.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(name) or self.tags.get(name) or self._full_sha(name)
        if sha is None:
            raise RequestError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return self.commit(sha)

    def _full_sha(self, prefix: str) -> str | None:
        if not 7 <= len(prefix) <= 40 or set(prefix) - set("0123456789abcdef"):
            return None
        found = [path.stem for path in (self._path / "commits").glob(f"{prefix}*.json")]
        return found[0] if len(found) == 1 else None

    def commit(self, sha: str) -> Commit:
        """Return the commit `sha`, which must be one of this repository."""
        with self._lock:
            if sha in self._manifests:
                self._manifests.move_to_end(sha)
                return self._manifests[sha]
        try:
            stored = _read(self._path / "commits" / f"{sha}.json")
        except FileNotFoundError:  # the repository has just been deleted
            raise RequestError(404, "Repository not found", "RepoNotFound") from None
        files = {path: StoredFile(**entry) for path, entry in stored.pop("files").items()}
        return self._remember(Commit(sha=sha, files=files, **stored))

    def _remember(self, commit: Commit) -> Commit:
        with self._lock:
            self._manifests[commit.sha] = commit
            while len(self._manifests) > _CACHED_MANIFESTS:
                self._manifests.popitem(last=False)
        return commit

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yield `commit` and its ancestors, newest first."""
        step: Commit | None = commit
        while step is not None:
            yield step
            step = self.commit(step.parent) if step.parent else None

    def head(self) -> tuple[str, str, dict[str, Any], list[str]]:
        """Return sha, date, card and tags of the default branch, read once per commit."""
        sha = self.branches[DEFAULT_BRANCH]
        if self._head is None or self._head[0] != sha:
            commit = self.commit(sha)
            card = self.card(commit)
            self._head = (sha, commit.date, card, card_tags(card, self.repo_type))
        return self._head

    def card(self, commit: Commit) -> dict[str, Any]:
        """Return the card data of a commit; {} where README.md has no valid one."""
        readme = commit.files.get("README.md")
        if readme is None or readme.size > 4 * 1024 * 1024:
            return {}
        try:
            return parse_card(self._blobs.path(readme.sha256).read_text(encoding="utf-8"))
        except ValueError:  # the real Hub too shows a repository with a broken card, without the card
            return {}

    def add_commit(
        self,
        branch: str,
        change: Callable[[dict[str, StoredFile]], None],
        *,
        title: str,
        message: str = "",
        author: str,
        parent: str | None = None,
    ) -> Commit:
        """Apply `change` to the files of `branch` in a new commit.

        Raises:
            RequestError: no such branch, or `parent` is given and is no longer its head.
        """
        with self._changing():
            if branch not in self.branches:
                raise RequestError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            head = self.commit(self.branches[branch])
            if parent is not None and not head.sha.startswith(parent):
                raise RequestError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            change(files)
            commit = write_commit(self._path, head.sha, title, message, author, files)
            self._set_refs({**self.branches, branch: commit.sha}, self.tags)
            return self._remember(commit)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            if self._deleted:
                raise RequestError(404, "Repository not found", "RepoNotFound")
            yield

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Block changes while the repository is deleted, and refuse them afterwards."""
        with self._lock:
            self._deleted = True
            yield

    def set_branch(self, name: str, sha: str | None) -> None:
        """Create a branch at a commit, or delete it (None)."""
        with self._changing():
            self._set_refs(_with_ref(self.branches, "branch", name, sha), self.tags)

    def set_tag(self, name: str, sha: str | None) -> None:
        """Create a tag at a commit, or delete it (None)."""
        with self._changing():
            self._set_refs(self.branches, _with_ref(self.tags, "tag", name, sha))

    def _set_refs(self, branches: Mapping[str, str], tags: Mapping[str, str]) -> None:
        write_json(self._path / "refs.json", {"branches": branches, "tags": tags})
        self.branches, self.tags = branches, tags

    def change_settings(self, **changes: Any) -> None:
        """Replace some settings."""
        with self._changing():
            settings = replace(self.settings, **changes)
            write_json(self._path / "repo.json", asdict(settings))
            self.settings = settings


def _with_ref(refs: Mapping[str, str], kind: str, name: str, sha: str | None) -> dict[str, str]:
    changed = dict(refs)
    if sha is None:
        if changed.pop(name, None) is None:
            raise RequestError(404, f"There is no {kind} {name}", "RevisionNotFound")
        return changed
    check_ref_name(name)
    if name in changed:
        raise RequestError(409, f"The {kind} {name} exists already")
    return {**changed, name: sha}


def write_commit(
    repo_path: Path, parent: str | None, title: str, message: str, author: str, files: dict[str, StoredFile]
) -> Commit:
    """Write the manifest of a commit, whose sha is the digest of the manifest."""
    files = dict(sorted(files.items()))
    stored: dict[str, Any] = {
        "parent": parent,
        "title": title,
        "message": message,
        "author": author,
        "date": now(),
        "files": {path: asdict(file) for path, file in files.items()},
    }
    sha = hashlib.sha1(json.dumps(stored, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
    write_json(repo_path / "commits" / f"{sha}.json", stored)
    return Commit(sha, parent, title, message, author, stored["date"], files)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
