"""The deep tier (`--deep`): rules over the videos of datasets that passed all others.

The same functions run on this machine or on a Ray cluster. Work that a lost node had not finished is
repeated on another one; finished work is kept per commit (see `depi.catalog.videos`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any

from depi.catalog.catalogue import ACCEPTED, FAILED, REJECTED, Row
from depi.catalog.facts import Thresholds
from depi.catalog.order import settle
from depi.catalog.text import clean
from depi.catalog.thumbnails import Thumbnail, read_thumbnails, write_thumbnails
from depi.catalog.videos import Item, VideoFacts, remembered
from depi.engine import Runner
from depi.errors import DatasetError, UserError, machine_error
from depi.progress import tracked

logger = logging.getLogger(__name__)

Rule = Callable[[Sequence[VideoFacts], Thresholds], str | None]

BLACK_LUMA = 12.0
FLAT = 4.0
# An encoder makes one picture flicker by a few levels; an arm that moves changes its pixels by far more.
FROZEN = 8.0


def _every_video(rule: Callable[[VideoFacts], str | None]) -> Rule:
    """Make a rule about one video a rule about all; the reason names the first video that breaks it."""

    @wraps(rule)
    def of_all(videos: Sequence[VideoFacts], limits: Thresholds) -> str | None:
        found = [(video, reason) for video in videos if (reason := rule(video))]
        if not found:
            return None
        video, reason = found[0]
        others = f" (and {len(found) - 1} more of {len(videos)})" if len(found) > 1 else ""
        return f"{reason}: {video.path}{others}"

    return of_all


@_every_video
def videos_decodable(video: VideoFacts) -> str | None:
    """The sampled videos open as mp4 and give frames."""
    return video.error


@_every_video
def videos_have_declared_size(video: VideoFacts) -> str | None:
    """Their pictures are as wide and high as `meta/info.json` declares."""
    declared = (video.declared_width, video.declared_height)
    if video.width is None or (video.width, video.height) == declared:
        return None
    return f"{video.width}x{video.height} pixels, declared {declared[0]}x{declared[1]}"


@_every_video
def videos_have_declared_fps(video: VideoFacts) -> str | None:
    """Their frame rate is the declared one, within 2%."""
    if video.fps is None or abs(video.fps - video.declared_fps) <= 0.02 * video.declared_fps:
        return None
    return f"{video.fps:g} fps, declared {video.declared_fps:g}"


@_every_video
def videos_have_declared_frames(video: VideoFacts) -> str | None:
    """They have as many frames as their episodes; 1% more or fewer is allowed."""
    slack = max(1, video.declared_frames // 100)
    if video.frames is None or abs(video.frames - video.declared_frames) <= slack:
        return None
    return f"{video.frames} frames, its episodes have {video.declared_frames}"


@_every_video
def videos_not_black(video: VideoFacts) -> str | None:
    """In each video at least one sampled frame is neither black nor of a single colour."""
    if video.brightness is None or video.contrast is None or video.contrast >= FLAT:
        return None
    what = "black" if video.brightness < BLACK_LUMA else "of one colour"
    return f"the sampled frames are {what} (luma {video.brightness:.0f} +- {video.contrast:.1f})"


@_every_video
def videos_not_frozen(video: VideoFacts) -> str | None:
    """In each video the sampled frames differ: a camera that hangs repeats one picture."""
    if video.change is None or video.change >= FROZEN or video.declared_frames < 10:
        return None
    return "the sampled frames are all the same picture"


NEEDS: tuple[Rule, ...] = (videos_decodable,)
RULES: tuple[Rule, ...] = (
    videos_have_declared_size,
    videos_have_declared_fps,
    videos_have_declared_frames,
    videos_not_black,
    videos_not_frozen,
)


def optional_rules() -> frozenset[str]:
    """The names of the rules of this tier that can be switched off."""
    return frozenset(rule.__name__ for rule in RULES)


def judge_videos(videos: Sequence[VideoFacts], limits: Thresholds, disabled: frozenset[str]) -> list[str]:
    """The reasons for refusing, as "rule: reason"."""
    needed = [(rule, rule(videos, limits)) for rule in NEEDS]
    asked = [(rule, rule(videos, limits)) for rule in RULES if rule.__name__ not in disabled]
    return [clean(f"{rule.__name__}: {reason}", 500) for rule, reason in (*needed, *asked) if reason]


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
            if reasons := judge_videos(outcome, limits, disabled):
                row.verdict, row.reasons = REJECTED, reasons
            yield row, _pictures(item, outcome)


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
