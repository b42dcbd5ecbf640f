"""`depi view`: look at one episode, in LeRobot's viewer or as an mp4."""

import importlib.util
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from depi.catalog.catalogue import load_catalog
from depi.catalog.episodes import verdicts
from depi.catalog.text import clean
from depi.datasets.judging.examine import examine_tables, fetch_tables
from depi.datasets.judging.faults import Fault
from depi.datasets.recording.checks import resolve_file
from depi.datasets.recording.formats import DatasetMeta, data_files, select_episodes, video_files
from depi.datasets.recording.metadata import read_meta
from depi.datasets.recording.places import image_places
from depi.datasets.recording.sources import DatasetFiles, DatasetSource
from depi.datasets.recording.storages import open_source
from depi.datasets.recording.tables import ACTION, STATE, read_frames
from depi.datasets.union.lists import CATALOG_FILE
from depi.engine.confined import confined
from depi.errors import DatasetError, UserError
from depi.flags import parse_flags

if TYPE_CHECKING:
    from depi.catalog.episode_video import Episode

VIEWER_VERSION = "v3.0"
HEIGHTS = range(16, 2161)


@dataclass
class ViewConfig:
    """Show one episode: in LeRobot's rerun viewer where there is a display, else as an mp4 with the cameras
    side by side and the curves of state and action, as recorded, under them, where its faults are shaded.

    LeRobot's viewer reads v3.0 only; of the older versions an mp4 is written.
    """

    # user/name of the dataset, or an address: s3://bucket/folder.
    repo_id: str = ""
    # The episode's index, as recorded.
    episode: int = 0
    # A branch, tag or commit; by default the newest.
    revision: str | None = None
    # The dataset's folder, instead of the Hub.
    root: Path | None = None
    # Write an mp4 there, display or not; by default outputs/view/NAME_episode_NUMBER.mp4.
    output: Path | None = None
    # The folder that `depi collect-ids` wrote, whose verdict on the episode is shown.
    data_ids: Path = Path("data_ids")
    # Of the cameras in the mp4, in pixels.
    height: int = 360

    def __post_init__(self) -> None:
        if not self.repo_id:
            raise UserError("depi view needs a dataset: `depi view USER/NAME --episode=0`")
        if self.episode < 0:
            raise UserError(f"--episode={self.episode}: episodes are numbered from 0")
        if self.height not in HEIGHTS:
            raise UserError(f"--height={self.height}: {HEIGHTS[0]} to {HEIGHTS[-1]} pixels are possible")


def main(args: list[str]) -> int:
    """Run `depi view`; returns the exit status."""
    config = parse_flags(ViewConfig, args, "depi view", ["repo_id"])
    files, meta = find_episode(DatasetSource(config.repo_id, config.revision, config.root), config.episode)
    faults = faults_of(files, config)
    for fault in faults:
        print(fault if fault.leaves_out else f"{fault} (remark)")
    why_not = "--output is given" if config.output is not None else why_no_viewer(config, meta.info.version)
    if why_not is None:
        show_in_viewer(config, files.revision)
        return 0
    from depi.catalog.episode_video import write_video  # slow

    name = f"{file_name(config.repo_id)}_episode_{config.episode:06d}.mp4"
    output = config.output or Path("outputs/view", name)
    try:
        write_video(output, replace(read_episode(files, meta), faults=faults), config.height)
    except DatasetError as error:
        raise UserError(f"episode {config.episode} of {config.repo_id} cannot be shown: {error}") from None
    print(f"written to {output}" + ("" if config.output else f" ({why_not})"))
    return 0


def find_episode(source: DatasetSource, episode: int) -> tuple[DatasetFiles, DatasetMeta]:
    """The dataset's files, and its metadata with this one episode; neither tables nor videos are fetched.

    Raises:
        UserError: there is no such dataset or episode, or the dataset cannot be read.
    """
    try:
        files = open_source(source)
        meta = read_meta(files)
    except DatasetError as error:
        raise UserError(f"dataset {source.repo_id} cannot be shown: {error}") from None
    recorded = meta.episodes.episode_index
    position = np.flatnonzero(recorded == episode)
    if not len(position):
        raise UserError(
            f"dataset {source.repo_id} has no episode {episode}: "
            f"it has {len(recorded)}, numbered {recorded[0]} to {recorded[-1]}"
        )
    return files, select_episodes(meta, position)


