"""How long 1,500 community datasets take to open, the first time and again, and in how much memory.

    python benchmarks/open_1500.py            # 1,500 datasets of 20 episodes; about 3 GB of disk, 4 minutes
    python benchmarks/open_1500.py --smoke    # a few datasets, seconds

Generates datasets in the shape of the community's: half of them v2.1 with one parquet file per episode, half
v3.0; episodes of 60 to 300 frames at 10 to 60 fps; one to three cameras under the usual names; joints in old
degrees, new degrees and normalised units. All videos of a frame rate are one small H.264 file under many
names. Each opening runs in a process of its own, imports not counted. LeRobot's class opens a few of the v3.0
datasets one after another, since it cannot read v2.1, and its time is extrapolated to all.

The last line is JSON: open_first_s, open_cached_s, rss_mb (of a process that has opened all from the cache,
mapped files included), worker_extra_mb (private memory of a DataLoader worker), samples_per_s (one process,
at random over all datasets), lerobot_open_s_extrapolated, lerobot_samples_per_s (over those it opened).
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CAMERAS = (
    ("laptop", "phone"),
    ("wrist", "top"),
    ("front",),
    ("top", "side", "wrist"),
    ("camera1", "camera2"),
)
ROBOTS = ("so100", "so101", "so100_follower", "so101_follower", "unknown", None)
RATES = (10, 15, 25, 30, 30, 30, 50, 60)
HEIGHT, WIDTH = 240, 320
LONGEST = 300


def write_video(path: Path, fps: int) -> None:
    """A moving gradient, long enough for every episode."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=fps, options={"g": "2", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for frame in range(LONGEST):
            image = np.stack([rows + frame, columns + 2 * frame, rows + columns], axis=2) % 256
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())


