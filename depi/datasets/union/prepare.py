"""Decode every image of a training set once, and write it in the size that training wants."""

import functools
import json
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depi.datasets.recording.cameras import letterbox
from depi.datasets.recording.images import encode_jpeg
from depi.datasets.union.index import NO_CAMERA
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.datasets.union.shards import (
    Wanted,
    dataset_folder,
    decode_jpeg,
    describe,
    made_by,
    read_shard,
    refuse_others,
    shard_path,
    write_manifest,
    write_settings,
    write_shard,
)
from depi.engine import Runner
from depi.errors import DatasetError, machine_error
from depi.files import write_json
from depi.fingerprint import fingerprint

ROWS_PER_SHARD = 4096
"""About 130 MB of 224-pixel images."""
MAX_MEAN_ERROR = 24.0
"""Grey levels, on average, by which a prepared image may differ from its source at the lowest quality."""

_CHECK_EVERY = 512


@dataclass(frozen=True)
class Settings:
    """How images are stored: letterboxed to a square, as JPEG without colour subsampling."""

    root: Path
    image_size: int = 224
    quality: int = 95
    antialias: bool = False
    rows_per_shard: int = ROWS_PER_SHARD


@dataclass(frozen=True)
class Job:
    """One shard of one dataset: frames first..last - 1 of the training set, all cameras."""

    settings: Settings
    dataset: bytes
    number: int
    shard: int
    first: int
    last: int


@dataclass(frozen=True)
class Written:
    """What became of a job.

    entry: rows, bytes and crc32, for the manifest
    failed: (recorded episode, frame, camera key, reason) of each image that cannot be decoded
    """

    entry: dict[str, int]
    failed: list[tuple[int, int, str, str]]
    reused: bool


@dataclass
class Prepared:
    """What became of one dataset; `error` says why it is not complete."""

    repo_id: str
    revision: str | None
    episodes: int
    images: int
    bytes: int
    reused: int
    failed: list[tuple[int, int, str, str]]
    error: str | None = None


def prepare(
    dataset: MultiLeRobotDataset,
    settings: Settings,
    *,
    run: Runner,
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prepared]:
    """Write the images of all datasets of a training set, going on where an earlier run stopped.

    Args:
        dataset: the training set; its own image_size does not matter.
        settings: where and how.
        run: what runs the work, see `depi.engine.make_runner`.
        verify: check the checksums also of shards that are there already.
        progress: called after each shard with (shards done, shards in all).

    Raises:
        UserError: `settings.root` holds other things, or images of other settings, cameras or episodes.
        MachineError: a disk is full; the shards that are there are kept.
    """
    write_settings(settings.root, settings.image_size, settings.quality, settings.antialias)
    for number in range(dataset.num_datasets):
        refuse_others(settings.root, dataset.wanted_images(number))
    blob = pickle.dumps(dataset)
    jobs = [job for number in range(dataset.num_datasets) for job in _jobs(dataset, settings, blob, number)]
    written: dict[int, dict[int, Written | Exception]] = {}
    function = functools.partial(prepare_shard, verify=verify)
    for done, (job, outcome) in enumerate(run(function, jobs)):
        if fault := machine_error(outcome, settings.root):
            raise fault
        written.setdefault(job.number, {})[job.shard] = outcome
        if progress is not None:
            progress(done + 1, len(jobs))
    return [
        _complete(dataset, settings, number, [shards[shard] for shard in sorted(shards)])
        for number, shards in sorted(written.items())
    ]


