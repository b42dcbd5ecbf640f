"""How long `depi collect-ids` takes over thousands of repositories on a slow and faulty Hub.

    python benchmarks/collect.py            # 5,000 repositories; about 500 MB of disk, 6 minutes
    python benchmarks/collect.py --smoke    # 40 repositories, seconds

Builds small repositories, half v2.1 and half v3.0, every seventh unusable for one reason or another, on an
embedded Hub in a process of its own, which answers each request after `--latency_ms` and spoils a share of
`--faults` of the answers: status 429, status 500, or cut off in the middle. Then the command runs three
times, each in a process of its own: first, unchanged, and after a commit to 1% of the repositories. Every
verdict is compared with the one that the repository was built for.

The floor is what no client with so many connections can be faster than: requests x latency / connections.

The last line is JSON: repos, first_s, unchanged_s, changed_s, changed_requests, floor_s, rss_mb (peak of the
first run), hub_cpu_s and client_cpu_s (of the first run), requests.
"""

import argparse
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
FRAMES = 60
# Every seventh repository has one of these, in turns; the rule that must refuse it.
DEFECTS = (
    "has_info",
    "not_evaluation",
    "info_readable",
    "so100_arm",
    "files_present",
    "tables_readable",
    "not_frozen",
)


def defect_of(number: int) -> str | None:
    """The rule that must refuse a repository."""
    return DEFECTS[number // 7 % len(DEFECTS)] if number % 7 == 6 else None


def repo_id_of(number: int) -> str:
    """The name of a repository."""
    kind = "eval_so101" if defect_of(number) == "not_evaluation" else "so101"
    return f"user{number % 97:02d}/{kind}_{number:05d}"


def episode(number: int, salt: int, index: int) -> dict[str, np.ndarray]:
    """One episode's columns: a smooth motion that no other repository has."""
    rng = np.random.default_rng([number, salt, index])
    phase, size = rng.uniform(0, 6, 6), rng.uniform(20, 60, 6)
    action = (size * np.sin(np.linspace(0, 4, FRAMES)[:, None] + phase)).astype(np.float32)
    action[:, 5] = 50 + action[:, 5] / 2
    action[:, 2] = np.clip(130 * np.sin(np.linspace(0.3, 2.8, FRAMES)), None, 100)  # rests at its stop
    if defect_of(number) == "tables_readable":
        action[7, 1] = np.nan
    if defect_of(number) == "not_frozen":
        action[:] = 3.0
    return {
        "action": action,
        "observation.state": action + np.float32(0.2) * (np.abs(action) < 99),
        "timestamp": (np.arange(FRAMES) / 30).astype(np.float32),
        "frame_index": np.arange(FRAMES),
        "episode_index": np.full(FRAMES, index),
        "index": index * FRAMES + np.arange(FRAMES),
        "task_index": np.zeros(FRAMES, np.int64),
    }


def parquet(columns: dict[str, Any]) -> bytes:
    """A small table."""
    buffer = io.BytesIO()
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 6)
        if isinstance(values, np.ndarray) and values.ndim == 2
        else pa.array(values)
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), buffer, compression="none")
    return buffer.getvalue()


def dataset_files(number: int, salt: int = 0) -> dict[str, bytes]:
    """The files of one repository; everything about them follows from the number and the salt."""
    defect, old = defect_of(number), number % 2 == 0
    index = {"dtype": "int64", "shape": [1], "names": None}
    vector = {"dtype": "float32", "shape": [6], "names": [f"{joint}.pos" for joint in JOINTS]}
    key = "observation.images.front"
    info = {
        "codebase_version": "v9.9" if defect == "info_readable" else "v2.1" if old else "v3.0",
        "robot_type": "koch" if defect == "so100_arm" else "so101_follower",
        "fps": 30,
        "total_episodes": 1,
        "total_frames": FRAMES,
        "features": {
            "action": vector,
            "observation.state": vector,
            key: {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), index),
        },
    }
    card = json.dumps({"license": "apache-2.0", "tags": ["LeRobot", "so101"]})
    files = {"README.md": f"---\n{card}\n---\n".encode(), "meta/info.json": json.dumps(info).encode()}
    table, task = parquet(episode(number, salt, 0)), f"Put cube {number} into the box."
    if old:
        line = {"episode_index": 0, "tasks": [task], "length": FRAMES}
        files["meta/episodes.jsonl"] = json.dumps(line).encode()
        files["meta/tasks.jsonl"] = json.dumps({"task_index": 0, "task": task}).encode()
        files["data/chunk-000/episode_000000.parquet"] = table
        files[f"videos/chunk-000/{key}/episode_000000.mp4"] = b"no video is read here"
    else:
        row: dict[str, Any] = {"episode_index": [0], "tasks": [[task]], "length": [FRAMES]}
        row |= {"data/chunk_index": [0], "data/file_index": [0]}
        row |= {f"videos/{key}/{name}": [0] for name in ("chunk_index", "file_index")}
        row[f"videos/{key}/from_timestamp"] = [0.0]
        files["meta/episodes/chunk-000/file-000.parquet"] = parquet(row)
        files["meta/tasks.parquet"] = parquet({"task_index": [0], "task": [task]})
        files["data/chunk-000/file-000.parquet"] = table
        files[f"videos/{key}/chunk-000/file-000.mp4"] = b"no video is read here"
    if defect == "has_info":
        del files["meta/info.json"]
    if defect == "files_present":
        del files[next(name for name in files if name.endswith(".mp4"))]
    return files


