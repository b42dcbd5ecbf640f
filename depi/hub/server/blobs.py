"""File contents by their hash: receiving them, choosing LFS, and the hashes that git uses."""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from depi.hub.names import RequestError

LFS_SUFFIXES = (
    *("arrow", "avi", "bin", "ckpt", "gif", "h5", "hdf5", "jpeg", "jpg", "mcap", "mkv", "mov", "mp3", "mp4"),
    *("msgpack", "npy", "npz", "onnx", "parquet", "pb", "pdf", "pkl", "png", "pt", "pth", "safetensors"),
    *("stl", "tiff", "usdz", "wav", "webm", "webp", "7z", "bz2", "gz", "tar", "tgz", "xz", "zip", "zst"),
)
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
MAX_REGULAR_SIZE = 10 * 1024 * 1024


@dataclass(frozen=True)
class StoredFile:
    """One file of a commit. `git_oid` is what git would call it: for LFS files, the oid of the pointer."""

    sha256: str
    size: int
    git_oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        """The name under which the Hub's clients cache the content."""
        return self.sha256 if self.lfs else self.git_oid


def git_blob_oid(content: bytes) -> str:
    """Return the sha1 under which git stores `content`."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the text that git keeps in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class BlobWriter:
    """A file that is being received: hashed while it is written, then stored by its hash or deleted."""

    def __init__(self, blobs: "Blobs"):
        self._blobs = blobs
        self._path = blobs.incoming / uuid.uuid4().hex
        self._file = self._path.open("xb")
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> "BlobWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Append `chunk`."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def hexdigest(self) -> str:
        """Return the sha256 of what was written so far."""
        return self._hash.hexdigest()

    def keep(self) -> str:
        """Move the content into the store and return its sha256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        target = self._blobs.path(self.hexdigest())
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path.replace(target)
        return self.hexdigest()


class Blobs:
    """The contents stored under one folder."""

    def __init__(self, root: Path):
        """Open the store, and delete what a killed process had not finished receiving."""
        self._root = root / "blobs"
        self.incoming = root / "incoming"
        shutil.rmtree(self.incoming, ignore_errors=True)
        self.incoming.mkdir()

    def path(self, sha256: str) -> Path:
        """Return the path of the content with this hash, whether or not it exists."""
        return self._root / sha256[:2] / sha256

    def put_bytes(self, content: bytes) -> StoredFile:
        """Store a small file."""
        if not self.path(hashlib.sha256(content).hexdigest()).exists():
            with BlobWriter(self) as blob:
                blob.write(content)
                blob.keep()
        return StoredFile(hashlib.sha256(content).hexdigest(), len(content), git_blob_oid(content), lfs=False)

    def lfs_file(self, sha256: str, size: int | None = None) -> StoredFile:
        """Return a large file whose content has been received.

        Raises:
            RequestError: it has not, or with another size.
        """
        with contextlib.suppress(FileNotFoundError):
            stored = self.path(sha256).stat().st_size
            if size in (None, stored):
                pointer = lfs_pointer(sha256, stored)
                return StoredFile(sha256, stored, git_blob_oid(pointer), lfs=True)
        raise RequestError(400, f"The LFS object {sha256} of {size} bytes has not been uploaded")


def is_lfs(path: str, size: int, sample: bytes, attributes: Iterable[str]) -> bool:
    """Say whether a file is kept as a large file: a `filter=lfs` line, its size or binary content says so."""
    if size > MAX_REGULAR_SIZE:
        return True
    for line in attributes:
        pattern, *flags = line.split() or [""]
        name = path if "/" in pattern else path.rpartition("/")[2]
        if "filter=lfs" in flags and fnmatchcase(name, pattern):
            return True
    return b"\0" in sample
