"""How many training samples a second one core reads: LeRobot, Lance, DePi, bare decoding, prepared images.

    python benchmarks/data_loading.py                 # three encodings of 300 frames; about three minutes
    python benchmarks/data_loading.py --lance=FOLDER  # beside lerobot-lancedb, in an environment made there
    python benchmarks/data_loading.py --smoke         # one encoding, few frames

LeRobot's own writer makes v3.0 datasets of two cameras, 640 by 480, as AV1 with a keyframe every second
frame (its default), as H.264 with the same, and as H.264 with one every 250. The same frames, in one random
order, are read in turns by

- stock: `LeRobotDataset` as users have it (its thread pool, float32 images at the recorded size), chunk of 50
- lance: `LanceDBDataset` over the converted dataset, in batches of 32, uint8 images letterboxed, collated
- one by one: `MultiLeRobotDataset`, images letterboxed to 224
- direct: the same in batches of 32, collated, as a DataLoader reads them
- decode: nothing but the same frames through an open torchcodec decoder, and the bilinear scaling
- in order: the same, the frames of each batch in the order of the file
- prepared one by one, prepared: `MultiLeRobotDataset` over what `depi prepare` wrote

each in a new process of its own, held to one core, with every video open. (In a process that has written
video, the allocator has learned to keep large blocks, and LeRobot's class takes a third less than in the
worker of a fresh DataLoader.) Times are the best of the rounds, processor time and wall clock; the wall clock
says more only where nothing else runs on that core.

The last line is JSON, by processor time, the figures of the first encoding, AV1: samples_per_s (direct),
speedup_vs_lerobot (direct to stock), ratio_to_decode and ratio_to_decode_in_order (time of direct to that of
bare decoding), prepared_speedup (prepared to direct), with --lance also ratio_to_lance; the same for every
encoding under `encodings`, with milliseconds per sample, wall and cpu, and with `bound`, the speedup over
stock that nothing but torchcodec's decoding would have.
"""

import argparse
import atexit
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import make_environment
from one_core import BATCH, Cost, hold_to_one_core, measure
from rich.console import Console
from rich.table import Table
from torch.utils.data import default_collate

from depi.datasets.recording.cameras import letterbox
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.datasets.union.prepare import Settings, prepare
from depi.engine import make_runner

ENCODINGS = {
    "av1": {"vcodec": "libsvtav1", "g": 2},
    "h264_gop2": {"vcodec": "h264", "g": 2},
    "h264_gop250": {"vcodec": "h264", "g": 250},
}
KINDS = ("stock", "one by one", "direct", "decode", "in order", "prepared one by one", "prepared")
LANCE = (
    "lerobot-lancedb==0.3.1",
    "lancedb==0.40.0",
    "lerobot[dataset]==0.6.1",
    "torch==2.11.0",
    "torchcodec==0.11.1",
)
CAMERAS = ("observation.images.front", "observation.images.wrist")
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
HEIGHT, WIDTH, FPS, SIZE, CHUNK = 480, 640, 30, 224, 50


type Reader = Callable[[Path, Sequence[int]], Cost]
"""Reads frames of a dataset, by their numbers, once."""


