"""What there is to do: which datasets, which of their episodes, which stages of those."""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from depi.annotate.episode_journal import RULES, Journal, Result, claim, read_results, release
from depi.annotate.frames import Clip, choose_frames
from depi.annotate.rules import is_junk
from depi.annotate.stages import Job
from depi.annotate.templates import INSTRUCTION, REFINEMENT, VIEWS
from depi.catalog.text import clean
from depi.datasets.judging.faults import Fault
from depi.datasets.judging.reading import files_there, table_readable
from depi.datasets.recording.cameras import slot_order
from depi.datasets.recording.formats import DatasetMeta, data_files, metadata_files, select_episodes
from depi.datasets.recording.metadata import read_meta
from depi.datasets.recording.places import ImagePlace, image_places
from depi.datasets.recording.sources import DatasetFiles, DatasetSource
from depi.datasets.recording.storages import open_source
from depi.datasets.recording.tables import ACTION, STATE, read_frames
from depi.datasets.union.lists import catalogued, read_id_list
from depi.errors import DatasetError, UserError
from depi.journal import LineFile

logger = logging.getLogger(__name__)

MAX_CAMERAS = 6
MAX_RECORDED = 400


@dataclass(frozen=True)
class Plan:
    """What is wanted of each dataset.

    folder: of the annotations
    backend, model: whose results count as done
    versions: stage -> version of its prompt; empty for RULES
    frames: of each camera
    view_episodes: whose frames decide the views of the cameras
    max_episodes: of each dataset, None for all
    only_flagged: only what has a flag or, never annotated, a useless text
    max_refinements: 0 where no second look is wanted
    """

    folder: Path
    backend: str
    model: str
    versions: Mapping[str, str]
    frames: int = 4
    view_episodes: int = 3
    max_episodes: int | None = None
    only_flagged: bool = False
    max_refinements: int = 2


@dataclass
class DatasetWork:
    """A dataset's jobs, and who may do them: the lock is released by `close`.

    episodes: that were asked for
    changed_from: the revision annotated so far, where it is another one now
    bad: episode -> why it cannot be shown
    """

    repo_id: str
    state: str | None
    jobs: list[Job]
    episodes: int
    lock: LineFile
    changed_from: str | None
    bad: dict[int, str]

    def close(self) -> None:
        """Let others annotate the dataset."""
        release(self.lock)


def list_sources(
    repo_ids: Path, repo_id: str | None, root: Path | None, revision: str | None, start: int, end: int | None
) -> list[DatasetSource]:
    """The datasets that the flags name; those of a list at the revisions that its catalogue has judged.

    Raises:
        UserError: the list cannot be read, or `start` and `end` leave nothing of it.
    """
    if repo_id is not None:
        return [DatasetSource(repo_id, revision, root)]
    chosen = read_id_list(repo_ids)[start:end]
    if not chosen:
        raise UserError(f"--start={start} --end={end} leave nothing of {repo_ids}")
    revisions = catalogued(repo_ids.parent, "revision")
    return [DatasetSource(name, revisions.get(name)) for name in chosen]


def plan_dataset(source: DatasetSource, plan: Plan) -> DatasetWork:
    """Find out what is missing of a dataset; fetches its metadata, and its tables where frames are chosen.

    Raises:
        DatasetError: the dataset cannot be read.
        UserError: the Hub does not give it, or another process annotates it.
    """
    lock = claim(plan.folder, source.repo_id)
    try:
        files = open_source(source)
        meta = read_meta(files)
        state = files.revision or local_state(files.root)
        before = read_results(plan.folder, source.repo_id)
        journal = before if before.revision == state else read_results(plan.folder, source.repo_id, state)
        wanted = _wanted(meta, journal, plan)
        stages = _missing(wanted, meta, journal, plan)
        positions = np.array([position for position in wanted if position in stages], np.int64)
        bad: dict[int, str] = {}
        jobs = (
            _jobs(source, files, select_episodes(meta, positions), state, plan, bad) if len(positions) else []
        )
        for place, job in enumerate(jobs):
            asked, earlier = stages[_position(meta, job.episode)]
            jobs[place] = dataclasses.replace(job, stages=asked, before=earlier)
    except BaseException:
        release(lock)
        raise
    changed = before.revision if before.revision not in (None, state) else None
    return DatasetWork(source.repo_id, state, jobs, len(wanted), lock, changed, bad)


