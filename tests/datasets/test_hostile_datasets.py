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
from forged_parquet import forge
from runs import SCRIPT, losses, small_training

from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError

TABLE = "data/chunk-000/episode_000000.parquet"
FRONT = "observation.images.front"
VIDEO = f"videos/chunk-000/{FRONT}/episode_000000.mp4"


def change_info(root, **changes):
    file = root / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_episodes(root, length):
    rows = [{"episode_index": 0, "tasks": ["a"], "length": length}]
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))


def named(name, make):
    make.__name__ = re.sub("[^a-z0-9]+", "_", name)
    return make


def template(text):
    return named(f"data_path_{text}", lambda root: change_info(root, data_path=text))


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
    """Seven rows, as listed, of 20 million values each; truth values, which are written fastest."""
    values = pa.repeat(False, 7 * 20_000_000)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(8) * 20_000_000, pa.int32()), values)
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


def many_objects(root):
    """All of them together would take gigabytes."""
    row = {"episode_index": 0, "length": 1, "tasks": ["a"], "other": [{}] * 500_000}
    (root / "meta/episodes.jsonl").write_text((json.dumps(row) + "\n") * 15)


def many_tasks(root):
    row = {"episode_index": 0, "length": 7, "tasks": ["a"] * 10_000}
    (root / "meta/episodes.jsonl").write_text((json.dumps(row) + "\n") * 1_000)


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def deep_names(root):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["names"] = nested(980)
    (root / "meta/info.json").write_text(json.dumps(info))


def deep_fps(root):
    change_info(root, fps=nested(980))


def circle_of_links(relative):
    def make(root):
        (root / relative).unlink()
        (root / relative).symlink_to(root / relative)

    return named(f"circle_of_links_{relative}", make)


def long_path(root):
    """More bytes than any system call takes."""
    change_info(
        root, data_path=f"{'/'.join(['\N{SLIGHTLY SMILING FACE}' * 50] * 8)}/{{episode_index}}.parquet"
    )


def rename_in_bytes(path, old, new):
    content = path.read_bytes()
    assert len(old) == len(new)
    assert old in content
    path.write_bytes(content.replace(old, new))


def column_names_in_bytes(root):
    rename_in_bytes(root / TABLE, b"undeclared", b"undecl\xffred")


def bytes_as_text(texts):
    """An array of texts that are no UTF-8."""
    array = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


def v3_lists(root, count=1, **changes):
    """Lists of episodes and tasks of v3.0, of so many episodes."""
    folder = v3_tables(root) / "meta/episodes/chunk-000"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"task": ["a"], "task_index": [0]}), root / "meta/tasks.parquet")
    info = json.loads((root / "meta/info.json").read_text())
    columns = {"episode_index": np.arange(count), "length": np.full(count, 7)}
    keys = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    for place in ("data", *(f"videos/{key}" for key in keys)):
        columns |= {f"{place}/{name}": np.zeros(count, int) for name in ("chunk_index", "file_index")}
    columns |= {f"videos/{key}/from_timestamp": np.zeros(count) for key in keys}
    pq.write_table(pa.table(columns | changes), folder / "file-000.parquet")
    return folder


def tasks_in_bytes(root):
    v3_lists(root)
    pq.write_table(
        pa.table({"task": bytes_as_text([b"\xff\xfe"]), "task_index": [0]}), root / "meta/tasks.parquet"
    )


def episode_tasks_in_bytes(root):
    v3_lists(root, tasks=pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), bytes_as_text([b"\xff\xfe"])))


def long_text_as_task(root):
    """Four rows of it would take more memory than there may be, were each one a text of its own."""
    v3_lists(root)
    texts = pa.DictionaryArray.from_arrays(np.zeros(190_000, np.int8), ["x" * 20_000_000])
    table = pa.table({"task": texts, "task_index": np.arange(190_000)})
    pq.write_table(table, root / "meta/tasks.parquet", compression="zstd")