class CutOff(Response):
    """An answer that promises more than it sends, and closes the connection."""

    def __init__(self) -> None:
        super().__init__(b'{"cut', headers={"Content-Length": "4000"})


class Weather:
    """Spoils a share of the answers and counts the requests."""

    def __init__(self, faults: float):
        self.faults, self.requests = faults, 0
        self._random = random.Random(0)

    def __call__(self, request: Request) -> Response | None:
        """One request's fate."""
        self.requests += 1
        if self._random.random() >= self.faults:
            return None
        kind = self._random.randrange(3)
        if kind == 0:
            return JSONResponse({"error": "too many"}, status_code=429, headers={"Retry-After": "1"})
        return JSONResponse({"error": "on purpose"}, status_code=500) if kind == 1 else CutOff()


def build(root: Path, repos: int) -> None:
    """Write the repositories straight into the Hub's folder, which nobody serves yet."""
    from depi.hub.server.folder import DEFAULT_BRANCH, Store

    os.fsync = lambda fd: None  # what is built here need not survive a power cut
    store = Store(root)
    for number in range(repos):
        repo = store.create("dataset", repo_id_of(number), "bench")
        commit(store, repo, DEFAULT_BRANCH, dataset_files(number))
    store.close()


def commit(store: Any, repo: Any, branch: str, files: dict[str, bytes]) -> None:
    """Commit files to the store itself."""
    stored = {name: store.blobs.put_bytes(content) for name, content in files.items()}
    repo.add_commit(branch, lambda old: old.update(stored), title="Add data", author="bench")


def serve_until_told(root: Path, latency: float, faults: float) -> None:
    """Serve in this process; each line on stdin asks for what the Hub has done so far, as JSON on stdout."""
    import logging

    from depi.hub.server.serve import serve

    logging.getLogger("uvicorn.error").disabled = True  # it complains of the answers cut off on purpose
    weather = Weather(faults)
    with serve(root, faults=weather, latency=latency) as hub:
        print(json.dumps(hub.environment()), flush=True)
        for _ in sys.stdin:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            done = {"requests": weather.requests, "cpu_s": usage.ru_utime + usage.ru_stime}
            print(json.dumps(done), flush=True)


def ask(hub: "subprocess.Popen[str]") -> dict[str, Any]:
    """What the Hub has done so far: requests, cpu_s."""
    assert hub.stdin is not None
    assert hub.stdout is not None
    hub.stdin.write("how far\n")
    hub.stdin.flush()
    return json.loads(hub.stdout.readline())


def collect(hub: "subprocess.Popen[str]", environment: dict[str, str], out: Path, connections: int) -> dict:
    """Run the command once in a process of its own; its summary, and what it cost both sides."""
    before, started = ask(hub), time.monotonic()
    command = [sys.executable, "-m", "depi.cli", "collect-ids", "--json", f"--data_ids={out}"]
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [*command, f"--workers={connections}"], env=environment, stdout=answer, stderr=complaints
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        answer.seek(0)
        complaints.seek(0)
        if process.returncode not in (0, 3):
            raise SystemExit(f"depi collect-ids failed:\n{complaints.read().decode()[-4000:]}")
        summary = json.loads(answer.read().splitlines()[-1])
        print(f"{out.name}: {seconds:.1f} s, {summary['reused']} reused", file=sys.stderr)
        if summary["failures"]:
            raise SystemExit(f"not all could be inspected: {summary['failures']}")
    after = ask(hub)
    return {
        **summary,
        "wall_s": seconds,
        "rss_mb": usage.ru_maxrss / 1024,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "hub_cpu_s": after["cpu_s"] - before["cpu_s"],
        "requests": after["requests"] - before["requests"],
    }


