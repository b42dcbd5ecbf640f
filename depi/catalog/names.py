"""A listing of the names of all datasets of the Hub, for those that no search for words finds.

The Hub has about a million, a thousand to a page. Only matching names are kept, and where the listing is is
written down, so that one that fails goes on where it stopped.
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from depi.errors import UserError
from depi.files import cache_folder
from depi.fingerprint import fingerprint
from depi.hub.client import api as client
from depi.journal import LineFile

logger = logging.getLogger(__name__)

# SO-100 and SO-101 in every spelling, also inside longer words.
PATTERN = re.compile(
    r"so[-_. ]?(arm[-_. ]?)?10[01]|so[-_. ]?arm(?![a-z])|(?<![a-z])so[-_. ]?follower", re.IGNORECASE
)
MAX_AGE = 2 * 86400
"""Seconds after which an unfinished listing is begun anew: too many datasets have come since."""
_TOLD = 100_000


def matching_names(search: Sequence[str] = (), author: str | None = None) -> Iterator[tuple[str, str | None]]:
    """Pairs of id and commit of all datasets whose name matches PATTERN, or contains one of `search`.

    Raises:
        HubError: the Hub cannot be reached or refuses; the next call goes on from there.
        UserError: another process is at the same listing.
    """
    words = [word.lower() for word in search]
    asked = fingerprint(client.endpoint(), author, words, PATTERN.pattern)
    path = cache_folder() / "names" / f"{asked}.jsonl"
    with _opened(path) as file:
        listed, cursor = 0, None
        for line in _recent(file):
            page = json.loads(line)
            listed, cursor = page["listed"], page["cursor"]
            yield from ((name, sha) for name, sha in page["found"])
        if listed:
            logger.info("the listing of names goes on after %d", listed)
        try:
            for names in client.list_names(author, cursor):
                found = [pair for pair in names.pairs if _matches(pair[0], words)]
                told, listed = listed // _TOLD, listed + len(names.pairs)
                if listed // _TOLD > told:
                    logger.info("%d names listed", listed)
                page = {"time": time.time(), "listed": listed, "cursor": names.cursor, "found": found}
                file.add(json.dumps(page))
                yield from found
        except client.HubUnreachable:
            raise
        except client.HubError:
            file.clear()  # it may be the cursor that the Hub refuses
            raise
        file.remove()


def _matches(name: str, words: Sequence[str]) -> bool:
    lower = name.lower()
    return PATTERN.search(name) is not None or any(word in lower for word in words)


def _opened(path: Path) -> LineFile:
    try:
        return LineFile(path)
    except BlockingIOError:
        raise UserError("another depi collect-ids lists the names of all datasets: wait for it") from None


def _recent(file: LineFile) -> list[bytes]:
    """The lines of an unfinished listing; none, and the file empty, where it is too old."""
    lines = list(file.lines())
    if lines and time.time() - json.loads(lines[0])["time"] > MAX_AGE:
        file.clear()
        return []
    return lines