def scene(seed: int) -> Callable[[int], np.ndarray]:
    """A noisy textured picture in which a patch moves: frame number -> uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)

    def texture(rows: int, columns: int, low: float, high: float) -> np.ndarray:
        coarse = torch.from_numpy(rng.uniform(low, high, (1, 3, rows, columns)))
        return (
            torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")[0]
            .permute(1, 2, 0)
            .numpy()
        )

    picture = texture(24, 32, 30, 220) + texture(120, 160, -20, 20)
    patch = picture[:120, :120][::-1]
    noise = rng.normal(0, 3, (7, HEIGHT, WIDTH, 1))

    def image(number: int) -> np.ndarray:
        whole = picture + noise[number % 7]
        top = int((HEIGHT - 120) * (0.5 + 0.45 * np.cos(number / 31)))
        left = int((WIDTH - 120) * (0.5 + 0.45 * np.sin(number / 25)))
        whole[top : top + 120, left : left + 120] = patch
        return whole.clip(0, 255).astype(np.uint8)

    return image


def write_dataset(root: Path, encoding: dict[str, Any], frames: int) -> None:
    """One episode of `frames` frames."""
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = [f"{joint}.pos" for joint in JOINTS]
    vector = {"dtype": "float32", "shape": (6,), "names": names}
    video = {"dtype": "video", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        f"benchmark/{root.name}",
        fps=FPS,
        root=root,
        robot_type="so101_follower",
        features={"action": vector, "observation.state": vector, **dict.fromkeys(CAMERAS, video)},
        streaming_encoding=True,
        rgb_encoder=RGBEncoderConfig(**encoding),
    )
    scenes = {camera: scene(number) for number, camera in enumerate(CAMERAS)}
    for number in range(frames):
        joints = (40 * np.sin(number / 25 + np.arange(6))).astype(np.float32)
        joints[1], joints[4:] = joints[1] / 3 - 50, (130, abs(joints[5]))
        row = {"action": joints, "observation.state": joints, "task": "pick the cube"}
        dataset.add_frame(row | {camera: image(number) for camera, image in scenes.items()})
    dataset.save_episode()
    dataset.finalize()


def open_reader(kind: str, root: Path) -> Callable[[Sequence[int]], object]:
    """What reads the samples of a batch, by their frame numbers."""
    name = f"benchmark/{root.name}"
    if kind == "stock":
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        steps = {"action": [step / FPS for step in range(CHUNK)]}
        return one_by_one(LeRobotDataset(name, root=root, delta_timestamps=steps).__getitem__)
    if kind in ("decode", "in order"):
        return (one_by_one if kind == "decode" else in_order)(*open_decoders(root))
    options: dict[str, Any] = {"chunk_size": CHUNK, "image_size": SIZE, "max_cameras": 2}
    dataset = MultiLeRobotDataset([DatasetSource(name, root=root)], **options)
    if kind.startswith("prepared"):
        folder = root.parent / f"{root.name}-prepared"
        prepare(dataset, Settings(folder, SIZE), run=make_runner("local", workers=1))
        dataset = MultiLeRobotDataset([DatasetSource(name, root=root)], prepared=folder, **options)
    if kind.endswith("one by one"):
        return one_by_one(dataset.__getitem__)
    return lambda numbers: default_collate(dataset.__getitems__(numbers))


def open_decoders(root: Path) -> list[Callable[[int], object]]:
    """For each camera, what decodes and scales a frame, and nothing else."""
    from torchcodec.decoders import VideoDecoder

    files = [next(root.glob(f"videos/{camera}/**/*.mp4")) for camera in CAMERAS]
    decoders = [VideoDecoder(file, seek_mode="approximate", num_ffmpeg_threads=1) for file in files]

    def read(decoder: VideoDecoder, number: int) -> torch.Tensor:
        return letterbox(decoder.get_frame_at(number).data, SIZE)

    return [partial(read, decoder) for decoder in decoders]


def one_by_one(*reads: Callable[[int], object]) -> Callable[[Sequence[int]], None]:
    """Read sample after sample, and keep none."""

    def read_batch(numbers: Sequence[int]) -> None:
        for number in numbers:
            for read in reads:
                read(number)

    return read_batch


def in_order(*reads: Callable[[int], object]) -> Callable[[Sequence[int]], None]:
    """Read camera after camera, each from front to back."""

    def read_batch(numbers: Sequence[int]) -> None:
        for read in reads:
            for number in sorted(numbers):
                read(number)

    return read_batch


def serve(kind: str, connection: Connection) -> None:
    """A process of one reader: for every dataset and order of frames that is sent, a round of measuring."""
    hold_to_one_core()
    readers: dict[Path, Callable[[Sequence[int]], object]] = {}
    while True:
        root, order = connection.recv()
        if root not in readers:
            readers = {root: open_reader(kind, root)}
            measure(readers[root], order[:BATCH])
        connection.send(measure(readers[root], order))


def start_reader(kind: str) -> Reader:
    """A process that reads in one way."""
    # Forked now, while nothing but the imports has run, it is as good as new, and starts sooner.
    linux = sys.platform == "linux"
    processes = multiprocessing.get_context("fork") if linux else multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    processes.Process(target=serve, args=(kind, theirs), daemon=True).start()
    theirs.close()

    def ask(root: Path, order: Sequence[int]) -> Cost:
        ours.send((root, order))
        return ours.recv()

    return ask


def start_lance(folder: Path) -> Reader:
    """A process of another interpreter, in an environment that is made in `folder` unless it is there."""
    if complaint := make_environment(folder, LANCE):
        sys.exit(f"the environment of {LANCE[0]} cannot be made: {complaint}")
    here = Path(__file__).parent
    process = subprocess.Popen(
        [folder / "bin/python", here / "lance_reader.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(here.parent), "HF_HUB_OFFLINE": "1"},
        text=True,
    )

    def ask(root: Path, order: Sequence[int]) -> Cost:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([str(root), list(order), CHUNK, SIZE]) + "\n")
        process.stdin.flush()
        return Cost(*json.loads(process.stdout.readline()))

    atexit.register(process.kill)
    return ask


def compare(readers: dict[str, Reader], root: Path, order: Sequence[int], rounds: int) -> dict[str, Any]:
    """All readers in turns over one dataset; see the module."""
    costs: dict[str, list[Cost]] = {kind: [] for kind in readers}
    for _ in range(rounds):
        for kind, ask in readers.items():
            costs[kind].append(ask(root, order))
    best = {
        name: Cost(min(cost.wall for cost in each), min(cost.cpu for cost in each))
        for name, each in costs.items()
    }
    cpu = {name: cost.cpu for name, cost in best.items()}
    figures = {
        "samples_per_s": round(1e3 / cpu["direct"], 1),
        "speedup_vs_lerobot": round(cpu["stock"] / cpu["direct"], 2),
        "ratio_to_decode": round(cpu["direct"] / cpu["decode"], 3),
        "ratio_to_decode_in_order": round(cpu["direct"] / cpu["in order"], 3),
        "prepared_speedup": round(cpu["direct"] / cpu["prepared"], 2),
        "bound": round(cpu["stock"] / cpu["decode"], 2),
    }
    if "lance" in cpu:
        figures["ratio_to_lance"] = round(cpu["direct"] / cpu["lance"], 3)
    times = {name: {"wall": round(cost.wall, 2), "cpu": round(cost.cpu, 2)} for name, cost in best.items()}
    return {**figures, "ms": times}


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print a table: milliseconds per sample and the ratios."""
    table = Table(title="milliseconds per sample of two cameras, one core: processor time (wall clock)")
    table.add_column("")
    for name, result in results.items():
        table.add_column(f"{name}, {result['kb_per_frame']} kB/frame", justify="right")
    first, *_ = results.values()
    for kind in first["ms"]:
        costs = [result["ms"][kind] for result in results.values()]
        table.add_row(kind, *(f"{cost['cpu']:.2f} ({cost['wall']:.2f})" for cost in costs))
    table.add_section()
    for key in (key for key in first if key not in ("ms", "kb_per_frame")):
        table.add_row(key, *(str(result[key]) for result in results.values()))
    Console(width=140).print(table)


