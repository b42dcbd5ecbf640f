"""Gather the facts of one candidate, tier by tier, as long as the rules pass, and give the verdict.

Cheap things first: most unusable datasets are refused by the file list or by `meta/info.json`, and no
table is downloaded that cannot matter. Videos are never downloaded here. Everything is read at the one
commit that the row names. Lists and tables are read in processes with limits, see `depi.engine.confined`.
"""

import hashlib
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from depi.catalog import collection
from depi.catalog.catalogue import ACCEPTED, FAILED, REJECTED, Row
from depi.catalog.episodes import add_verdicts, verdicts_of
from depi.catalog.evidence import add_evidence
from depi.catalog.facts import Facts, Thresholds
from depi.catalog.find import Candidate
from depi.catalog.motion import measure_motion
from depi.catalog.rules import RULES_VERSION, TIERS, judge, remarks
from depi.catalog.text import clean
from depi.datasets.judging.examine import FetchedTables, examine, fetch_tables, keep
from depi.datasets.judging.faults import Fault
from depi.datasets.judging.reading import table_readable
from depi.datasets.judging.rules import OPTIONAL
from depi.datasets.recording import formats
from depi.datasets.recording.border import reading
from depi.datasets.recording.formats import INFO_FILE, data_files
from depi.datasets.recording.hub_files import HubFiles
from depi.datasets.recording.metadata import load_meta, read_info
from depi.datasets.recording.sources import DatasetFiles, DatasetSource
from depi.datasets.recording.statistics import statistics_files
from depi.datasets.recording.tables import ACTION, columns_and_rows
from depi.engine.confined import confined
from depi.errors import DatasetError
from depi.hub.client import api as client
from depi.hub.names import DatasetId, parse_dataset_id

MAX_TASKS = 20
MAX_CAMERAS = 16
_TIERS = {tier.name: tier for tier in TIERS}
_REFUSED = (client.RepoMissing, client.RepoGated, client.FileMissing, client.TooLarge, DatasetError)