def _jobs(dataset: MultiLeRobotDataset, settings: Settings, blob: bytes, number: int) -> list[Job]:
    cameras = len(dataset.entries[number]["cameras"])
    per_shard = max(1, settings.rows_per_shard // cameras)
    begin, end = dataset.episode_start[dataset.dataset_start[number : number + 2]].tolist()
    return [
        Job(settings, blob, number, shard, first, min(first + per_shard, end))
        for shard, first in enumerate(range(begin, end, per_shard))
    ]


@functools.lru_cache(1)
def _load(blob: bytes) -> tuple[MultiLeRobotDataset, dict[int, Wanted]]:
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # there are as many workers as there should be threads
    return pickle.loads(blob), {}


def prepare_shard(job: Job, verify: bool = False) -> Written:
    """Write one shard, unless it is there already.

    Raises:
        DatasetError: what was stored is not what was decoded.
        OSError: it cannot be written.
    """
    dataset, known = _load(job.dataset)
    if job.number not in known:
        known[job.number] = dataset.wanted_images(job.number)
    source = known[job.number]
    folder = dataset_folder(job.settings.root, source)
    path = shard_path(folder, job.shard)
    plan = _plan(job, source, int(dataset.episode_start[dataset.dataset_start[job.number]]))
    failed: list[tuple[int, int, str, str]] = []
    images: list[bytes] = []
    checks: dict[int, Tensor] = {}
    entry = read_shard(path, plan, verify)
    if entry is not None:
        return Written(entry, _read_failures(path, plan), reused=True)
    for episode, frame, slot, image in decode_frames(dataset, job.first, job.last):
        if isinstance(image, DatasetError):
            failed.append((int(dataset.episode_recorded[episode]), frame, source.cameras[slot], str(image)))
            images.append(b"")
            continue
        small = letterbox(image, job.settings.image_size, job.settings.antialias)
        if len(images) % _CHECK_EVERY == 0:
            checks[len(images)] = small
        images.append(encode_jpeg(small, job.settings.quality))
    for row, small in checks.items():
        error = (decode_jpeg(images[row]).float() - small.float()).abs().mean().item()
        if error > MAX_MEAN_ERROR:
            raise DatasetError(f"image {row} of {path} differs by {error:.1f} grey levels from its source")
    folder.mkdir(parents=True, exist_ok=True)
    _write_failures(path, plan, failed)
    return Written(write_shard(path, images, plan), failed, reused=False)


def _plan(job: Job, source: Wanted, begin: int) -> str:
    """A digest of what a shard is made from."""
    size = job.settings.image_size, job.settings.quality, job.first - begin, job.last - begin
    return fingerprint(made_by(), json.dumps(describe(source), sort_keys=True), *size)


def decode_frames(
    dataset: MultiLeRobotDataset, first: int, last: int
) -> Iterator[tuple[int, int, int, Tensor | DatasetError]]:
    """The recorded images of frames first..last - 1 of a training set, each video in one run.

    Yields:
        (episode, frame in the episode, slot, image uint8 [3, H, W]), cameras side by side; in place of an
        image that cannot be decoded the reason.
    """
    episode = int(np.searchsorted(dataset.episode_start, first, side="right")) - 1
    while first < last:
        start, end = dataset.episode_start[episode : episode + 2].tolist()
        frames = range(first - start, min(end, last) - start)
        slots = np.flatnonzero(dataset.camera_kind[episode] != NO_CAMERA).tolist()
        runs = [_run(dataset, episode, slot, frames) for slot in slots]
        for frame, images in zip(frames, zip(*runs, strict=True), strict=True):
            for slot, image in zip(slots, images, strict=True):
                yield episode, frame, slot, image
        first, episode = min(end, last), episode + 1


def _run(
    dataset: MultiLeRobotDataset, episode: int, slot: int, frames: range
) -> Iterator[Tensor | DatasetError]:
    """The images of one camera; where the run through its file breaks off, the rest one by one."""
    done = 0
    try:
        for image in dataset.camera_run(episode, slot, frames):
            done += 1
            yield image
    except DatasetError:
        for frame in frames[done:]:
            try:
                yield next(dataset.camera_run(episode, slot, range(frame, frame + 1)))
            except DatasetError as error:
                yield error


def _failures_path(path: Path) -> Path:
    return path.with_suffix(".failed.json")


def _write_failures(path: Path, plan: str, failed: list[tuple[int, int, str, str]]) -> None:
    if failed:
        write_json(_failures_path(path), {"plan": plan, "failed": failed})
    else:
        _failures_path(path).unlink(missing_ok=True)


def _read_failures(path: Path, plan: str) -> list[tuple[int, int, str, str]]:
    try:
        found = json.loads(_failures_path(path).read_text())
    except FileNotFoundError:
        return []
    return [tuple(row) for row in found["failed"]] if found["plan"] == plan else []


def _complete(
    dataset: MultiLeRobotDataset, settings: Settings, number: int, shards: list[Written | Exception]
) -> Prepared:
    """Write the manifest of a dataset of which all shards are there."""
    source = dataset.wanted_images(number)
    good = [shard for shard in shards if isinstance(shard, Written)]
    result = Prepared(
        repo_id=source.repo_id,
        revision=source.revision,
        episodes=len(source.episodes),
        images=sum(shard.entry["rows"] for shard in good),
        bytes=sum(shard.entry["bytes"] for shard in good),
        reused=sum(shard.reused for shard in good),
        failed=[failure for shard in good for failure in shard.failed],
        error=next((str(shard) or repr(shard) for shard in shards if isinstance(shard, Exception)), None),
    )
    expected = int(source.lengths.sum()) * len(source.cameras)
    if result.error is None and result.images != expected:
        result.error = f"{result.images} images were written, {expected} expected"
    if result.error is None:
        shards_written = [shard.entry for shard in good]
        manifest = {**describe(source), "shards": shards_written, "failed": result.failed}
        write_manifest(dataset_folder(settings.root, source), manifest)
    return result