def main() -> None:
    """Make the files, measure, print."""
    parser = argparse.ArgumentParser(description="Samples per second and core.")
    parser.add_argument("--smoke", action="store_true", help="one encoding, few frames")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--apart", type=int, default=1, help="take every so many-th frame only")
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS))
    parser.add_argument("--lance", type=Path, help="folder of an environment with lerobot-lancedb")
    options = parser.parse_args()
    if options.smoke:
        options.frames, options.samples, options.rounds = 24, 6, 1
        options.encodings = ["av1"]
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="data-loading-") as scratch:
        os.environ["DEPI_CACHE"] = f"{scratch}/cache"
        readers = {kind: start_reader(kind) for kind in KINDS}
        if options.lance is not None:
            readers["lance"] = start_lance(options.lance.absolute())
        results = {}
        # LeRobot's class raises on the last frame of an H.264 file with B-frames.
        frames = np.arange(0, options.frames - 1, options.apart)
        order = np.random.default_rng(1).permutation(frames)[: options.samples].tolist()
        for name in options.encodings:
            root = Path(scratch, name)
            write_dataset(root, ENCODINGS[name], options.frames)
            results[name] = compare(readers, root, order, options.rounds)
            size = sum(file.stat().st_size for file in root.rglob("*.mp4"))
            results[name]["kb_per_frame"] = round(size / len(CAMERAS) / options.frames / 1e3, 1)
    show(results)
    figures = {
        key: value
        for key, value in results[options.encodings[0]].items()
        if key not in ("ms", "kb_per_frame", "bound")
    }
    print(json.dumps({**figures, "encodings": results}))


if __name__ == "__main__":
    main()