@dataclass(frozen=True)
class Collection:
    """What a candidate turned out to be: a repository with a dataset in each of these folders."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Inspector:
    """Turns a candidate into a row, or into the candidates of a collection: call it with a `Candidate`.

    known: rows of an earlier catalogue judged by the same rules; those of unchanged commits are kept
    max_seconds: for all requests about one candidate together
    """

    limits: Thresholds
    disabled: frozenset[str] = frozenset()
    known: Mapping[str, Row] = field(default_factory=dict)
    max_seconds: float = math.inf

    def __call__(self, candidate: Candidate) -> Row | Collection:
        """Inspect and judge one candidate; a request each for the listing and every file needed.

        A repository that is missing, closed, boundless or unreadable is rejected. One that cannot be fetched
        for any other reason is "failed", with a reason "not inspected: ...".

        Raises:
            HubUnreachable: no answer from the Hub, which may be this repository's fault or not.
        """
        known = self.known.get(candidate.repo_id)
        if known is not None and _unchanged(known, candidate.revision, candidate.gated):
            return known
        try:
            with client.time_limit(self.max_seconds), reading():
                return self._inspect(candidate, known)
        except _REFUSED as error:
            # Access may be granted without a new commit, what the files are like stays so until there is one.
            lasts = isinstance(error, client.TooLarge | DatasetError)
            revision = candidate.revision if lasts else None
            dataset = parse_dataset_id(candidate.repo_id)
            facts = Facts(candidate.repo_id, revision or "", files={}, access_error=str(error))
            facts.path, facts.gated = dataset.path or None, bool(candidate.gated)
            return make_row(facts, judge(TIERS[0], facts, self.limits, self.disabled), self.limits)
        except client.HubUnreachable:
            raise
        except client.HubError as error:
            return bare_row(candidate.repo_id, FAILED, f"not inspected: {error}")

    def _inspect(self, candidate: Candidate, known: Row | None) -> Row | Collection:
        source = DatasetSource(candidate.repo_id, candidate.revision)
        files = HubFiles(source, sizes=True)
        dataset = files.dataset
        if not dataset.path and candidate.revision is not None:
            inside = collection.remembered(dataset.repo_id, candidate.revision)
            if inside:
                return _opened(inside, candidate.revision, candidate.gated)
        about = files.about()
        gated = bool(about.gated)
        if known is not None and _unchanged(known, files.revision, gated):
            return known
        try:
            listed = files.list_files()
        except client.TooLarge:
            at_top = [dataset.inside(INFO_FILE)]
            if dataset.path or client.existing_files(dataset.repo_id, at_top, revision=files.revision):
                raise
            inside = collection.by_walking(dataset.repo_id, files.revision)
            if not inside:
                reason = f"has_info: no {INFO_FILE} at the top or in its folders, too many files to list them"
                return make_row(list_facts(files, {}), [reason], self.limits)
            return _opened(inside, files.revision, gated)
        if not dataset.path and INFO_FILE not in listed:
            inside = collection.from_file_list(dataset.repo_id, files.revision, listed)
            if inside:
                return _opened(inside, files.revision, gated)
        return self._judge(list_facts(files, listed), files)

    def _judge(self, facts: Facts, files: DatasetFiles) -> Row:
        """Gather what each tier needs, and judge by it as long as the rules pass."""
        for tier, gather in (("listing", None), ("info", gather_info), ("metadata", gather_metadata)):
            if gather is not None:
                gather(facts, files)
            if reasons := judge(_TIERS[tier], facts, self.limits, self.disabled):
                return make_row(facts, reasons, self.limits)
        try:
            fetched = fetch_tables(files, facts.meta)
            work = (judge_recording, facts, fetched, self.limits, self.disabled)
            return confined(*work, seconds=fetched.seconds, megabytes=fetched.megabytes)
        except DatasetError as error:
            facts.tables_error = str(error)
        return make_row(facts, judge(_TIERS["tables"], facts, self.limits, self.disabled), self.limits)


def _opened(inside: Sequence[DatasetId], revision: str | None, gated: bool | None) -> Collection:
    return Collection(tuple(Candidate(str(dataset), revision, gated) for dataset in inside))


def list_facts(files: HubFiles, listed: Mapping[str, int | None]) -> Facts:
    """Facts of the listing tier, from the Hub's answers about the repository."""
    info, path = files.about(), files.dataset.path
    card = info.card_data
    license_name = card.get("license") if card is not None else None
    if isinstance(license_name, list):
        license_name = ", ".join(map(str, license_name))
    return Facts(
        repo_id=files.repo_id,
        revision=files.revision,
        files=dict(listed),
        path=path or None,
        tags=tuple(str(tag) for tag in info.tags or ()),
        license=None if license_name is None else clean(license_name, 100),
        downloads=info.downloads,
        likes=info.likes,
        gated=bool(info.gated),
        disabled=bool(info.disabled),
        created_at=info.created_at,
        last_modified=info.last_modified,
    )


def gather_info(facts: Facts, files: DatasetFiles) -> None:
    """Download and check `meta/info.json`."""
    try:
        files.fetch([INFO_FILE])
        facts.info = formats.parse_info(read_info(files.root))
    except DatasetError as error:
        facts.info_error = str(error)


def gather_metadata(facts: Facts, files: DatasetFiles) -> None:
    """Download the lists of episodes and tasks, and name the files that they refer to."""
    try:
        files.fetch(formats.metadata_files(facts.files) + statistics_files(facts.files, facts.info.version))
        meta = confined(load_meta, files.root, facts.repo_id, facts.revision)
    except DatasetError as error:
        facts.meta_error = str(error)
        return
    facts.meta = meta
    facts.data_files = tuple(formats.data_files(meta))
    facts.video_files = tuple(formats.video_files(meta))
    facts.episode_length = meta.episodes.length
    texts = [task for tasks in meta.episodes.tasks for task in tasks] or list(meta.tasks.values())
    facts.tasks = tuple(dict.fromkeys(texts))


def judge_recording(
    facts: Facts, fetched: FetchedTables, limits: Thresholds, disabled: frozenset[str]
) -> Row:
    """Read the tables, at most `--max_frames` rows, and judge what they hold: the last two tiers."""
    try:
        facts.table_rows = _count_rows(fetched.meta.root, data_files(fetched.meta), limits.max_frames)
        facts.tables, unread = table_readable(fetched.meta)
        judge_tables(facts, disabled, [*fetched.absent, *unread])
    except DatasetError as error:
        facts.tables_error = str(error)
    reasons = judge(_TIERS["tables"], facts, limits, disabled)
    if not reasons:
        gather_joints(facts)
        reasons = judge(_TIERS["joints"], facts, limits, disabled)
    return make_row(facts, reasons, limits)


