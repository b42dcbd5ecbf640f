"""The value of every frame of a training set, computed once, in parts that several processes share.

A part is a range of frames of one dataset. Its file, written atomically, holds a digest of everything that
its values depend on; after an interruption only the missing parts are computed. The network always gets GROUP
frames at a time, the same ones for every batch size, number of processes and size of the parts, and each
process computes with one thread where there is no GPU. So the values are equal to the bit.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import pickle
import zlib
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import default_collate

from depi.datasets.union.shards import describe, made_by
from depi.engine import Runner
from depi.errors import UserError
from depi.files import atomic_write
from depi.policies import preprocess
from depi.recap.frames import FrameReader, LeftOut

FORMAT = 1
GROUP = 16
"""Frames that the network computes at a time."""
PARTS = "values"
"""The folder of the parts, within that of the sidecars."""

_MARK = b"depi"


@dataclass(frozen=True)
class Network:
    """A value network and its settings.

    folder: of its checkpoint. sha256: see `checkpoint_digest`.
    device: None for the GPUs, or the CPU where there are none.
    batch_size: frames that are loaded together, a multiple of GROUP.
    """

    folder: Path
    sha256: str
    device: str | None = None
    batch_size: int = 64


@dataclass(frozen=True)
class Part:
    """One part: frames first..last - 1 of the training set, all of one dataset."""

    reader: bytes
    network: Network
    path: Path
    plan: str
    first: int
    last: int


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's JSON and safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors") and path.name != "train_config.json":
            digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def parts_of(reader: FrameReader, network: Network, folder: Path, part_frames: int) -> list[list[Part]]:
    """The parts of each dataset, in order.

    Args:
        reader: of the training set.
        network: whose values are wanted.
        folder: of the sidecars.
        part_frames: frames of a part, a multiple of GROUP.
    """
    data, blob = reader.dataset, pickle.dumps(reader)
    parts = []
    for number in range(data.num_datasets):
        begin, end = data.episode_start[data.dataset_start[number : number + 2]].tolist()
        plan = _plan(reader, network, number)
        of_dataset = []
        for first in range(begin, end, part_frames):
            last = min(first + part_frames, end)
            name = f"{first - begin:08d}-{last - begin:08d}.parquet"
            of_dataset.append(Part(blob, network, folder / PARTS / plan / name, plan, first, last))
        parts.append(of_dataset)
    return parts


def _plan(reader: FrameReader, network: Network, number: int) -> str:
    """A digest of everything that the values of a dataset depend on."""
    data = reader.dataset
    episodes = data.dataset_start[number : number + 2].tolist()
    frames = slice(*data.episode_start[episodes].tolist())
    texts = [data.tasks[task] for task in np.unique(data.task[frames])]
    notes = reader.annotations
    if notes is not None:
        texts += [repr((notes.task(episode), notes.views(episode))) for episode in range(*episodes)]
    facts = {
        "made_by": [FORMAT, GROUP, made_by()],
        "network": network.sha256,
        "dataset": describe(data.wanted_images(number)),
        "images": [data.image_size, data.max_cameras, reader.cameras, reader.annotated_tasks],
        "prepared": data.prepared is not None,
        "state": zlib.crc32(np.ascontiguousarray(data.state[frames])),
        "tasks": [zlib.crc32(np.ascontiguousarray(data.task[frames])), texts],
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()


def plans(reader: FrameReader, network: Network) -> str:
    """The name of a folder for these datasets' values by this network."""
    every = [_plan(reader, network, number) for number in range(reader.dataset.num_datasets)]
    return f"{network.sha256[:8]}-{hashlib.blake2b(repr(every).encode(), digest_size=4).hexdigest()}"


def compute_values(
    parts: list[list[Part]], *, run: Runner, progress: Callable[[int, int], None] | None = None
) -> int:
    """Compute the missing parts, and return how many existed.

    Args:
        parts: see `parts_of`.
        run: what runs the work; see `depi.engine.make_runner`.
        progress: called with (frames done, frames in all).

    Raises:
        UserError: the network gives a value that is not finite, or a process died; finished parts are kept.
    """
    every = [part for of_dataset in parts for part in of_dataset]
    missing = [part for part in every if not part.path.exists()]
    total = sum(part.last - part.first for part in every)
    done = total - sum(part.last - part.first for part in missing)
    for part, outcome in run(compute_part, missing):
        if isinstance(outcome, BrokenExecutor):
            raise UserError(
                "a process that computed values was killed, maybe for lack of memory. Run the same command "
                "again, with fewer --workers; what was computed is kept"
            )
        if isinstance(outcome, Exception):
            raise outcome
        done += part.last - part.first
        if progress is not None:
            progress(done, total)
    return len(every) - len(missing)


