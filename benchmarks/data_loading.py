"""How many training samples a second one core reads: LeRobot's class, DePi's, bare decoding, prepared images.

    python benchmarks/data_loading.py            # three encodings of 300 frames; about two minutes
    python benchmarks/data_loading.py --smoke    # one encoding, few frames

LeRobot's own writer makes v3.0 datasets of two cameras, 640 by 480, as AV1 with a keyframe every second
frame (its default), as H.264 with the same, and as H.264 with one every 250. The same frames, in one random
order, are read in turns by

- stock: `LeRobotDataset` as users have it (its thread pool, float32 images at the recorded size), chunk of 50
- direct: `MultiLeRobotDataset`, images letterboxed to 224
- decode: nothing but the same frames through an open torchcodec decoder, and the bilinear scaling
- prepared: `MultiLeRobotDataset` over what `depi prepare` wrote

each in a new process of its own, held to one core, with every video open. (In a process that has written
video, the allocator has learned to keep large blocks, and LeRobot's class takes a third less than in the
worker of a fresh DataLoader.) Times are the best of the rounds, processor time and wall clock; the wall clock
says more only where nothing else runs on that core.

The last line is JSON, by processor time, the first three of the AV1 files: samples_per_s (direct),
speedup_vs_lerobot (direct to stock), ratio_to_decode (time of direct to decode), prepared_speedup (prepared
to direct); the same for every encoding under `encodings`, with milliseconds per sample, wall and cpu, and
with `bound`, the speedup over stock that nothing but torchcodec's decoding would have.
"""

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from depi.datasets.recording.cameras import letterbox
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.datasets.union.prepare import Settings, prepare
from depi.engine import make_runner

ENCODINGS = {
    "av1": {"vcodec": "libsvtav1", "g": 2},
    "h264_gop2": {"vcodec": "h264", "g": 2},
    "h264_gop250": {"vcodec": "h264", "g": 250},
}
KINDS = ("stock", "direct", "decode", "prepared")
CAMERAS = ("observation.images.front", "observation.images.wrist")
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
HEIGHT, WIDTH, FPS, SIZE, CHUNK = 480, 640, 30, 224, 50


@dataclass
class Cost:
    """Milliseconds per sample."""

    wall: float
    cpu: float


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


def open_reader(kind: str, root: Path) -> Callable[[int], object]:
    """What reads one sample, by its frame number."""
    name = f"benchmark/{root.name}"
    if kind == "stock":
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        steps = {"action": [step / FPS for step in range(CHUNK)]}
        return LeRobotDataset(name, root=root, delta_timestamps=steps).__getitem__
    if kind == "decode":
        from torchcodec.decoders import VideoDecoder

        files = [next(root.glob(f"videos/{camera}/**/*.mp4")) for camera in CAMERAS]
        decoders = [VideoDecoder(file, seek_mode="approximate", num_ffmpeg_threads=1) for file in files]
        return lambda number: [letterbox(decoder.get_frame_at(number).data, SIZE) for decoder in decoders]
    options: dict[str, Any] = {"chunk_size": CHUNK, "image_size": SIZE, "max_cameras": 2}
    dataset = MultiLeRobotDataset([DatasetSource(name, root=root)], **options)
    if kind == "prepared":
        folder = root.parent / f"{root.name}-prepared"
        prepare(dataset, Settings(folder, SIZE), run=make_runner("local", workers=1))
        dataset = MultiLeRobotDataset([DatasetSource(name, root=root)], prepared=folder, **options)
    return dataset.__getitem__