def local_state(root: Path) -> str:
    """What stands for the revision of a local folder: a digest of its metadata."""
    digest = hashlib.blake2b(digest_size=16)
    names = [path.relative_to(root).as_posix() for path in root.glob("meta/**/*") if path.is_file()]
    for name in metadata_files(names):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    return f"local-{digest.hexdigest()}"


def _position(meta: DatasetMeta, episode: int) -> int:
    return int(np.searchsorted(meta.episodes.episode_index, episode))


def recorded_text(meta: DatasetMeta, position: int) -> str:
    """An episode's recorded task, on one line; several are put one after another."""
    return clean("; ".join(meta.episodes.tasks[position]), MAX_RECORDED)


def _wanted(meta: DatasetMeta, journal: Journal, plan: Plan) -> list[int]:
    """Positions of the episodes that the flags ask for."""
    positions = list(range(len(meta.episodes)))[: plan.max_episodes]
    if not plan.only_flagged:
        return positions

    def is_flagged(position: int) -> bool:
        result = journal.results.get(int(meta.episodes.episode_index[position]))
        if result is None:
            return is_junk(recorded_text(meta, position), meta.repo_id)
        return bool(result.flags) or (result.backend, result.model) == (plan.backend, plan.model)

    return [position for position in positions if is_flagged(position)]


def _missing(
    wanted: Sequence[int], meta: DatasetMeta, journal: Journal, plan: Plan
) -> dict[int, tuple[frozenset[str], Result | None]]:
    """Position -> the stages to ask, and the earlier result of the same model, where there is something.

    What a person has decided about is not asked again; what was rejected is, by another model or prompt.
    """
    mine = {
        result.episode: result
        for result in journal.everything
        if (result.revision, result.backend, result.model) == (journal.revision, plan.backend, plan.model)
    }
    found: dict[int, tuple[frozenset[str], Result | None]] = {}
    for position in wanted:
        episode = int(meta.episodes.episode_index[position])
        before = mine.get(episode)
        if stages := _text_stages(before, plan):
            review = journal.reviews.get(episode)
            if review is None or (review.verdict == "rejected" and review.task is not None):
                found[position] = frozenset(stages), before
        elif plan.backend == RULES and before is None:
            found[position] = frozenset(), None
    if VIEWS in plan.versions:
        for position in _view_positions(wanted, meta, mine, plan):
            others, before = found.get(position, (frozenset(), None))
            before = before or mine.get(int(meta.episodes.episode_index[position]))
            if before is not None or others:
                found[position] = others | {VIEWS}, before
    return found


def _text_stages(before: Result | None, plan: Plan) -> set[str]:
    if not plan.versions:
        return set()
    if before is None or before.prompts.get(INSTRUCTION) != plan.versions[INSTRUCTION]:
        return {INSTRUCTION, REFINEMENT}
    unrefined = plan.max_refinements > 0 and not before.refinements
    return {REFINEMENT} if unrefined or before.prompts.get(REFINEMENT) != plan.versions[REFINEMENT] else set()


def _view_positions(
    wanted: Sequence[int], meta: DatasetMeta, mine: Mapping[int, Result], plan: Plan
) -> list[int]:
    """Episodes, spread over the dataset, whose frames are still needed to decide the cameras' views."""
    voted = {
        episode
        for episode, result in mine.items()
        if result.views and result.prompts.get(VIEWS) == plan.versions[VIEWS]
    }
    missing = min(plan.view_episodes, len(wanted)) - len(voted)
    free = [position for position in wanted if int(meta.episodes.episode_index[position]) not in voted]
    if missing <= 0 or not free:
        return []
    return sorted(
        {free[place] for place in np.linspace(0, len(free) - 1, missing).round().astype(int).tolist()}
    )