def compute_part(part: Part) -> None:
    """Compute and write one part.

    Raises:
        UserError: the network gives a value that is not finite, or cannot be loaded.
    """
    reader = _load_reader(part.reader)
    device = device_for(part.network.device)
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        predict = load_network(part.network.folder, device)
        values, left_out = _values(reader, part, predict)
    finally:
        torch.set_num_threads(threads)
    column = pa.array(values, pa.float32(), mask=np.isnan(values))
    mark = json.dumps({"plan": part.plan, "left_out": [asdict(one) for one in left_out]})
    table = pa.table({"value": column}).replace_schema_metadata({_MARK: mark})
    with atomic_write(part.path) as temporary:
        pq.write_table(table, temporary)


def read_part(part: Part) -> tuple[np.ndarray, list[LeftOut]]:
    """Values float32 [last - first], NaN where a frame is left out, and the frames left out."""
    table = pq.read_table(part.path, partitioning=None)
    left_out = json.loads(table.schema.metadata[_MARK])["left_out"]
    return table["value"].to_numpy().astype(np.float32), [LeftOut(**one) for one in left_out]


def _values(
    reader: FrameReader, part: Part, predict: Callable[[list[dict[str, Any]]], np.ndarray]
) -> tuple[np.ndarray, list[LeftOut]]:
    values = np.full(part.last - part.first, np.nan, np.float32)
    left_out: list[LeftOut] = []
    frames = reader.read(part.first, part.last)
    done = 0
    while batch := list(islice(frames, part.network.batch_size)):
        groups = [batch[start : start + GROUP] for start in range(0, len(batch), GROUP)]
        # A group without any readable frame is not computed.
        whole = [fill_group(group) for group in groups if any(isinstance(one, dict) for one in group)]
        predicted = predict([sample for group in whole for sample in group]) if whole else np.zeros(0)
        rows = iter(predicted.reshape(-1, GROUP))
        for group in groups:
            readable = np.array([isinstance(one, dict) for one in group])
            if readable.any():
                values[done : done + len(group)][readable] = next(rows)[: len(group)][readable]
            left_out += [one for one in group if isinstance(one, LeftOut)]
            done += len(group)
    assert done == len(values)
    if np.isnan(values).sum() != len(left_out) or np.isinf(values).any():
        raise UserError(f"the value network in {part.network.folder} gives no finite numbers: train it again")
    return values, left_out


def fill_group(group: list[dict[str, Any] | LeftOut]) -> list[dict[str, Any]]:
    """GROUP samples: frames left out, and places behind the last frame, are filled with another frame."""
    other = next(one for one in group if isinstance(one, dict))
    filled = [one if isinstance(one, dict) else other for one in group]
    return filled + [other] * (GROUP - len(filled))


@functools.lru_cache(1)
def _load_reader(blob: bytes) -> FrameReader:
    reader: FrameReader = pickle.loads(blob)  # made by `parts_of`, in this run
    return reader


def device_for(wanted: str | None) -> str:
    """The device of this process, a GPU where there are any: the processes take them in turn."""
    if wanted is not None and wanted != "cuda":
        return wanted
    if not torch.cuda.is_available():
        return "cpu"
    name = multiprocessing.current_process().name.rpartition("-")[2]
    return f"cuda:{(int(name) - 1) % torch.cuda.device_count() if name.isdecimal() else 0}"


@functools.lru_cache(1)
def load_network(folder: Path, device: str) -> Callable[[list[dict[str, Any]]], np.ndarray]:
    """Load the network as a function from samples, a multiple of GROUP, to values float32."""
    from depi.policies import load_processors
    from depi.policies.factory import load_value

    policy = load_value(folder, device=device)
    pre, _ = load_processors(folder, device=device)

    @torch.inference_mode()
    def predict(samples: list[dict[str, Any]]) -> np.ndarray:
        batch = preprocess(default_collate(samples), pre)
        tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
        groups = [
            {key: value[start : start + GROUP] for key, value in tensors.items()}
            for start in range(0, len(samples), GROUP)
        ]
        return np.concatenate([policy.predict_value(group).float().cpu().numpy() for group in groups])

    return predict


def default_workers(device: str | None) -> int:
    """How many processes: two for each GPU, where one decodes while the other computes, or one per core."""
    if device != "cpu" and torch.cuda.is_available():
        return 2 * torch.cuda.device_count()
    return os.cpu_count() or 1


def dataset_values(parts: list[Part]) -> tuple[np.ndarray, list[LeftOut]]:
    """The values of one dataset, float32, NaN where a frame is left out, and the frames left out."""
    values, left_out = zip(*map(read_part, parts), strict=True)
    return np.concatenate(values), [one for of_part in left_out for one in of_part]
