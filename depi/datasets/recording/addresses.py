"""Addresses of datasets in buckets and folders: `s3://bucket/folder`, `file:///folder`."""

import re
from dataclasses import dataclass

from depi.errors import UserError
from depi.hub.names import is_dataset_id, path_problem


@dataclass(frozen=True)
class Storage:
    """A kind of storage that fsspec opens: what to install for it, and where its credentials come from."""

    install: str
    credentials: str


STORAGES = {
    "s3": Storage("`depi[storage]`", "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "gs": Storage("`gcsfs`", "GOOGLE_APPLICATION_CREDENTIALS"),
    "hf": Storage("`huggingface_hub`", "HF_TOKEN, or `hf auth login`"),
    "file": Storage("`fsspec`", "the rights of the folder"),
    "memory": Storage("`fsspec`", "nothing"),
}
# What storages call the version of a file. A time stands for it where there is nothing better.
VERSIONS = ("ETag", "etag", "xet_hash", "md5Hash", "LastModified", "updated", "mtime", "created")


def is_address(repo_id: str) -> bool:
    """Whether a dataset is named by an address; else it is `user/name`, or `user/name:folder`, of the Hub."""
    return "://" in repo_id


def check_address(text: str) -> str:
    """The address without a slash at its end.

    Raises:
        UserError: it is none that can be opened, or holds credentials; the message repeats none of those.
    """
    scheme, _, path = text.partition("://")
    path = path.rstrip("/")
    if scheme not in STORAGES:
        known = ", ".join(f"{name}://" for name in STORAGES)
        shown = f"{scheme}://" if re.fullmatch(r"[a-z0-9+]{1,20}", scheme) else "that"
        raise UserError(f"{shown} is no storage of datasets: write user/name, or one of {known}")
    if any(mark in path for mark in "@?#") or ":" in path.partition("/")[0]:
        raise UserError(
            f"an address {scheme}://... with credentials or a query is refused: leave them to "
            f"{STORAGES[scheme].credentials}, and name only the bucket and the folder"
        )
    plain = path.removeprefix("/") if scheme == "file" else path
    problem = path_problem(plain) if path.isprintable() else "is not printable"
    if problem or (scheme == "file") != path.startswith("/"):
        raise UserError(f"the address {ascii(text)[:200]} {problem or 'needs a whole path: file:///folder'}")
    if scheme == "hf" and not (path.startswith("buckets/") and path.count("/") > 1):
        raise UserError("hf:// opens buckets, as in hf://buckets/user/name: name other datasets user/name")
    return f"{scheme}://{path}"


def storable_name(repo_id: str) -> str:
    """The name of a dataset as it may be shown and stored; UserError for an address that must not be."""
    return check_address(repo_id) if is_address(repo_id) else repo_id


def check_dataset_name(name: str) -> str:
    """The name of a dataset, of the Hub or by an address as `check_address` gives it; UserError otherwise."""
    if not is_address(name) and not is_dataset_id(name):
        raise UserError(f"--repo_id must be USER/NAME or an address s3://BUCKET/FOLDER, got {name[:200]!r}")
    return storable_name(name)


def as_path(repo_id: str) -> str:
    """A relative path for what belongs to a dataset; no user of the Hub has a `+` in his name."""
    scheme, mark, path = repo_id.partition("://")
    return f"{scheme}+/{path.removeprefix('/')}" if mark else repo_id


def from_path(path: str) -> str:
    """The repo id or address of which `as_path` made this."""
    scheme, mark, rest = path.partition("+/")
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest}" if mark else path
