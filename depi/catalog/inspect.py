"""Gather the facts of one candidate, tier by tier, as long as the rules pass, and give the verdict.

Cheap things first: most unusable datasets are refused by the file list or by `meta/info.json`, and no
table is downloaded that cannot matter. Videos are never downloaded here. Everything is read at the one
commit that the row names.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from depi.catalog.evidence import add_evidence
from depi.catalog.facts import Facts, Thresholds
from depi.catalog.find import Candidate
from depi.catalog.motion import measure_motion
from depi.catalog.repository_rules import INFO_FILE
from depi.catalog.rules import RULES_VERSION, TIERS, judge, remarks
from depi.catalog.store import ACCEPTED, FAILED, REJECTED, Row
from depi.catalog.text import clean
from depi.datasets import formats, joints
from depi.errors import DatasetError
from depi.hub import client

MAX_TASKS = 20
MAX_CAMERAS = 16
COLUMNS = ("action", "observation.state", "timestamp")


@dataclass(frozen=True)
class Inspector:
    """Turns a candidate into a row: call it with a `Candidate`.

    known: rows of an earlier catalogue judged by the same rules; those of unchanged commits are kept
    """

    limits: Thresholds
    disabled: frozenset[str] = frozenset()
    known: Mapping[str, Row] = field(default_factory=dict)

    def __call__(self, candidate: Candidate) -> Row:
        """Inspect and judge one candidate; a request each for the listing and every file needed.

        A repository that is missing or closed is rejected. One that cannot be fetched for any other
        reason is "failed", with a reason "not inspected: ...".

        Raises:
            HubUnreachable: no answer from the Hub, which may be this repository's fault or not.
        """
        known = self.known.get(candidate.repo_id)
        if known is not None and _unchanged(known, candidate.revision, candidate.gated):
            return known
        try:
            info = client.repo_info(candidate.repo_id, revision=candidate.revision, files_metadata=True)
            if known is not None and _unchanged(known, info.sha, bool(info.gated)):
                return known
            assert isinstance(info, huggingface_hub.DatasetInfo)
            facts = list_facts(candidate.repo_id, info)
            return make_row(facts, self._reasons(facts), self.limits)
        except (client.RepoMissing, client.RepoGated) as error:
            facts = Facts(candidate.repo_id, candidate.revision or "", files={}, access_error=str(error))
            return make_row(facts, judge(TIERS[0], facts, self.limits, self.disabled), self.limits)
        except client.HubUnreachable:
            raise
        except client.HubError as error:
            return bare_row(candidate.repo_id, FAILED, f"not inspected: {error}")

    def _reasons(self, facts: Facts) -> list[str]:
        gather: dict[str, Callable[[Facts], None]] = {
            "info": gather_info,
            "metadata": gather_metadata,
            "tables": partial(gather_tables, max_rows=self.limits.max_frames),
            "joints": gather_joints,
        }
        for tier in TIERS:
            if tier.name in gather:
                gather[tier.name](facts)
            if reasons := judge(tier, facts, self.limits, self.disabled):
                return reasons
        return []


def list_facts(repo_id: str, info: huggingface_hub.DatasetInfo) -> Facts:
    """Facts of the listing tier, from the Hub's answer about the repository."""
    card = info.card_data
    license_name = card.get("license") if card is not None else None
    if isinstance(license_name, list):
        license_name = ", ".join(map(str, license_name))
    return Facts(
        repo_id=repo_id,
        revision=info.sha or "",
        files={sibling.rfilename: sibling.size for sibling in info.siblings or ()},
        tags=tuple(str(tag) for tag in info.tags or ()),
        license=None if license_name is None else clean(license_name, 100),
        downloads=info.downloads,
        likes=info.likes,
        gated=bool(info.gated),
        disabled=bool(info.disabled),
        created_at=info.created_at,
        last_modified=info.last_modified,
    )


def gather_info(facts: Facts) -> None:
    """Download and check `meta/info.json`."""
    try:
        path = client.download_file(facts.repo_id, INFO_FILE, revision=facts.revision)
        facts.info = formats.parse_info(formats.read_info(path.parent.parent))
    except DatasetError as error:
        facts.info_error = str(error)


def gather_metadata(facts: Facts) -> None:
    """Download the lists of episodes and tasks, and name the files that they refer to."""
    wanted = formats.metadata_files(facts.files)
    try:
        root = client.download_files(facts.repo_id, wanted, revision=facts.revision)
        meta = formats.load_meta(root, facts.repo_id, facts.revision)
        facts.data_files = tuple(formats.data_files(meta))
        facts.video_files = tuple(formats.video_files(meta))
    except DatasetError as error:
        facts.meta_error = str(error)
        return
    facts.meta = meta
    facts.episode_length = meta.episodes.length
    texts = [task for tasks in meta.episodes.tasks for task in tasks] or list(meta.tasks.values())
    facts.tasks = tuple(dict.fromkeys(texts))


def gather_tables(facts: Facts, max_rows: int) -> None:
    """Download the parquet tables and read action, state and timestamps; at most `max_rows` rows."""
    try:
        root = client.download_files(facts.repo_id, facts.data_files, revision=facts.revision)
        _check_rows(root, facts.data_files, max_rows)
        columns = formats.read_frames(facts.meta, COLUMNS)
    except DatasetError as error:
        facts.tables_error = str(error)
        return
    facts.action, facts.state = columns["action"], columns["observation.state"]
    facts.timestamp = columns["timestamp"].reshape(-1)
    facts.fingerprint = fingerprint(facts.action, facts.episode_length)


def gather_joints(facts: Facts) -> None:
    """Find the joint convention, and the joints in degrees where it is known."""
    names = facts.info.features["action"].names
    facts.detection = joints.detect_convention(names, facts.action, facts.state)
    if facts.detection.convention not in ("unknown", "native"):
        facts.action_degrees = joints.to_degrees(facts.action, facts.detection)
        facts.state_degrees = joints.to_degrees(facts.state, facts.detection)
        facts.motion = measure_motion(
            facts.action_degrees, facts.state_degrees, facts.episode_length, facts.info.fps
        )


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


def _check_rows(root: Path, files: tuple[str, ...], max_rows: int) -> None:
    """Read the tables' footers only: a small file can unfold to any number of rows."""
    rows = 0
    for relative in files:
        try:
            rows += pq.read_metadata(root / relative).num_rows
        except (pa.ArrowException, OSError) as error:
            reason = clean(error, 200)
            raise DatasetError(f"{relative} cannot be read as parquet: {reason}") from None
        if rows > max_rows:
            raise DatasetError(f"the tables have more than {max_rows} rows")