def faults_of(files: DatasetFiles, config: ViewConfig) -> tuple[Fault, ...]:
    """The faults of the episode that the catalogue names; of a folder that it does not know, those it shows.

    A dataset on the Hub that the catalogue does not know is not judged: that needs all of its tables.
    """
    if (config.data_ids / CATALOG_FILE).exists() and files.revision is not None:
        for row in load_catalog(config.data_ids):
            if (row.repo_id, row.revision) == (files.repo_id, files.revision) and row.judged is not None:
                return next((each.faults for each in verdicts(row) if each.episode == config.episode), ())
    if not files.is_local:
        return ()
    try:
        tables = fetch_tables(files, read_meta(files))
        found = confined(examine_tables, tables, seconds=tables.seconds, megabytes=tables.megabytes).faults
    except DatasetError:
        return ()
    return tuple(fault for fault in found if fault.episode == config.episode)


def read_episode(files: DatasetFiles, meta: DatasetMeta) -> "Episode":
    """Fetch and read the one episode of `meta`; its images are decoded when their turn comes.

    Raises:
        DatasetError: its numbers cannot be used, or a file is missing.
    """
    from depi.catalog.episode_video import Episode
    from depi.datasets.recording.place_reader import PlaceReader

    files.fetch([*data_files(meta), *video_files(meta)])
    features = meta.info.features
    present = [name for name in (STATE, ACTION) if name in features and not features[name].is_camera]
    frames = confined(read_frames, meta, [*present, "timestamp"])
    seconds = frames["timestamp"].astype(np.float64).reshape(-1)
    curves = {name.split(".")[-1]: frames[name].reshape(len(seconds), -1) for name in present}
    if not all(values.dtype.kind in "fiu" for values in curves.values()):
        raise DatasetError("its state or action holds no numbers")
    if not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any():
        raise DatasetError("its timestamps do not increase")
    task = " / ".join(meta.episodes.tasks[0])
    title = f"{meta.repo_id} · episode {meta.episodes.episode_index[0]} · {task}"
    return Episode(
        title=clean(title, 160),
        fps=meta.info.fps,
        seconds=seconds,
        curves=curves,
        names={name.split(".")[-1]: features[name].names for name in present},
        cameras={
            key: PlaceReader().run(
                resolve_file(meta.root, place.file), place, range(place.length), seconds.tolist()
            )
            for key, (place,) in image_places(meta, meta.info.camera_keys).items()
        },
    )


def why_no_viewer(config: ViewConfig, version: str) -> str | None:
    """Why LeRobot's viewer cannot show a dataset of this version here; None where it can."""
    if version != VIEWER_VERSION:
        return f"LeRobot's viewer reads {VIEWER_VERSION}, this dataset is {version}"
    if ":" in config.repo_id and config.root is None:
        return "LeRobot's viewer opens neither buckets nor the datasets inside a collection"
    if not (
        sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return "there is no display for LeRobot's viewer"
    if importlib.util.find_spec("rerun") is None:
        return "LeRobot's viewer needs rerun: install depi[viz]"
    return None


def show_in_viewer(config: ViewConfig, revision: str | None) -> None:
    """Open LeRobot's rerun viewer; it stays open when this command ends.

    Raises:
        UserError: LeRobot cannot show the episode.
    """
    from lerobot.datasets import LeRobotDataset
    from lerobot.scripts import lerobot_dataset_viz

    try:
        dataset = LeRobotDataset(
            config.repo_id, root=config.root, episodes=[config.episode], revision=revision
        )
        lerobot_dataset_viz.visualize_dataset(dataset, config.episode)
    except Exception as error:  # LeRobot names no exceptions: whatever it is, the mp4 is the way out
        raise UserError(
            f"LeRobot's viewer cannot show episode {config.episode} of {config.repo_id} "
            f"({type(error).__name__}: {clean(error)}): pass --output=FILE.mp4 to write a video"
        ) from error


def file_name(repo_id: str) -> str:
    """A file name out of a repo id."""
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in repo_id).lstrip(".")