def judge_tables(facts: Facts, disabled: Container[str] = (), unread: Sequence[Fault] = ()) -> None:
    """Find the joint convention and the faults of the episodes.

    Raises:
        DatasetError: no episode can be read.
    """
    tables = facts.tables
    facts.fingerprint = fingerprint(tables.columns[ACTION], tables.meta.episodes.length)
    asked = [rule for rule in OPTIONAL if rule.name not in disabled]
    examined = examine(tables.meta, tables.columns, unread=unread, asked=asked)
    facts.readable, facts.detection = examined.recording, examined.detection
    numbers = facts.meta.episodes.episode_index.tolist()
    facts.episodes = verdicts_of(numbers, facts.episode_length.tolist(), examined.faults)


def gather_joints(facts: Facts) -> None:
    """Measure the motion of the good episodes, where the joints are known in degrees."""
    good = {verdict.episode for verdict in facts.episodes if not verdict.bad}
    if not good or facts.detection.convention in ("unknown", "native"):
        return
    facts.good = keep(facts.readable, np.isin(facts.readable.meta.episodes.episode_index, list(good)), {})
    facts.motion = measure_motion(facts.good.action, facts.good.state, facts.good.length, facts.info.fps)


def fingerprint(action: np.ndarray, episode_length: np.ndarray) -> str:
    """Hexadecimal digest of all actions (float32 [F, D]) and of where the episodes (int64 [E]) end."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.asarray(episode_length, "<i8").tobytes())
    digest.update(np.ascontiguousarray(action, "<f4").tobytes())
    return digest.hexdigest()


def make_row(facts: Facts, reasons: list[str], limits: Thresholds) -> Row:
    """The row of an inspected candidate, with whatever was found out before it was refused."""
    row = bare_row(facts.repo_id, REJECTED if reasons else ACCEPTED, *reasons)
    row.revision = facts.revision or None
    row.license, row.gated = facts.license, facts.gated
    row.created_at, row.last_modified = facts.created_at, facts.last_modified
    if hasattr(facts, "info"):
        cameras = facts.info.camera_keys
        row.codebase_version = facts.info.version
        row.robot_type = None if facts.info.robot_type is None else clean(facts.info.robot_type, 60)
        row.fps = facts.info.fps
        row.cameras, row.num_cameras = [clean(key, 100) for key in cameras[:MAX_CAMERAS]], len(cameras)
        row.episodes, row.frames = facts.info.total_episodes, facts.info.total_frames
    if hasattr(facts, "tasks"):
        row.tasks = [clean(task) for task in facts.tasks[:MAX_TASKS]]
        row.episodes, row.frames = len(facts.episode_length), int(facts.episode_length.sum())
    if hasattr(facts, "fingerprint"):
        row.fingerprint = facts.fingerprint
    if hasattr(facts, "detection"):
        row.joint_convention = facts.detection.convention
        row.joint_evidence = clean(facts.detection.evidence, 500)
        add_verdicts(row, facts.episodes)
    add_evidence(row, facts)
    if not reasons:
        row.flags = [clean(flag, 500) for flag in remarks(facts, limits)]
    return row


def bare_row(repo_id: str, verdict: str, *reasons: str) -> Row:
    """A row with a verdict, checked now, and nothing known of the dataset."""
    return Row(
        repo_id=repo_id,
        verdict=verdict,
        reasons=[clean(reason, 500) for reason in reasons],
        checked_at=datetime.now(UTC).replace(microsecond=0),
        rules_version=RULES_VERSION,
    )


def _unchanged(known: Row, revision: str | None, gated: bool | None) -> bool:
    if known.verdict == FAILED or known.revision is None or revision != known.revision:
        return False
    return gated is None or gated == known.gated


def _count_rows(root: Path, files: Sequence[str], max_rows: int) -> int:
    """The rows, from the footers. A file without a sound footer is not counted: it cannot be read either."""
    rows = 0
    for relative in files:
        try:
            rows += columns_and_rows(root, relative)[1]
        except DatasetError:
            continue
        if rows > max_rows:
            raise DatasetError(f"the tables have more than {max_rows} rows")
    return rows