def check(out: Path, repos: int) -> None:
    """Compare every verdict with the one that the repository was built for."""
    bad = json.loads((out / "bad_dataset_ids.json").read_text())
    valid = set(json.loads((out / "dataset_list_valid.json").read_text()))
    for number in range(repos):
        repo_id, defect = repo_id_of(number), defect_of(number)
        rules = [reason.partition(":")[0] for reason in bad.get(repo_id, [])]
        right = repo_id in valid if defect is None else defect in rules and repo_id not in valid
        if not right:
            raise SystemExit(f"{repo_id} should be refused by {defect}, but was by {rules or 'none'}")


def change(environment: dict[str, str], repos: int) -> None:
    """Commit other data to every hundredth repository, and at least to one, as their authors would."""
    os.environ.update({**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    from depi.hub.client import api as client

    with tempfile.TemporaryDirectory() as folder:
        for number in range(0, repos, 100):
            for name, content in dataset_files(number, salt=1).items():
                path = Path(folder, str(number), name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            client.upload_folder(
                Path(folder, str(number)), repo_id_of(number), repo_type="dataset", commit_message="More"
            )


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Build, serve, and run the command three times."""
    started = time.monotonic()
    build(folder / "hub", options.repos)
    built_s = time.monotonic() - started
    arguments = [str(folder / "hub"), str(options.latency_ms / 1000), str(options.faults)]
    hub = subprocess.Popen(
        [sys.executable, __file__, "--serve", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert hub.stdout is not None
        found = json.loads(hub.stdout.readline())
        environment = {
            **os.environ,
            **found,
            "HF_HOME": str(folder / "home"),
            "DEPI_CACHE": str(folder / "depi"),
        }
        out = folder / "data_ids"
        first = collect(hub, environment, out, options.connections)
        check(out, options.repos)
        again = collect(hub, environment, out, options.connections)
        check(out, options.repos)
        change({**found, "HF_HOME": environment["HF_HOME"]}, options.repos)
        changed = collect(hub, environment, out, options.connections)
        check(out, options.repos)
    finally:
        hub.stdin.close()  # type: ignore[union-attr]
        hub.wait(timeout=30)
    return {"built_s": built_s, "first": first, "again": again, "changed": changed}


def show(found: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Print the table; the JSON of the last line."""
    table = Table("run", "seconds", "floor", "requests", "per repository", "client CPU s", "Hub CPU s", "MB")
    for name in ("first", "again", "changed"):
        run = found[name]
        floor = run["requests"] * options.latency_ms / 1000 / options.connections
        inspected = run["found"] - run["reused"]
        each = f"{run['requests'] / inspected:.2f}" if inspected else "-"
        numbers = [f"{run['wall_s']:.1f}", f"{floor:.1f}", str(run["requests"]), each]
        table.add_row(
            name, *numbers, f"{run['cpu_s']:.1f}", f"{run['hub_cpu_s']:.1f}", f"{run['rss_mb']:.0f}"
        )
    Console().print(table)
    first, again, changed = found["first"], found["again"], found["changed"]
    return {
        "repos": options.repos,
        "first_s": round(first["wall_s"], 2),
        "unchanged_s": round(again["wall_s"], 2),
        "changed_s": round(changed["wall_s"], 2),
        "unchanged_requests": again["requests"],
        "changed_requests": changed["requests"],
        "changed_inspected": changed["found"] - changed["reused"],
        "floor_s": round(first["requests"] * options.latency_ms / 1000 / options.connections, 2),
        "rss_mb": round(max(run["rss_mb"] for run in (first, again, changed))),
        "requests": first["requests"],
        "client_cpu_s": round(first["cpu_s"], 1),
        "hub_cpu_s": round(first["hub_cpu_s"], 1),
        "failed": first["failed"],
        "built_s": round(found["built_s"], 1),
    }


def main() -> None:
    """Read the flags, measure in a temporary folder, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repos", type=int, default=5000)
    parser.add_argument("--latency_ms", type=float, default=50.0)
    parser.add_argument("--faults", type=float, default=0.02)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--smoke", action="store_true", help="40 repositories, 5 ms")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        root, latency, faults = options.serve
        serve_until_told(Path(root), float(latency), float(faults))
        return
    if options.smoke:
        options.repos, options.latency_ms = 40, 5.0
    with tempfile.TemporaryDirectory(prefix="depi-collect-") as folder:
        print(json.dumps(show(measure(Path(folder), options), options)))


if __name__ == "__main__":
    main()
