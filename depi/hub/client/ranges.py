"""A file in a repository of a Hub, of which only the parts that are read are downloaded."""

import io
from collections import OrderedDict

from huggingface_hub import constants

from depi.errors import DatasetError
from depi.hub.client.api import check_name, endpoint
from depi.hub.client.fetch import TooLarge, get_range, snapshot_folder
from depi.hub.client.retry import Target, retried

BLOCK = 256 * 1024
SMALL = 4
"""A file of so many blocks is fetched whole, once more than its first is needed."""
_KEPT_BLOCKS = 16


class RemoteFile(io.RawIOBase):
    """A seekable, read-only file of a dataset's repository, at a commit, or its copy in the cache.

    huggingface_hub's file system does the same, but without a limit on what a broken file may download, and
    with more requests for each file.
    """

    def __init__(self, repo_id: str, filename: str, *, revision: str, max_bytes: int):
        """Fetch the first block.

        Args:
            repo_id: user/name.
            filename: path in the repository.
            revision: a commit.
            max_bytes: the limit on all that is fetched.

        Raises:
            HubError: missing or unreachable.
            DatasetError: the name is not a plain relative path.
        """
        check_name(repo_id, filename)
        self._target = Target(endpoint(), repo_id, revision=revision, filename=filename)
        self._left = max_bytes
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        self.size = 0
        here = snapshot_folder(repo_id, "dataset", revision) / filename
        self._local = here if here.exists() else None
        if self._local is not None:
            self.size = self._local.stat().st_size
        elif constants.HF_HUB_OFFLINE:
            raise DatasetError(f"{filename} is not in the cache and HF_HUB_OFFLINE is set")
        else:
            self._block(0)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position in the file."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; nothing is fetched."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the file goes, fetching what is missing."""
        wanted = max(0, min(len(buffer), self.size - self._position))
        data = self._read(self._position, wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def fetch(self, start: int, count: int) -> bytes:
        """Bytes from a place on, as far as the file goes; what is not at hand is one request of its own."""
        count = max(0, min(count, self.size - start))
        blocks = range(start // BLOCK, (start + max(count, 1) - 1) // BLOCK + 1)
        if self._local is not None or count == 0 or all(number in self._blocks for number in blocks):
            return self._read(start, count)
        return self._ask(start, start + count)

    def _read(self, start: int, count: int) -> bytes:
        if self._local is not None:
            with self._local.open("rb") as file:
                file.seek(start)
                return file.read(count)
        first, last = start // BLOCK, (start + max(count, 1) - 1) // BLOCK
        data = b"".join(self._block(number) for number in range(first, last + 1))
        return data[start - first * BLOCK :][:count]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            # A request costs more than the rest of a small file.
            rest = range(1, SMALL) if number and self.size <= SMALL * BLOCK else range(number, number + 1)
            data = self._ask(rest.start * BLOCK, rest.stop * BLOCK)
            for place, each in enumerate(rest):
                self._blocks[each] = data[place * BLOCK : (place + 1) * BLOCK]
            while len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _ask(self, start: int, end: int) -> bytes:
        if self._left <= 0 or end - start > self._left + BLOCK:
            raise TooLarge(f"{self._target.filename} needs more bytes than may be read of it")
        data, self.size = retried(lambda: get_range(self._target, start, end), self._target)
        self._left -= len(data)
        return data
