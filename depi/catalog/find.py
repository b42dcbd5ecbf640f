"""Candidates: which datasets to look at."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from depi import engine
from depi.datasets.recording.addresses import is_address
from depi.errors import UserError
from depi.files import read_json
from depi.hub.client import api as client
from depi.hub.names import is_dataset_id, is_repo_id

logger = logging.getLogger(__name__)

# Every LeRobot upload carries the first; recorders add the robot's name, in one of these spellings.
BASE_TAG = "LeRobot"
DEFAULT_TAGS = (
    *("so100", "so101", "so100_follower", "so101_follower", "so-100", "so-101", "SO-ARM100"),
    *("bi_so100", "bi_so101", "bi_so100_follower", "bi_so101_follower", "so_follower", "bi_so_follower"),
)
# Many uploads lack the tags and have the robot in their name. The last one names the community's collections.
DEFAULT_SEARCH = (
    *("so100", "so101", "so-100", "so-101", "so_100", "so_101", "so-arm", "so_follower"),
    "community_dataset",
)
LISTINGS_AT_ONCE = 8


@dataclass(frozen=True)
class Candidate:
    """A dataset, or a collection of them, to look at.

    repo_id: "user/name", or "user/name:path/inside" for a dataset of a collection
    revision: the newest commit if the listing has it, else None
    """

    repo_id: str
    revision: str | None = None
    gated: bool | None = None


def find(
    *,
    tags: Sequence[str] | None = None,
    search: Sequence[str] | None = None,
    author: str | None = None,
    ids_file: Path | None = None,
    wide: bool = False,
    limit: int | None = None,
) -> list[Candidate]:
    """Candidates sorted by repo_id, each once; the first `limit` of them.

    The result is the union of datasets with the tag "LeRobot" and one of `tags`, datasets whose name
    contains one of `search`, datasets in `ids_file`. `author` narrows tags and search to that user or
    organisation, and alone takes all of their datasets. `wide` adds every dataset with the tag "LeRobot",
    whatever its robot is. Without any of these, the usual tags and names of SO-100 and SO-101 datasets are
    searched.

    Raises:
        UserError: the Hub cannot be listed, `ids_file` is malformed, or nothing was found.
    """
    if tags is None and search is None and author is None and ids_file is None and not wide:
        tags, search = DEFAULT_TAGS, DEFAULT_SEARCH
    found: dict[str, Candidate] = {}
    if ids_file is not None:
        found.update((repo_id, Candidate(repo_id)) for repo_id in read_ids(ids_file))
    for candidate in _listed(tags or (), search or (), author, wide):
        found[candidate.repo_id] = candidate
    if not found:
        raise UserError("no dataset was found; widen --tags, --search or --author, or name --ids_file")
    candidates = [found[repo_id] for repo_id in sorted(found)]
    return candidates if limit is None else candidates[:limit]


def read_ids(path: Path) -> list[str]:
    """Ids from a JSON list, from the keys of a JSON object, or one per line (`#` starts a comment).

    Raises:
        UserError: the file is missing or malformed, or an entry is neither "user/name" nor
            "user/name:path/inside".
    """
    if Path(path).suffix == ".json":
        value = read_json(path)
        if not isinstance(value, list | dict) or not all(isinstance(entry, str) for entry in value):
            raise UserError(f"{path} is not a JSON list of dataset ids")
        ids = list(value)
    else:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from None
        ids = [line.partition("#")[0].strip() for line in lines]
        ids = [line for line in ids if line]
    if not ids:
        raise UserError(f"{path} names no dataset")
    for repo_id in ids:
        if is_address(repo_id):
            raise UserError(f"{path} names an address: take it out, the catalogue is of the Hub's datasets")
        if not is_dataset_id(repo_id):
            shown = ascii(repo_id)[:100]
            raise UserError(
                f"{path} names {shown}, which is no dataset id; ids look like user/name, or "
                "user/name:folder for a dataset of a collection"
            )
    return list(dict.fromkeys(ids))


def _listed(
    tags: Sequence[str], search: Sequence[str], author: str | None, wide: bool
) -> Iterator[Candidate]:
    """The datasets of several listings of the Hub, in any order; a slow listing does not delay the others."""
    listings: list[dict[str, Any]] = [{"tags": (BASE_TAG, tag)} for tag in tags]
    listings += [{"search": text} for text in search]
    if wide:
        listings.append({"tags": (BASE_TAG,)})
    if author is not None and not listings:
        listings.append({})
    for _, outcome in engine.run(partial(_one_listing, author=author), listings, workers=LISTINGS_AT_ONCE):
        if isinstance(outcome, Exception):
            raise outcome
        yield from outcome


def _one_listing(listing: dict[str, Any], author: str | None) -> list[Candidate]:
    candidates = []
    for info in client.list_datasets(author=author, **listing):
        if "/" not in info.id:
            continue  # names without a user are older than LeRobot
        if not is_repo_id(info.id):
            logger.warning(
                "left out: the Hub lists %s, which is not a valid repository id", ascii(info.id)[:100]
            )
            continue
        gated = None if info.gated is None else bool(info.gated)
        candidates.append(Candidate(info.id, info.sha, gated))
    return candidates