ACTIONS = {
    "objects": pa.array([{"pan": 1.0, "lift": 2.0}] * 7),
    "words": pa.array(["1.0"] * 7),
    "codes": pa.array(["1.0", "2.0"] * 3 + ["1.0"]).dictionary_encode(),
    "lists of words": pa.ListArray.from_arrays(
        pa.array(np.arange(8) * 6, pa.int32()),
        pa.DictionaryArray.from_arrays(np.zeros(42, np.int8), ["x" * 50_000_000]),
    ),
    "wide bytes": pa.array([bytes(10_000_000)] * 7, pa.binary(10_000_000)),
    "nothing": pa.nulls(7),
    "uneven lists": pa.array([[0.0] * 5, [0.0] * 7] + [[0.0] * 6] * 5),
    "uneven lists of lists": pa.array([[[0.0], [0.0]], [[0.0] * 5, [0.0] * 5]] + [[[0.0] * 3] * 2] * 5),
    "dates": pa.array([10**18] * 7, pa.timestamp("ns")),
}


def actions(kind):
    def make(root):
        table = pq.read_table(root / TABLE)
        table = table.set_column(table.column_names.index("action"), "action", ACTIONS[kind])
        pq.write_table(table, root / TABLE, compression="zstd")

    return named(f"actions_as_{kind}", make)


def steps_of(seconds):
    def make(root):
        change_info(root, fps=60)
        set_column(root, "timestamp", lambda values: pa.array(np.arange(len(values)) * seconds, pa.float32()))

    return named(f"steps_of_{seconds}", make)


def slow_fps(root):
    change_info(root, fps=1e-300)


def one_video(root):
    change_info(root, video_path="videos/all.mp4")


def one_video_for_all_cameras(root):
    change_info(root, video_path="videos/{episode_index}.mp4")


def declare_cameras(root, count):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] |= {f"observation.images.{number}": info["features"][FRONT] for number in range(count)}
    (root / "meta/info.json").write_text(json.dumps(info))


def many_cameras(root):
    declare_cameras(root, 100)
    rows = ({"episode_index": index, "tasks": ["a"], "length": 7} for index in range(100_000))
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))


def many_cameras_v3(root):
    declare_cameras(root, 100)
    v3_lists(root, 100_000)


def many_lists_of_episodes(root):
    folder = v3_lists(root, 0)
    for number in range(1, 3_000):
        (folder / f"file-{number:03d}.parquet").hardlink_to(folder / "file-000.parquet")


def declare_image(root):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][FRONT]["dtype"] = "image"
    (root / "meta/info.json").write_text(json.dumps(info))


def no_image_column(root):
    declare_image(root)


def no_images_in_column(root):
    declare_image(root)
    for file in root.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.append_column(FRONT, table["index"]), file)


def wide_table(root):
    """4,000 columns in 10 row groups, of which few are wanted; slow for who looks at all of them for each."""
    table = pq.read_table(root / TABLE)
    others = {f"other.{number}": table["index"] for number in range(4_000)}
    table = pa.table({**{name: table[name] for name in table.column_names}, **others})
    with pq.ParquetWriter(root / TABLE, table.schema, write_statistics=False) as writer:
        for part in (*(table.slice(0, 0) for _ in range(9)), table):
            writer.write_table(part)


def large_footer(root):
    table = pq.read_table(root / TABLE)
    pq.write_table(table.replace_schema_metadata({"x": "x" * 40_000_000}), root / TABLE)


def forged_footer(root):
    forge(root / TABLE, "action", 10_000_000)


def bad_size_statistics(root, column=b"timestamp"):
    """Arrow 26 ends the process when it is asked about a column that its footer makes a required one."""
    content = (root / TABLE).read_bytes()
    optional = b"\x02\x18" + bytes([len(column)]) + column
    assert content.count(optional) == 1
    (root / TABLE).write_bytes(content.replace(optional, b"\x00" + optional[1:]))