def write_dataset(number: int, *, folder: Path, episodes: int) -> None:
    """One dataset; everything about it follows from its number, even ones are v2.1."""
    rng = np.random.default_rng(number)
    root = folder / f"{number:04d}"
    old = number % 2 == 0
    cameras = [f"observation.images.{name}" for name in CAMERAS[number // 2 % len(CAMERAS)]]
    fps = RATES[number // 2 % len(RATES)]
    lengths = rng.integers(60, LONGEST + 1, episodes)
    names = [f"main_{joint}" if number % 4 == 0 else f"{joint}.pos" for joint in JOINTS]
    tables = [
        episode_table(rng, number, episode, int(length), fps, int(lengths[:episode].sum()))
        for episode, length in enumerate(lengths)
    ]
    (root / "meta").mkdir(parents=True)
    info = {
        "codebase_version": "v2.1" if old else "v3.0",
        "robot_type": ROBOTS[number // 2 % len(ROBOTS)],
        "total_episodes": episodes,
        "total_frames": int(lengths.sum()),
        "total_tasks": 2,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "features": features(cameras, names),
    }
    video = folder / f"{fps}.mp4"
    writer = write_v21 if old else write_v30
    writer(root, info, cameras, lengths, tables, [f"Grasp item {number} and lift it", "test"], video)


def features(cameras: list[str], names: list[str]) -> dict:
    """What `meta/info.json` declares."""
    vector = {"dtype": "float32", "shape": [6], "names": names}
    image = {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channels"]}
    scalar = {"dtype": "int64", "shape": [1], "names": None}
    return {
        "action": vector,
        "observation.state": vector,
        **dict.fromkeys(cameras, image),
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), scalar),
    }


def _from_pose(motion: np.ndarray, pose: Mapping[int, float]) -> np.ndarray:
    """A motion that begins with some joints in a pose, rests there for three frames, and leaves it slowly."""
    share = np.clip(1 - (np.arange(len(motion)) - 2) / 40, 0, 1)
    motion = motion.copy()
    for joint, angle in pose.items():
        motion[:, joint] += share * (angle - motion[:, joint])
    return motion


def episode_table(
    rng: np.random.Generator, number: int, episode: int, length: int, fps: int, first: int
) -> pa.Table:
    """Smooth motions, in old degrees, normalised or in degrees, on the levels of an encoder."""
    kind = ("degrees_v1", "normalized", "degrees", "normalized")[number % 4]
    motion = np.cumsum(rng.normal(0, 2.0, (length, 6)), axis=0) % 200
    motion = np.abs(motion - 100) - 50  # -50 .. 50, without jumps
    motion[:, 5] += 50
    if kind == "normalized":
        motion *= 1.9
        motion = _from_pose(motion, {2: 100})
        motion = np.round((motion + 100) * 2400 / 200) * 200 / 2400 - 100
        motion[:, 5] = np.clip(motion[:, 5], 0, 100)
    else:
        motion = _from_pose(motion, {4: 135} | ({1: -100, 2: 95} if kind == "degrees" else {}))  # folded
        motion += np.array([0, 90, 90, 0, 0, 0]) * (kind == "degrees_v1")
        motion = np.round(motion / (360 / 4096)) * (360 / 4096)
    action = motion.astype(np.float32)
    state = np.concatenate([action[:1], action[:-1]])
    vectors = {
        key: pa.FixedSizeListArray.from_arrays(values.reshape(-1), 6).cast(pa.list_(pa.float32()))
        for key, values in (("action", action), ("observation.state", state))
    }
    return pa.table(
        {
            **vectors,
            "timestamp": pa.array(np.arange(length) / fps, pa.float32()),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, episode),
            "index": np.arange(first, first + length),
            "task_index": np.full(length, episode % 2),
        }
    )


def write_v21(root, info, cameras, lengths, tables, tasks, video) -> None:
    """A parquet file and a video per episode, metadata as JSON lines."""
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (root / "meta/info.json").write_text(json.dumps(info))
    lines = [json.dumps({"task_index": index, "task": task}) for index, task in enumerate(tasks)]
    (root / "meta/tasks.jsonl").write_text("\n".join(lines) + "\n")
    lines = [
        json.dumps({"episode_index": index, "tasks": [tasks[index % 2]], "length": int(length)})
        for index, length in enumerate(lengths)
    ]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    for folder in ("data/chunk-000", *(f"videos/chunk-000/{camera}" for camera in cameras)):
        (root / folder).mkdir(parents=True)
    for index, table in enumerate(tables):
        pq.write_table(table, root / f"data/chunk-000/episode_{index:06d}.parquet")
        for camera in cameras:
            os.link(video, root / f"videos/chunk-000/{camera}/episode_{index:06d}.mp4")


def write_v30(root, info, cameras, lengths, tables, tasks, video) -> None:
    """One parquet file and one video per camera for all episodes, metadata as parquet."""
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (root / "meta/info.json").write_text(json.dumps(info))
    index = pa.array(tasks)
    pq.write_table(
        pa.table({"task_index": np.arange(len(tasks)), "__index_level_0__": index}).replace_schema_metadata(
            {"pandas": json.dumps(PANDAS_INDEX)}
        ),
        root / "meta/tasks.parquet",
    )
    end = np.cumsum(lengths)
    zeros = np.zeros(len(lengths), np.int64)
    columns = {
        "episode_index": np.arange(len(lengths)),
        "tasks": pa.array([[tasks[number % 2]] for number in range(len(lengths))]),
        "length": lengths,
        "dataset_from_index": end - lengths,
        "dataset_to_index": end,
        **dict.fromkeys(("data/chunk_index", "data/file_index"), zeros),
        **dict.fromkeys(("meta/episodes/chunk_index", "meta/episodes/file_index"), zeros),
    }
    for camera in cameras:
        prefix = f"videos/{camera}"
        columns |= dict.fromkeys((f"{prefix}/chunk_index", f"{prefix}/file_index"), zeros)
        columns |= {f"{prefix}/from_timestamp": zeros * 0.0, f"{prefix}/to_timestamp": lengths / info["fps"]}
        (root / f"{prefix}/chunk-000").mkdir(parents=True)
        os.link(video, root / f"{prefix}/chunk-000/file-000.mp4")
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    pq.write_table(pa.table(columns), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet")


PANDAS_INDEX = {
    "index_columns": ["__index_level_0__"],
    "column_indexes": [],
    "columns": [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {
            "name": None,
            "field_name": "__index_level_0__",
            "pandas_type": "unicode",
            "numpy_type": "object",
        },
    ],
}


def generate(folder: Path, datasets: int, episodes: int) -> None:
    """Write the community in as many processes as there are cores."""
    folder.mkdir()
    for fps in sorted(set(RATES)):
        write_video(folder / f"{fps}.mp4", fps)
    write = partial(write_dataset, folder=folder, episodes=episodes)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(datasets), chunksize=8))


def open_depi(folder: Path, samples: int) -> dict[str, float]:
    """Open all datasets; time, memory of this process and of a worker, samples per second at random."""
    import torch
    from torch.utils.data import DataLoader

    from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset

    torch.set_num_threads(1)
    roots = sorted(path for path in folder.iterdir() if path.is_dir())
    begin = time.perf_counter()
    dataset = MultiLeRobotDataset([DatasetSource(f"user/{root.name}", root=root) for root in roots])
    seconds = time.perf_counter() - begin
    memory, peak = memory_mb("VmRSS"), memory_mb("VmHWM")
    order = random.Random(0).choices(range(len(dataset)), k=samples)
    begin = time.perf_counter()
    for index in order:
        dataset[index]
    rate = samples / (time.perf_counter() - begin)
    loader = iter(DataLoader(dataset, batch_size=8, sampler=order * 2, num_workers=1))
    for _ in range(samples // 8):
        next(loader)
    os.sync()  # freshly written pages of mapped files would count as private
    worker = private_mb(loader._workers[0].pid)
    return {
        "open_s": seconds,
        "rss_mb": memory,
        "peak_rss_mb": peak,
        "worker_extra_mb": worker,
        "samples_per_s": rate,
        "frames": len(dataset),
        "datasets": dataset.num_datasets,
    }


def open_lerobot(folder: Path, samples: int, count: int = 5) -> dict[str, float]:
    """Open a few v3.0 datasets with LeRobot's class, as its training does: with chunks of 50 actions."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    roots = sorted(path for path in folder.iterdir() if path.is_dir())[1::2][:count]
    begin = time.perf_counter()
    opened = []
    for root in roots:
        fps = json.loads((root / "meta/info.json").read_text())["fps"]
        chunk = {"action": [step / fps for step in range(50)]}
        opened.append(LeRobotDataset(f"user/{root.name}", root=root, delta_timestamps=chunk))
    seconds = time.perf_counter() - begin
    chooser = random.Random(0)
    begin = time.perf_counter()
    for _ in range(samples):
        dataset = chooser.choice(opened)
        dataset[chooser.randrange(len(dataset))]
    return {"open_s_each": seconds / count, "samples_per_s": samples / (time.perf_counter() - begin)}


def memory_mb(field: str) -> float:
    """A field of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1000


def private_mb(pid: int) -> float:
    """Memory that a process has written and shares with no other, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1000


def run_apart(what: str, folder: Path, samples: int) -> dict[str, float]:
    """Run `open_depi` or `open_lerobot` in a process of its own, with caches beside the data."""
    home = folder.with_name("home")
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "DEPI_CACHE": str(home / "depi"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, __file__, "--apart", what, "--folder", str(folder), "--samples", str(samples)]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def benchmark(folder: Path, datasets: int, episodes: int, samples: int) -> dict[str, float]:
    """Generate, open, open again, open with LeRobot; print a table."""
    begin = time.perf_counter()
    generate(folder, datasets, episodes)
    generated = time.perf_counter() - begin
    first, cached = run_apart("depi", folder, samples), run_apart("depi", folder, samples)
    lerobot = run_apart("lerobot", folder, samples)
    results = {
        "open_first_s": first["open_s"],
        "open_cached_s": cached["open_s"],
        "rss_mb": cached["rss_mb"],
        "rss_first_peak_mb": first["peak_rss_mb"],
        "worker_extra_mb": cached["worker_extra_mb"],
        "samples_per_s": cached["samples_per_s"],
        "lerobot_open_s_extrapolated": lerobot["open_s_each"] * datasets,
        "lerobot_samples_per_s": lerobot["samples_per_s"],
        "datasets": cached["datasets"],
        "frames": cached["frames"],
        "generate_s": generated,
    }
    table = Table("figure", "value", title=f"{datasets} datasets of {episodes} episodes")
    for key, value in results.items():
        table.add_row(key, f"{value:,.2f}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)
    return {key: round(value, 3) for key, value in results.items()}


def main() -> None:
    """Parse the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="8 datasets of 3 episodes")
    parser.add_argument("--datasets", type=int, default=1500)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--apart", choices=("depi", "lerobot"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.apart:
        function = open_depi if options.apart == "depi" else open_lerobot
        print(json.dumps(function(options.folder, options.samples)))
        return
    if options.smoke:
        options.datasets, options.episodes, options.samples = 8, 3, 24
    with tempfile.TemporaryDirectory(prefix="open-1500-", dir=options.folder) as folder:
        results = benchmark(Path(folder) / "data", options.datasets, options.episodes, options.samples)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
