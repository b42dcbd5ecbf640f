"""The deep tier (`--deep`): the videos of datasets that passed all others; see `depi.catalog.video_rules`.

The same functions run on this machine or on a Ray cluster. Work that a lost node had not finished is
repeated on another one; finished work is kept per commit (see `depi.catalog.videos`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from depi.catalog.catalogue import ACCEPTED, FAILED, REJECTED, Row
from depi.catalog.episodes import add_faults
from depi.catalog.facts import Thresholds
from depi.catalog.order import settle
from depi.catalog.text import clean
from depi.catalog.thumbnails import Thumbnail, read_thumbnails, write_thumbnails
from depi.catalog.video_rules import RULES, episode_faults
from depi.catalog.videos import Item, VideoFacts, remembered
from depi.datasets.judging.faults import Fault
from depi.engine import Runner
from depi.errors import DatasetError, UserError, machine_error
from depi.progress import tracked

logger = logging.getLogger(__name__)

# A fault in more than this share of the episodes looked at is one of the dataset, also where few of many
# episodes are looked at.
_MOST = 0.5


def optional_rules() -> frozenset[str]:
    """The names of the rules of this tier that can be switched off."""
    return frozenset(rule.__name__ for rule in RULES)


def judge_videos(videos: Sequence[VideoFacts], faults: Sequence[Fault]) -> list[str]:
    """The reasons for refusing a dataset, as "rule: reason": rules that leave out most of what was looked at.

    Args:
        videos: of the dataset.
        faults: of their episodes, see `episode_faults`.
    """
    looked = {video.episode for video in videos}
    by_rule: dict[str, list[Fault]] = {}
    for fault in faults:
        if fault.leaves_out:
            by_rule.setdefault(fault.rule, []).append(fault)
    return [
        clean(f"{rule}: {found[0].text} (in {len(bad)} of {len(looked)} episodes looked at)", 500)
        for rule, found in by_rule.items()
        if len(bad := {fault.episode for fault in found}) > _MOST * len(looked)
    ]


def inspect_videos(
    rows: Sequence[Row],
    run: Runner,
    look: Callable[[Item], list[VideoFacts]],
    limits: Thresholds,
    disabled: frozenset[str],
) -> Iterator[tuple[Row, list[Thumbnail]]]:
    """Check the videos of accepted rows and change the verdicts of those that fail; in any order.

    Args:
        rows: of the catalogue.
        run: what to run the work on.
        look: `look_at_videos`, with its limits.
        limits: what the rules compare with.
        disabled: rules that are switched off.

    Yields:
        Each row, and a picture of every camera that could be decoded.

    Raises:
        MachineError: results or downloaded files cannot be stored here.
    """
    by_item = {Item(row.repo_id, row.revision or ""): row for row in rows if row.verdict == ACCEPTED}
    known = {item: facts for item in by_item if (facts := remembered(item)) is not None}
    waiting = [item for item in by_item if item not in known]
    for item, outcome in chain(known.items(), _look_at_each(run, look, waiting)):
        row = by_item[item]
        if fault := machine_error(outcome):
            raise fault
        if isinstance(outcome, DatasetError):
            row.verdict, row.reasons = REJECTED, [clean(f"videos_decodable: {outcome}", 500)]
            yield row, []
        elif isinstance(outcome, Exception):
            if not isinstance(outcome, UserError):
                logger.error("looking at the videos of %s failed", row.repo_id, exc_info=outcome)
            row.verdict, row.reasons = FAILED, [clean(f"videos not inspected: {outcome}", 500)]
            yield row, []
        else:
            _judge(row, outcome, limits, disabled)
            yield row, _pictures(item, outcome)


def _judge(row: Row, videos: Sequence[VideoFacts], limits: Thresholds, disabled: frozenset[str]) -> None:
    """Add the faults in the videos to the row's episodes, and refuse it where too few are good."""
    faults = episode_faults(videos, disabled)
    too_few = add_faults(row, faults, limits)
    reasons = judge_videos(videos, faults) or ([f"enough_good_episodes: {too_few}"] if too_few else [])
    if reasons:
        row.verdict, row.reasons = REJECTED, reasons


def _look_at_each(
    run: Runner, look: Callable[[Item], list[VideoFacts]], items: Sequence[Item]
) -> Iterator[tuple[Item, Any]]:
    """The outcome for each item; items lost with a process that died are tried again, one at a time.

    A video may crash the decoder: this must not fail other datasets, in this call or the next.
    """
    lost = []
    for item, outcome in run(look, items) if items else ():
        if isinstance(outcome, BrokenExecutor):
            lost.append(item)
        else:
            yield item, outcome
    for item in lost:
        for _, outcome in run(look, [item]):
            died = isinstance(outcome, BrokenExecutor)
            yield item, UserError("the process that looked at them died") if died else outcome


def look_deep(
    folder: Path,
    rows: Sequence[Row],
    run: Runner,
    look: Callable[[Item], list[VideoFacts]],
    limits: Thresholds,
    disabled: frozenset[str],
) -> list[Row]:
    """Check the videos of all accepted datasets, also of copies accepted after an original was refused.

    Writes the pictures into `folder`; those of datasets that have not changed are kept.

    Returns:
        The rows in the order of the catalogue.
    """
    current = {(row.repo_id, row.revision) for row in rows}
    pictures = {
        (picture.repo_id, picture.camera): picture
        for picture in read_thumbnails(folder)
        if (picture.repo_id, picture.revision) in current
    }
    seen: set[str] = set()
    settled = list(rows)
    while fresh := [row for row in settled if row.verdict == ACCEPTED and row.repo_id not in seen]:
        seen.update(row.repo_id for row in fresh)
        looking = inspect_videos(fresh, run, look, limits, disabled)
        for _, found in tracked(looking, "Looking at videos", len(fresh)):
            pictures.update({(picture.repo_id, picture.camera): picture for picture in found})
        settled = settle(settled, disabled, limits)
    write_thumbnails(folder, pictures.values())
    return settled


def _pictures(item: Item, videos: Sequence[VideoFacts]) -> list[Thumbnail]:
    first: dict[str, Thumbnail] = {}
    for video in videos:
        if (jpeg := video.jpeg) is not None:
            first.setdefault(video.camera, Thumbnail(item.repo_id, item.revision, video.camera, jpeg))
    return list(first.values())
