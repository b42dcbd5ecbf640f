"""Checks of untrusted names before they are used on the disk: repository ids, file paths, refs."""

import re
from dataclasses import dataclass

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\-/]{0,199}")
_SHA = re.compile(r"[0-9a-f]{40}")
_UNSAFE = re.compile(r"[\\\x00-\x1f\x7f]")
SHA256 = re.compile(r"[0-9a-f]{64}")


class RequestError(Exception):
    """The embedded Hub answers a request with an error, in the form that huggingface_hub understands."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}


def is_repo_id(text: str) -> bool:
    """Say whether this is `namespace/name` in the Hub's spelling."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


@dataclass(frozen=True)
class DatasetId:
    """A dataset: a repository of its own, or the folder `path` of one that holds many.

    Written `user/name`, or `user/name:path/inside`.
    """

    repo_id: str
    path: str = ""

    def __str__(self) -> str:
        """The way it is written."""
        return f"{self.repo_id}:{self.path}" if self.path else self.repo_id

    def inside(self, filename: str) -> str:
        """The repo-relative path of one of the dataset's files."""
        return f"{self.path}/{filename}" if self.path else filename


def parse_dataset_id(text: str) -> DatasetId:
    """Read `user/name` or `user/name:path/inside`.

    Raises:
        ValueError: it is neither; the message says what is wrong.
    """
    repo_id, colon, path = text.partition(":")
    if not is_repo_id(repo_id):
        raise ValueError(f"{text[:200]!r} is no dataset id: write user/name, or user/name:folder")
    problem = (path_problem(path) if path.isprintable() else "is not printable") if colon else None
    if problem or path.startswith("~"):
        raise ValueError(f"the folder in {text[:200]!r} {problem or 'is not a plain relative path'}")
    return DatasetId(repo_id, path)


def is_dataset_id(text: str) -> bool:
    """Say whether this is `user/name` or `user/name:path/inside`."""
    try:
        parse_dataset_id(text)
    except ValueError:
        return False
    return True


def check_repo_id(repo_id: str) -> None:
    """Refuse what is not `namespace/name` in the Hub's spelling."""
    if not is_repo_id(repo_id):
        raise RequestError(400, f"A repository is named namespace/name, not {repo_id[:200]!r}")


def path_problem(path: str) -> str | None:
    """Say why a repo-relative file path is not safe to use, or None when it is."""
    parts = path.split("/")
    if not path or len(path.encode()) > 1024 or any(len(part.encode()) > 255 for part in parts):
        return "is empty or too long"
    if any(part in ("", ".", "..") for part in parts) or parts[0].endswith(":"):
        return "is not a plain relative path"
    if _UNSAFE.search(path):
        return "holds a backslash or a control character"
    if parts[0] == ".git":
        return "lies in .git"
    return None


def check_path(path: object) -> str:
    """Return the path of a file that is to be stored, or refuse it."""
    if not isinstance(path, str):
        raise RequestError(400, "A file path must be a string")
    problem = path_problem(path)
    if problem:
        raise RequestError(400, f"The file path {path[:200]!r} {problem}")
    return path


def check_ref_name(name: str) -> None:
    """Refuse names of branches and tags that git would refuse, or that look like a commit."""
    bad = not _REF.fullmatch(name) or ".." in name or "//" in name or name.endswith(("/", ".", ".lock"))
    if bad or _SHA.fullmatch(name) or name.startswith("refs/"):
        raise RequestError(400, f"Invalid reference name {name[:200]!r}")
