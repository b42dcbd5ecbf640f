"""Datasets made to do harm: each is refused with a reason, in bounded memory, and nothing is written."""

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError

TABLE = "data/chunk-000/episode_000000.parquet"
FRONT = "observation.images.front"


def change_info(root, **changes):
    file = root / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_episodes(root, length):
    rows = [{"episode_index": 0, "tasks": ["a"], "length": length}]
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))


def template(text):
    return lambda root: change_info(root, data_path=text)


def link_meta_out(root):
    secret = root.parent / "secret.json"
    shutil.move(root / "meta/info.json", secret)
    (root / "meta/info.json").symlink_to(secret)


def link_table_out(root):
    (root / TABLE).unlink()
    (root / TABLE).symlink_to("/etc/passwd")


def link_video_out(root):
    video = root / f"videos/chunk-000/{FRONT}/episode_000000.mp4"
    shutil.move(video, root.parent / "private.mp4")
    video.symlink_to(root.parent / "private.mp4")


def link_folder_out(root):
    shutil.move(root / "videos", root.parent / "elsewhere")
    (root / "videos").symlink_to(root.parent / "elsewhere")


def ten_billion_frames(root):
    change_info(root, total_frames=10_000_000_000)


def ten_billion_listed(root):
    change_episodes(root, 10_000_000_000)


def wide_vectors(root):
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    info["features"]["action"]["shape"] = [4096]
    file.write_text(json.dumps(info))
    change_episodes(root, 20_000_000)


def declared_fifty_thousand_pixels(root):
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    info["features"][FRONT]["shape"] = [50_000, 50_000, 3]
    file.write_text(json.dumps(info))


def many_rows(root):
    """20 million rows in a file of some kilobytes."""
    pq.write_table(pa.table({"action": np.zeros(20_000_000, np.int8)}), root / TABLE, compression="zstd")


def long_lists(root, name="action"):
    """Seven rows, as listed, of 40 million values each; truth values, which are written fastest."""
    values = pa.array(np.zeros(7 * 40_000_000, bool))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(8) * 40_000_000, pa.int32()), values)
    table = pq.read_table(root / TABLE)
    table = table.set_column(table.column_names.index(name), name, lists)
    pq.write_table(table, root / TABLE, compression="zstd")


def long_states(root):
    """The same in a column whose name has a dot."""
    long_lists(root, "observation.state")


def set_column(root, name, change):
    """Replace the values of a column in all tables by what `change` makes of them."""
    for file in root.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        values = pa.array(change(table[name].to_pylist()))
        pq.write_table(table.set_column(table.column_names.index(name), name, values), file)


def declare(root, name, shape):
    """Declare a column with a shape, or not at all."""
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    feature = info["features"].pop(name)
    if shape is not None:
        info["features"][name] = feature | {"shape": shape}
    file.write_text(json.dumps(info))


def timestamps_in_words(root):
    set_column(root, "timestamp", lambda values: [f"{value} s" for value in values])


def pairs_of_timestamps(root):
    declare(root, "timestamp", None)
    set_column(root, "timestamp", lambda values: [[value, value] for value in values])


def pairs_of_tasks(root):
    declare(root, "task_index", [2])
    set_column(root, "task_index", lambda values: [[value, value] for value in values])


def tasks_in_words(root):
    set_column(root, "task_index", lambda values: [str(value) for value in values])


def two_actions(root):
    for file in root.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.append_column("action", table["action"]), file)


def long_task(root):
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "x" * 1_000_000}))


def half_character(root):
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "pick \\ud800"}')


def not_utf8(root):
    (root / "meta/info.json").write_bytes((root / "meta/info.json").read_bytes().replace(b"so100", b"so\xff"))


def deep_json(root):
    (root / "meta/info.json").write_text("[" * 1_000_000)


def endless_line(root):
    (root / "meta/episodes.jsonl").write_text("[" + "[]," * 20_000_000 + "[]]")


def v3_tables(root):
    """Metadata of v3.0 whose file names are no text and whose tasks unfold to gigabytes."""
    change_info(root, codebase_version="v3.0", data_path=None, video_path=None)
    info = json.loads((root / "meta/info.json").read_text())
    del info["data_path"], info["video_path"]
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def non_utf8_file_name(root):
    folder = v3_tables(root) / "meta/episodes/chunk-000"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"task": ["a"], "task_index": [0]}), root / "meta/tasks.parquet")
    with open(os.fsencode(folder) + b"/file-\xff.parquet", "wb") as file:
        file.write(b"PAR1")


def unfolding_tasks(root):
    texts = pa.DictionaryArray.from_arrays(np.arange(190_000, dtype=np.int32) % 9_000, numbered(9_000))
    table = pa.table({"task": texts, "task_index": np.arange(190_000)})
    pq.write_table(table, v3_tables(root) / "meta/tasks.parquet", compression="zstd")


def repeated_tasks(root):
    """One row that lists a text of 10,000 characters twenty million times."""
    folder = v3_tables(root) / "meta/episodes/chunk-000"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"task": ["a"], "task_index": [0]}), root / "meta/tasks.parquet")
    texts = pa.DictionaryArray.from_arrays(np.zeros(20_000_000, np.int8), ["x" * 10_000])
    numbers = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns = {name: [1] for name in numbers}
    for key in (FRONT, "observation.images.wrist"):
        columns |= {f"videos/{key}/{name}": [1] for name in ("chunk_index", "file_index", "from_timestamp")}
    lists = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
    pq.write_table(pa.table({**columns, "tasks": lists}), folder / "file-000.parquet", compression="zstd")