def _jobs(
    source: DatasetSource,
    files: DatasetFiles,
    meta: DatasetMeta,
    state: str | None,
    plan: Plan,
    bad: dict[int, str],
) -> list[Job]:
    """The jobs of the episodes of `meta`, without their stages; puts those without frames into `bad`."""
    cameras = slot_order(meta.info.camera_keys)[:MAX_CAMERAS]
    episodes = meta.episodes
    clips: dict[int, Clip] = {}
    if plan.backend != RULES:
        if not cameras:
            raise DatasetError("there is no camera")
        pinned = dataclasses.replace(source, revision=files.revision)
        clips = _clips(pinned, files, meta, state, plan.frames, cameras, bad)
    jobs = []
    for position, episode in enumerate(episodes.episode_index.tolist()):
        if episode not in bad:
            text, clip = recorded_text(meta, position), clips.get(episode)
            jobs.append(Job(source.repo_id, state, episode, text, cameras, frozenset(), clip))
    return jobs


def _clips(
    source: DatasetSource,
    files: DatasetFiles,
    meta: DatasetMeta,
    state: str | None,
    count: int,
    cameras: Sequence[str],
    bad: dict[int, str],
) -> dict[int, Clip]:
    """For each episode of `meta` that can be read, by recorded number, the frames to show."""
    column, number = _gripper_column(meta)
    meta, columns = _read(files, meta, ["timestamp", *([column] if column else [])], bad)
    time = columns["timestamp"].astype(np.float64).reshape(-1)
    gripper = columns[column].reshape(len(time), -1)[:, number] if column else None
    episodes = meta.episodes
    clips: dict[int, Clip] = {}
    ends = np.cumsum(episodes.length)
    places = image_places(meta, cameras)
    for position, (end, length) in enumerate(zip(ends.tolist(), episodes.length.tolist(), strict=True)):
        own, episode = slice(end - length, end), int(episodes.episode_index[position])
        if length == 0 or not np.isfinite(time[own]).all() or (np.diff(time[own]) <= 0).any():
            bad[episode] = "its timestamps do not increase"
            continue
        chosen = choose_frames(None if gripper is None else gripper[own], length, count)
        of_episode = {camera: places[camera][position] for camera in cameras}
        clips[episode] = make_clip(source, state, episode, time[own], chosen, of_episode)
    return clips


def _read(
    files: DatasetFiles, meta: DatasetMeta, names: Sequence[str], bad: dict[int, str]
) -> tuple[DatasetMeta, dict[str, np.ndarray]]:
    """The episodes of `meta` that can be read, and columns of their frames; the others are put into `bad`."""
    meta, absent = files_there(meta, files.lacking)
    files.fetch(data_files(meta))
    unread: list[Fault] = []
    try:
        columns = read_frames(meta, names)
    except DatasetError:
        tables, unread = table_readable(meta)
        meta, columns = tables.meta, read_frames(tables.meta, names)
    bad.update((fault.episode, fault.text) for fault in (*absent, *unread))
    return meta, columns


def make_clip(
    source: DatasetSource,
    state: str | None,
    episode: int,
    time: np.ndarray,
    frames: Sequence[int],
    cameras: Mapping[str, ImagePlace],
) -> Clip:
    """Some frames of an episode.

    Args:
        source: the dataset, at a commit.
        state: as in `Clip`, as are `episode` and `cameras`.
        time: of all its frames, float [length].
        frames: the numbers of those to show, ascending.
    """
    return Clip(source, state, episode, tuple(frames), tuple(time[list(frames)].tolist()), cameras)


def _gripper_column(meta: DatasetMeta) -> tuple[str | None, int]:
    """The column, and the number in it, that says how far the gripper is open; None where none does.

    By name, or else the last of six: that is where SO-100 arms have it.
    """
    for column in (STATE, ACTION):
        feature: Any = meta.info.features.get(column)
        if feature is None or feature.is_camera or not feature.dtype.startswith(("float", "int")):
            continue
        names = [name.casefold() for name in feature.names or ()]
        named = [number for number, name in enumerate(names) if "gripper" in name]
        if named:
            return column, named[-1]
        if feature.shape == (6,):
            return column, 5
    return None, 0