def deep_schema(root):
    kind = pa.int64()
    for _ in range(200):
        kind = pa.list_(kind)
    table = pq.read_table(root / TABLE)
    table = table.set_column(table.column_names.index("action"), "action", pa.nulls(len(table), kind))
    pq.write_table(table, root / TABLE)


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
    (wide_vectors, "action has 20000000 times 4096 numbers|action has shape .4096."),
    (declared_fifty_thousand_pixels, "shape of .* is 50000"),
    (many_rows, "has 20000000 rows, at most 7 were expected|the tables have more than 5000000 rows"),
    (long_lists, "unfolds? to (more than )?[0-9]+"),
    (long_states, "unfolds? to (more than )?[0-9]+"),
    (timestamps_in_words, "the column timestamp does not hold one number per frame"),
    (pairs_of_timestamps, "the column timestamp does not hold one number per frame|no column timestamp"),
    (pairs_of_tasks, "the column task_index does not hold one number per frame"),
    (tasks_in_words, "the column task_index does not hold one number per frame"),
    (two_actions, "has the column 'action' twice"),
    (long_task, "a task has 1000000 characters"),
    (half_character, "line 1 of meta/tasks.jsonl is not valid JSON"),
    (not_utf8, "meta/info.json is not UTF-8 text"),
    (deep_json, "meta/info.json is not valid JSON"),
    (endless_line, "line 1 of meta/episodes.jsonl has more than 4000000 bytes"),
    (non_utf8_file_name, "is not printable text"),
    (unfolding_tasks, "the tasks have more than 50000000 characters"),
    (repeated_tasks, "20000000 values, at most"),
    (many_objects, "an episode is listed twice"),
    (many_tasks, "more than 2000000 tasks are listed"),
    (deep_names, "meta/info.json is nested more than 64 levels deep"),
    (deep_fps, "meta/info.json is nested more than 64 levels deep"),
    (circle_of_links("meta/info.json"), "meta/info.json is a link that leads nowhere|no meta/info.json"),
    (circle_of_links("meta/episodes.jsonl"), "episodes.jsonl is a link that leads nowhere"),
    (circle_of_links(TABLE), "episode_000000.parquet is missing"),
    (circle_of_links(VIDEO), "episode_000000.mp4 is missing"),
    (long_path, "is empty or too long"),
    (column_names_in_bytes, "episode_000000.parquet is unreadable: UnicodeDecodeError"),
    (tasks_in_bytes, "meta/tasks.parquet cannot be read as parquet: .*Invalid UT"),
    (episode_tasks_in_bytes, "file-000.parquet cannot be read as parquet: .*Dictionary"),
    (long_text_as_task, "a task has 20000000 characters"),
    (actions("objects"), "column 'action' of .* has the type .*struct"),
    (actions("words"), "the column action holds no numbers"),
    (actions("codes"), "the column action holds no numbers"),
    (actions("lists of words"), "column 'action.list.element' of .* has texts within it"),
    (actions("wide bytes"), "column 'action' of .* has the type|unfolds to [0-9]+ bytes"),
    (actions("nothing"), "column 'action' of .* has gaps"),
    (actions("uneven lists"), "column 'action' of .* has not 6 numbers in every row"),
    (actions("uneven lists of lists"), "column 'action' of .* has not 6 numbers in every row"),
    (actions("dates"), "column 'action' of .* has the type .*timestamp"),
    (steps_of(1e-20), "time stands still or runs back"),
    (steps_of(1e6), "frames are missing: up to 1e.06 s without one"),
    (slow_fps, "fps is 1e-300, expected 0.01 to 1000"),
    (template("data/all.parquet"), "gives 'data/all.parquet' to several episodes or cameras"),
    (one_video, "gives 'videos/all.mp4' to several episodes or cameras"),
    (one_video_for_all_cameras, "gives 'videos/0.mp4' to several episodes or cameras"),
    (many_cameras, "meta/episodes.jsonl has more than 4901 lines"),
    (many_cameras_v3, "100000 episodes with 102 cameras are listed, at most 4901 are read"),
    (many_lists_of_episodes, "meta/episodes has 3000 files, at most 2000 are read"),
    (no_image_column, "has the column 'observation.images.front' not, or twice"),
    (no_images_in_column, "column 'observation.images.front' of .* is 'int64', expected images"),
    (wide_table, "taken|joint convention"),
    (large_footer, "has a footer of [0-9]+ bytes, at most"),
    (deep_schema, "cannot be read as parquet"),
    (bad_size_statistics, "unreadable: reading it crashes the reader .SIGABRT."),
    (forged_footer, "column 'action.list.element' has 10000000 values in its pages, 42 by the footer"),
]
OF_VIDEOS = (link_video_out, link_folder_out)
"""A repository of the Hub has no links, and the catalogue does not look at videos before `--deep`."""