def numbered(count):
    return [f"{number:05d}" + "x" * 9_990 for number in range(count)]


CASES = [
    (template("../../{episode_index}.parquet"), "data_path .* is not a plain relative path"),
    (template("/etc/{episode_index}.parquet"), "data_path .* is not a plain relative path"),
    (template("{episode_index.__class__}"), "placeholder that is not known"),
    (template("{x.__class__}"), "placeholder that is not known"),
    (template("{episode_index:099999999d}"), "placeholder that is not known"),
    (link_meta_out, "meta/info.json is a link that leaves the dataset's folder"),
    (link_table_out, "episode_000000.parquet is a link that leaves the dataset's folder"),
    (link_video_out, "episode_000000.mp4 is a link that leaves the dataset's folder"),
    (link_folder_out, "episode_000000.mp4 is a link that leaves the dataset's folder"),
    (ten_billion_frames, "total_frames is 10000000000"),
    (ten_billion_listed, "length of an episode is 10000000000"),
    (wide_vectors, "action has 20000000 times 4096 numbers"),
    (declared_fifty_thousand_pixels, "shape of .* is 50000"),
    (many_rows, "has 20000000 rows, at most 7 were expected"),
    (long_lists, "unfolds to [0-9]+ bytes"),
    (long_states, "unfolds to [0-9]+ bytes"),
    (timestamps_in_words, "the column timestamp does not hold one number per frame"),
    (pairs_of_timestamps, "the column timestamp does not hold one number per frame"),
    (pairs_of_tasks, "the column task_index does not hold one number per frame"),
    (tasks_in_words, "the column task_index does not hold one number per frame"),
    (two_actions, "has the column 'action' twice"),
    (long_task, "a task has 1000000 characters"),
    (half_character, "line 1 of meta/tasks.jsonl is not valid JSON"),
    (not_utf8, "meta/info.json is not UTF-8 text"),
    (deep_json, "meta/info.json is not valid JSON"),
    (endless_line, "line 1 of meta/episodes.jsonl has 60000004 characters"),
    (non_utf8_file_name, "is not printable text"),
    (unfolding_tasks, "the tasks have more than 50000000 characters"),
    (repeated_tasks, "20000000 values, at most"),
]

OPEN_ALL = """
import json, resource, sys
from pathlib import Path
from depi.datasets.union.opening import open_dataset
from depi.datasets.union.dataset_index import Options, open_part
from depi.datasets.recording.sources import DatasetSource
from depi.datasets.recording.storages import open_source
from depi.errors import DatasetError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

open_part(open_source(DatasetSource("user/good", root=Path(sys.argv[1]))), Options(max_cameras=3))
start = peak()
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
for root in sys.argv[2:]:
    try:
        part = open_part(open_source(DatasetSource("user/bad", root=Path(root))), Options(max_cameras=3))
        reason = "; ".join(part.entry["episodes_left_out"].values()) or "opened"
    except DatasetError as error:
        reason = str(error)
    print(json.dumps([reason, peak() - start]))
"""


@pytest.fixture(scope="module")
def outcomes(v21, tmp_path_factory):
    """What opening each hostile dataset says, of it all or of its hostile episode, and the peak of memory in
    MB beyond a good one's by then.
    """
    folder = tmp_path_factory.mktemp("hostile")
    roots = []
    for number, (make, _) in enumerate(CASES):
        roots.append(shutil.copytree(v21, folder / str(number) / "data"))
        make(roots[-1])
    before = set(folder.rglob("*"))
    result = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, v21, *roots],
        env=os.environ | {"DEPI_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    written = {path for path in set(folder.rglob("*")) - before if folder / "cache" not in path.parents}
    assert written == {folder / "cache"}
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[make.__name__ for make, _ in CASES])
def test_a_hostile_dataset_is_refused_in_bounded_memory(outcomes, number):
    reason, megabytes = outcomes[number]
    assert re.search(CASES[number][1], reason), reason
    assert len(reason) < 500
    assert reason.isprintable()
    assert megabytes < 1000


@pytest.mark.parametrize("backend", ["torchcodec", "pyav", None])
def test_a_video_header_of_fifty_thousand_pixels_allocates_nothing(v21, tmp_path, backend):
    """The header of every video says 50,000 by 50,000: no frame can be had, and memory stays."""
    root = shutil.copytree(v21, tmp_path / "data")
    for video in root.rglob("*.mp4"):
        content = video.read_bytes()
        at = content.index(b"avc1", content.index(b"stsd")) + 4 + 24
        assert content[at : at + 4] == struct.pack(">HH", 64, 48)
        video.write_bytes(content[:at] + struct.pack(">HH", 50_000, 50_000) + content[at + 4 :])
    dataset = MultiLeRobotDataset(
        [DatasetSource("user/data", root=root)], video_backend=backend, max_bad_fraction=0.5, image_size=64
    )
    before = peak_mb()
    with contextlib.suppress(UserError):  # a decoder may find the true size in the stream itself
        assert dataset[0]["observation.images.0"].shape == (3, 64, 64)
    assert peak_mb() - before < 300


def peak_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000
