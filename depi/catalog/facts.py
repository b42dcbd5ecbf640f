"""The facts about one candidate, tier by tier, and the thresholds it is judged by."""

import math
from dataclasses import dataclass, field, fields
from datetime import datetime

import numpy as np

from depi.catalog.motion import Motion
from depi.datasets.judging.faults import Fault, Recording
from depi.datasets.recording.formats import DatasetInfo, DatasetMeta
from depi.datasets.recording.joints import Detection
from depi.datasets.recording.tables import Tables
from depi.errors import UserError


@dataclass
class Thresholds:
    """The numbers that the rules compare with."""

    # Fewest colour cameras.
    min_cameras: int = 1
    # Slowest recording, frames per second.
    min_fps: float = 5.0
    # Fastest recording, frames per second.
    max_fps: float = 120.0
    # Fewest episodes.
    min_episodes: int = 1
    # Fewest frames.
    min_frames: int = 50
    # Most frames; larger datasets are not checked and so not accepted.
    max_frames: int = 5_000_000
    # Largest share of the episodes that may be bad, 0..1; the others must be as many as --min_episodes and
    # have --min_frames.
    max_bad_episodes: float = 0.5
    # The least that the joint which moves most must move over the dataset, in degrees.
    min_motion: float = 5.0
    # Largest delay of the state behind the action, in seconds.
    max_lag: float = 0.7
    # Least correlation between the motion of the action and that of the state, -1..1.
    min_follow: float = 0.3
    # The least that the gripper must open and close over the dataset, 0..100; 0 allows an unused gripper.
    min_gripper: float = 3.0
    # Only datasets of these licences, as in --licenses=[apache-2.0,mit]; empty for all.
    licenses: list[str] = field(default_factory=list)
    # Largest share of the episodes that an earlier dataset may have too, 0..1.
    max_shared_episodes: float = 0.5
    # Largest share of the motion that an earlier dataset may have, trimmed, rounded or converted, 0..1.
    max_shared_motion: float = 0.2
    # Largest meta/ folder to download, in megabytes.
    max_meta_mb: float = 200.0
    # Largest parquet tables of one dataset to download, in megabytes.
    max_table_mb: float = 2_000.0

    def __post_init__(self) -> None:
        for limit in fields(Thresholds):
            value = getattr(self, limit.name)
            if isinstance(value, float) and math.isnan(value):
                raise UserError(f"--{limit.name} is NaN: nothing compares with it")


@dataclass(frozen=True)
class EpisodeVerdict:
    """One episode, by its recorded number, with its faults."""

    episode: int
    frames: int
    faults: tuple[Fault, ...] = ()

    @property
    def bad(self) -> bool:
        """Whether it is left out of training by default."""
        return any(fault.leaves_out for fault in self.faults)


@dataclass(repr=False)
class Facts:
    """Facts about one repository at one commit.

    A tier that was not reached leaves its fields unset, so that a rule which reads them too early fails.
    Where a tier could not be read, its `*_error` says why and the rest of that tier stays unset.
    """

    # listing
    repo_id: str
    revision: str  # "" where the repository cannot be reached
    files: dict[str, int | None]  # path in the repository -> bytes, None where the Hub does not say
    tags: tuple[str, ...] = ()
    license: str | None = None
    path: str | None = None  # folder inside a collection
    downloads: int | None = None
    likes: int | None = None
    gated: bool = False
    disabled: bool = False
    created_at: datetime | None = None
    last_modified: datetime | None = None
    access_error: str | None = None

    # info: meta/info.json
    info: DatasetInfo = field(init=False)
    info_error: str | None = None

    # metadata: the other files under meta/, E episodes
    meta: DatasetMeta = field(init=False)
    tasks: tuple[str, ...] = field(init=False)  # distinct and as written: untrusted
    episode_length: np.ndarray = field(init=False)  # int64 [E], frames
    data_files: tuple[str, ...] = field(init=False)
    video_files: tuple[str, ...] = field(init=False)
    meta_error: str | None = None

    # tables: the parquet columns, F frames in episode order
    table_rows: int = field(init=False)  # in the data files that are there
    tables: Tables = field(init=False)  # of the episodes that can be read at all
    fingerprint: str = field(init=False)
    readable: Recording = field(init=False)  # the episodes that can be read, in degrees if these are known
    detection: Detection = field(init=False)
    episodes: list[EpisodeVerdict] = field(init=False)  # of all that are listed
    tables_error: str | None = None

    # joints, of the good episodes and only of a known convention
    good: Recording = field(init=False)
    motion: Motion = field(init=False)
