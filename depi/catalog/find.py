"""Candidates: which datasets to look at."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from depi import engine
from depi.catalog.names import matching_names
from depi.datasets.recording.addresses import is_address
from depi.errors import UserError
from depi.files import read_json
from depi.hub.client import api as client
from depi.hub.names import is_dataset_id, is_repo_id

logger = logging.getLogger(__name__)

# Every LeRobot upload carries the first; recorders add the robot's name, in one of these spellings.
BASE_TAG = "LeRobot"
DEFAULT_TAGS = (
    *("so100", "so101", "so-100", "so-101", "so 100", "so 101", "SO100", "SO101"),
    *("so100_follower", "so101_follower", "so_follower"),
    *(
        "so-arm",
        "so_arm",
        "soarm",
        "so-arm100",
        "so-arm101",
        "so_arm100",
        "so_arm101",
        "SO-ARM100",
        "SO-ARM101",
    ),
    *("bi_so100", "bi_so101", "bi_so100_follower", "bi_so101_follower", "bi_so_follower"),
)
# phosphobot tags its uploads with its own name instead of LeRobot's.
RECORDER_TAGS = ("phosphobot",)
# Many uploads lack the tags and have the robot in their name. The last one names the community's collections.
DEFAULT_SEARCH = (
    *("so100", "so101", "so-100", "so-101", "so_100", "so_101", "soarm", "so-arm", "so_arm", "so_follower"),
    "community_dataset",
)
# What --wide adds: every dataset with the tag LeRobot, every name with the robot in it, or both.
WIDE = ("tags", "names", "all")
LISTINGS_AT_ONCE = 8


@dataclass(frozen=True)
class Candidate:
    """A dataset, or a collection of them, to look at.

    repo_id: "user/name", or "user/name:path/inside" for a dataset of a collection
    revision: the newest commit if the listing has it, else None
    ways: how it was found, as "tag so100"
    """

    repo_id: str
    revision: str | None = None
    gated: bool | None = None
    ways: tuple[str, ...] = field(default=(), compare=False)


def find(
    *,
    tags: Sequence[str] | None = None,
    search: Sequence[str] | None = None,
    author: str | None = None,
    repo_ids: Path | None = None,
    wide: str | None = None,
    limit: int | None = None,
) -> list[Candidate]:
    """Candidates sorted by repo_id, each once; the first `limit` of them.

    The result is the union of datasets with the tag "LeRobot" and one of `tags`, datasets whose name
    contains one of `search`, datasets in `repo_ids`. `author` narrows tags and search to that user or
    organisation, and alone takes all of their datasets. `wide`, one of WIDE, adds every dataset with the tag
    "LeRobot", whatever its robot is, or every dataset of the Hub in whose name SO-100 or SO-101 occurs, see
    `depi.catalog.names`. Without any of these, or with wide names alone, the usual tags and names of SO-100
    and SO-101 datasets are searched.

    Raises:
        UserError: the Hub cannot be listed, `repo_ids` is malformed, or nothing was found.
    """
    recorders: Sequence[str] = ()
    if tags is None and search is None and author is None and repo_ids is None and wide in (None, "names"):
        tags, search, recorders = DEFAULT_TAGS, DEFAULT_SEARCH, RECORDER_TAGS
    found: dict[str, Candidate] = {}
    if repo_ids is not None:
        found.update((repo_id, Candidate(repo_id, ways=("repo_ids",))) for repo_id in read_ids(repo_ids))
    listings: dict[str, dict[str, Any]] = {f"tag {tag}": {"tags": (BASE_TAG, tag)} for tag in tags or ()}
    listings |= {f"tag {tag}": {"tags": (tag,)} for tag in recorders}
    listings |= {f"name {text}": {"search": text} for text in search or ()}
    if wide in ("tags", "all"):
        listings[f"tag {BASE_TAG}"] = {"tags": (BASE_TAG,)}
    if wide in ("names", "all"):
        listings["all names"] = {"words": tuple(search or ())}
    if author is not None and not listings:
        listings[f"author {author}"] = {}
    for candidate in _listed(listings, author):
        known = found.get(candidate.repo_id, candidate)
        # Of two listings at different moments the one that says more of the dataset counts.
        better = candidate if candidate.gated is not None or known.revision is None else known
        found[candidate.repo_id] = replace(better, ways=tuple(dict.fromkeys((*known.ways, *candidate.ways))))
    if not found:
        raise UserError("no dataset was found; widen --tags, --search or --author, or name --repo_ids")
    candidates = [found[repo_id] for repo_id in sorted(found)]
    return candidates if limit is None else candidates[:limit]


def contributions(candidates: Sequence[Candidate], accepted: Iterable[str]) -> dict[str, dict[str, int]]:
    """What each way of finding contributed, most first.

    That is how many candidates it `found`, how many of these no other way found (`alone`), and how many
    `accepted` datasets come from them, those of collections one by one.

    Args:
        candidates: what was found.
        accepted: the ids of the accepted datasets.
    """
    count = Counter(way for candidate in candidates for way in candidate.ways)
    alone = Counter(candidate.ways[0] for candidate in candidates if len(candidate.ways) == 1)
    ways = {candidate.repo_id: candidate.ways for candidate in candidates}
    useful: Counter[str] = Counter()
    for repo_id in accepted:
        useful.update(ways.get(repo_id) or ways.get(repo_id.partition(":")[0], ()))
    return {
        way: {"found": number, "alone": alone[way], "accepted": useful[way]}
        for way, number in sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))
    }


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


def _listed(listings: Mapping[str, dict[str, Any]], author: str | None) -> Iterator[Candidate]:
    """The datasets of several listings of the Hub, in any order; a slow listing does not delay the others."""
    ask = partial(_one_listing, author=author)
    for _, outcome in engine.run(ask, list(listings.items()), workers=LISTINGS_AT_ONCE):
        if isinstance(outcome, Exception):
            raise outcome
        yield from outcome


def _one_listing(named: tuple[str, dict[str, Any]], author: str | None) -> list[Candidate]:
    way, listing = named
    if "words" in listing:
        pairs = matching_names(listing["words"], author)
        found = [Candidate(repo_id, sha, ways=(way,)) for repo_id, sha in pairs]
    else:
        found = [
            Candidate(info.id, info.sha, None if info.gated is None else bool(info.gated), (way,))
            for info in client.list_datasets(author=author, **listing)
        ]
    candidates = []
    for candidate in found:
        if "/" not in candidate.repo_id:
            continue  # names without a user are older than LeRobot
        if not is_repo_id(candidate.repo_id):
            shown = ascii(candidate.repo_id)[:100]
            logger.warning("left out: the Hub lists %s, which is not a valid repository id", shown)
            continue
        candidates.append(candidate)
    return candidates