THROUGH_DOOR = """
import json, resource, sys, time
from pathlib import Path
from both_doors import in_catalogue, in_training

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

door = {"training": in_training, "catalogue": in_catalogue}[sys.argv[1]]
door(Path(sys.argv[2]))
start = peak()
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
for root in sys.argv[3:]:
    began = time.monotonic()
    text = door(Path(root)).text
    print(json.dumps([text, peak() - start, time.monotonic() - began]))
"""
DOORS = ("training", "catalogue")


@pytest.fixture(scope="module")
def outcomes(v21, tmp_path_factory):
    """Door -> what it says of each hostile dataset, of it all or of its hostile episode, the peak of memory
    in MB beyond a good one's by then, and the seconds. The processes that read have limits of their own, and
    say so where they are reached.
    """
    folder = tmp_path_factory.mktemp("hostile")
    roots = []
    for number, (make, _) in enumerate(CASES):
        roots.append(shutil.copytree(v21, folder / str(number) / "data"))
        make(roots[-1])
    before = set(folder.rglob("*"))
    found = {}
    for door in DOORS:
        result = subprocess.run(
            [sys.executable, "-c", THROUGH_DOOR, door, v21, *roots],
            env=os.environ | {"DEPI_CACHE": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=250,
        )
        found[door] = [json.loads(line) for line in result.stdout.splitlines()]
    written = {path for path in set(folder.rglob("*")) - before if folder / "cache" not in path.parents}
    assert written == {folder / "cache"}
    return found


@pytest.mark.parametrize("number", range(len(CASES)), ids=[make.__name__ for make, _ in CASES])
def test_a_hostile_dataset_is_refused_in_bounded_memory(outcomes, number):
    make, expected = CASES[number]
    for door in DOORS:
        reason, megabytes, seconds = outcomes[door][number]
        if door == "training" or make not in OF_VIDEOS:
            assert re.search(expected, reason), (door, reason)
        assert len(reason) < 500
        assert reason.isprintable()
        assert megabytes < 1000
        assert seconds < 30


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


@pytest.mark.slow
def test_a_run_trains_on_the_good_ones_among_hostile_ones(hub, v21, tmp_path):
    refused = [make for make, _ in CASES if make is not wide_table][::2][:30]
    for number, make in enumerate(refused):
        make(shutil.copytree(v21, tmp_path / f"bad-{number}" / "data"))
    names = [f"bad-{number}" for number in range(len(refused))]
    for number in range(20):
        shutil.copytree(v21, tmp_path / f"good-{number}" / "data")
        names.insert(3 * number, f"good-{number}")
    mixture = [{"repo_id": f"user/{name}", "root": str(tmp_path / name / "data")} for name in names]
    (tmp_path / "mixture.json").write_text(json.dumps(mixture))
    smallest = [flag for flag in small_training(tmp_path, tmp_path) if flag.startswith("--policy.")]
    flags = [
        *smallest,
        f"--dataset.mixture={tmp_path / 'mixture.json'}",
        "--dataset.max_bad_datasets=0.7",
        "--dataset.max_bad_fraction=0.9",
        f"--output_dir={tmp_path / 'run'}",
        "--steps=3",
        "--batch_size=4",
        "--num_workers=2",
    ]
    result = subprocess.run([sys.executable, SCRIPT, *flags], check=False, timeout=250)
    assert result.returncode == 0
    report = json.loads((tmp_path / "run/data_report.json").read_text())
    good = {entry["repo_id"] for entry in report["datasets"] if not entry["episodes_left_out"]}
    assert {f"user/good-{number}" for number in range(20)} <= good
    left_out = {entry["repo_id"] for entry in report["datasets"]} - good | report["quarantined"].keys()
    assert left_out >= {f"user/bad-{number}" for number in range(30)} - good
    assert len(losses(tmp_path / "run")) > 0