def serve(kind: str, connection: Connection) -> None:
    """A process of one reader: for every dataset and order of frames that is sent, a round of measuring."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    readers: dict[Path, Callable[[int], object]] = {}
    while (message := connection.recv()) is not None:
        root, order = message
        if root not in readers:
            readers = {root: open_reader(kind, root)}
            measure(readers[root], order[:3])
        connection.send(measure(readers[root], order))


def measure(read: Callable[[int], object], order: Sequence[int]) -> Cost:
    """Milliseconds per sample over one round."""
    wall, cpu = time.perf_counter(), time.process_time()
    for number in order:
        read(number)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(wall / len(order) * 1e3, cpu / len(order) * 1e3)


def start_readers() -> dict[str, Connection]:
    """A process for each kind of reader."""
    # Forked now, while nothing but the imports has run, they are as good as new, and start sooner.
    linux = sys.platform == "linux"
    processes = multiprocessing.get_context("fork") if linux else multiprocessing.get_context("spawn")
    connections = {}
    for kind in KINDS:
        connections[kind], theirs = processes.Pipe()
        processes.Process(target=serve, args=(kind, theirs), daemon=True).start()
        theirs.close()
    return connections


def compare(readers: dict[str, Connection], root: Path, order: Sequence[int], rounds: int) -> dict[str, Any]:
    """All readers in turns over one dataset; see the module."""
    costs: dict[str, list[Cost]] = {kind: [] for kind in readers}
    for _ in range(rounds):
        for kind, connection in readers.items():
            connection.send((root, order))
            costs[kind].append(connection.recv())
    best = {
        name: Cost(min(cost.wall for cost in each), min(cost.cpu for cost in each))
        for name, each in costs.items()
    }
    stock, direct, decode, ready = (best[kind].cpu for kind in KINDS)
    return {
        "samples_per_s": round(1e3 / direct, 1),
        "speedup_vs_lerobot": round(stock / direct, 2),
        "ratio_to_decode": round(direct / decode, 2),
        "prepared_speedup": round(direct / ready, 2),
        "bound": round(stock / decode, 2),
        "ms": {name: {"wall": round(cost.wall, 2), "cpu": round(cost.cpu, 2)} for name, cost in best.items()},
    }


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print a table: milliseconds per sample and the ratios."""
    table = Table(title="milliseconds per sample of two cameras, one core: processor time (wall clock)")
    for column in (
        "encoding",
        "kB/frame",
        "stock",
        "direct",
        "decode",
        "prepared",
        "x stock",
        "bound",
        "/ decode",
        "x direct",
    ):
        table.add_column(column, justify="left" if column == "encoding" else "right")
    for name, result in results.items():
        times = [f"{cost['cpu']:.2f} ({cost['wall']:.2f})" for cost in result["ms"].values()]
        keys = ("speedup_vs_lerobot", "bound", "ratio_to_decode", "prepared_speedup")
        table.add_row(name, str(result["kb_per_frame"]), *times, *(f"{result[key]:.2f}" for key in keys))
    Console(width=140).print(table)


def main() -> None:
    """Make the files, measure, print."""
    parser = argparse.ArgumentParser(description="Samples per second and core.")
    parser.add_argument("--smoke", action="store_true", help="one encoding, few frames")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.smoke:
        options.frames, options.samples, options.rounds = 24, 6, 1
        del ENCODINGS["h264_gop2"], ENCODINGS["h264_gop250"]
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="data-loading-") as scratch:
        os.environ["DEPI_CACHE"] = f"{scratch}/cache"
        readers = start_readers()
        results = {}
        # LeRobot's class raises on the last frame of an H.264 file with B-frames.
        order = np.random.default_rng(1).permutation(options.frames - 1)[: options.samples].tolist()
        for name, encoding in ENCODINGS.items():
            root = Path(scratch, name)
            write_dataset(root, encoding, options.frames)
            results[name] = compare(readers, root, order, options.rounds)
            size = sum(file.stat().st_size for file in root.rglob("*.mp4"))
            results[name]["kb_per_frame"] = round(size / len(CAMERAS) / options.frames / 1e3, 1)
        for connection in readers.values():
            connection.send(None)
    show(results)
    keys = ("samples_per_s", "speedup_vs_lerobot", "ratio_to_decode", "prepared_speedup")
    print(json.dumps({key: results["av1"][key] for key in keys} | {"encodings": results}))


if __name__ == "__main__":
    main()
