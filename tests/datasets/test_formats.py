import copy
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import NAMES, REAL, Recording, info_of, write_v2

from depi.datasets.recording.checks import resolve_file
from depi.datasets.recording.formats import data_files, metadata_files, parse_info, video_files
from depi.datasets.recording.metadata import load_meta
from depi.datasets.recording.tables import read_frames
from depi.errors import DatasetError

INFO = info_of(Recording(), "v2.1")
FRONT = "observation.images.front"


def changed(path, value):
    """INFO with one entry, at keys joined by /, set to a value."""
    info = json.loads(json.dumps(INFO))
    *parents, last = path.split("/")
    entry = info
    for key in parents:
        entry = entry[key]
    entry[last] = value
    return info


def test_parse_info():
    info = parse_info(INFO)
    assert info.version == "v2.1"
    assert info.fps == 10.0
    assert info.camera_keys == (FRONT, "observation.images.wrist")
    assert info.features["action"].shape == (6,)
    assert info.features["action"].names == tuple(NAMES)
    assert info.features[FRONT].image_size == (48, 64)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (NAMES, NAMES),
        ({"motors": NAMES}, NAMES),
        ({"motors": [["a", "b", "c"], ["d", "e", "f"]]}, list("abcdef")),
        ({name: 5 - place for place, name in enumerate("abcdef")}, list("fedcba")),
        (["too", "few"], None),
        ([1, 2, 3, 4, 5, 6], None),
        (None, None),
        ([], None),
    ],
)
def test_names_are_read_in_all_published_ways(written, read):
    names = parse_info(changed("features/action/names", written)).features["action"].names
    assert names == (None if read is None else tuple(read))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("robot_type", None),
        ("fps", 29.97),
        ("splits", None),
        ("features/action/shape", 6),
        ("total_frames", 12.0),
        ("undeclared", {"anything": [1, 2]}),
        ("features/observation.images.front/shape", [3, 48, 64]),
        ("features/strange/key", {"dtype": "float32", "shape": [1], "names": None}),
    ],
)
def test_harmless_varieties_are_read(path, value):
    info = copy.deepcopy(INFO)
    if path == "features/strange/key":
        info["features"]["strange/key"] = value
    else:
        info = changed(path, value)
    parsed = parse_info(info)
    assert parsed.features[FRONT].image_size == (48, 64)


def test_what_v2_0_lacks_has_defaults():
    info = {key: value for key, value in INFO.items() if key not in ("splits", "chunks_size", "robot_type")}
    info["codebase_version"] = "v2.0"
    parsed = parse_info(info)
    assert (parsed.chunks_size, parsed.robot_type, parsed.splits) == (1000, None, {})


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_a_version_may_lack_its_letter(version):
    info = parse_info(changed("codebase_version", version))
    assert info.version == f"v{version}"


def test_a_version_without_its_letter_is_read_where_the_files_are_of_it(v30, v21, tmp_path):
    for name, root in (("v30", v30), ("v21", v21)):
        file = shutil.copytree(root, tmp_path / name) / "meta/info.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"codebase_version": "3.0"}))
    assert load_meta(tmp_path / "v30", "a/b").info.version == "v3.0"
    with pytest.raises(DatasetError, match=r"data_path .* has a placeholder that is not known"):
        load_meta(tmp_path / "v21", "a/b")


@pytest.mark.parametrize("flag", ["is_depth_map", "video.is_depth_map"])
def test_depth_cameras_are_no_cameras(flag):
    info = parse_info(changed(f"features/{FRONT}/info", {flag: True}))
    assert info.camera_keys == ("observation.images.wrist",)
    assert info.depth_keys == (FRONT,)


TEMPLATES = [
    "../{episode_index}.parquet",
    "data/../../{episode_index}.parquet",
    "/etc/{episode_index}.parquet",
    "~/{episode_index}.parquet",
    "data\\{episode_index}.parquet",
    "data/{episode_index.__class__}.parquet",
    "data/{episode_index[0]}.parquet",
    "data/{episode_index!r}.parquet",
    "data/{episode_index:999999999d}.parquet",
    "data/{episode_index:{episode_chunk}d}.parquet",
    "data/{0}.parquet",
    "data/{}.parquet",
    "data/{root}.parquet",
    "data/{chunk_index}.parquet",
    "data/{episode_index",
    "data/\0.parquet",
    "",
    7,
    "a" * 501,
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["data_path", "video_path"])
def test_hostile_path_templates_are_refused(name, template):
    with pytest.raises(DatasetError, match=name):
        parse_info(changed(name, template))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("codebase_version", "v1.6", "codebase_version is 'v1.6'"),
        ("codebase_version", "1.6", "codebase_version is '1.6'"),
        ("codebase_version", "vv3.0", "codebase_version is 'vv3.0'"),
        ("codebase_version", ["v2.1"], "codebase_version"),
        ("fps", 0, "fps is 0"),
        ("fps", float("nan"), "fps is nan"),
        ("fps", float("inf"), "fps is inf"),
        ("fps", True, "fps is True"),
        ("fps", "30", "fps is '30'"),
        ("total_frames", 10_000_000_000, "total_frames is 10000000000"),
        ("total_episodes", -1, "total_episodes is -1"),
        ("total_episodes", None, "total_episodes is None"),
        ("chunks_size", 0, "chunks_size is 0"),
        ("robot_type", {"a": 1}, "robot_type"),
        ("splits", "train", "splits"),
        ("features", [], "features"),
        ("features", {str(number): {} for number in range(1000)}, "1000 features"),
        ("features/action", None, "feature 'action' is None"),
        ("features/action/dtype", 7, "dtype 7"),
        ("features/action/shape", "6", "shape '6'"),
        ("features/action/shape", [10**9], "1000000000"),
        ("features/action/shape", [4096, 4096], "16777216 numbers"),
        (f"features/{FRONT}/shape", [50_000, 640, 3], "50000"),
        (f"features/{FRONT}/shape", [48, 64], "expected height, width, channels"),
    ],
)
def test_absurd_values_are_refused_with_the_reason(path, value, reason):
    with pytest.raises(DatasetError, match=reason):
        parse_info(changed(path, value))


@pytest.mark.parametrize("key", ["../../etc", "a/b", "a\\b", ".."])
def test_camera_names_cannot_climb(key):
    info = copy.deepcopy(INFO)
    info["features"][key] = info["features"][FRONT]
    with pytest.raises(DatasetError, match="path separator"):
        parse_info(info)


@pytest.mark.parametrize("info", [None, [], "v2.1", 3])
def test_info_must_be_an_object(info):
    with pytest.raises(DatasetError, match="not a JSON object"):
        parse_info(info)


def test_metadata_files():
    files = [
        "README.md", "meta/info.json", "meta/stats.json", "meta/episodes_stats.jsonl", "meta/tasks.jsonl",
        "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet", "meta/episodes.jsonl",
    ]  # fmt: skip
    episodes = ["meta/episodes.jsonl", "meta/episodes/chunk-000/file-000.parquet"]
    assert metadata_files(files) == [*episodes, "meta/info.json", "meta/tasks.jsonl"]


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_v2_is_read_in_place_with_gaps(tmp_path, version):
    recording = Recording(lengths=(4, 3, 5), cameras=())
    root = write_v2(tmp_path / "data", recording, version, indices=(2, 5, 17))
    meta = load_meta(root, "someone/data")
    assert meta.episodes.episode_index.tolist() == [2, 5, 17]
    assert meta.episodes.length.tolist() == [4, 3, 5]
    assert meta.episodes.tasks == (("pick the cube",), ("drop the cube",), ("pick the cube",))
    assert data_files(meta)[1] == "data/chunk-000/episode_000005.parquet"
    frames = read_frames(meta, ["action", "observation.state", "frame_index", "undeclared", "timestamp"])
    expected = np.concatenate([recording.joints(episode)[0] for episode in range(3)])
    np.testing.assert_array_equal(frames["action"], expected)
    assert frames["observation.state"].shape == (12, 6)
    assert frames["frame_index"].tolist() == [*range(4), *range(3), *range(5)]
    assert frames["frame_index"].dtype == np.int64
    assert frames["undeclared"].shape == (12,)
    assert frames["timestamp"].dtype == np.float32


def test_v3_metadata_of_lerobots_writer(v30):
    meta = load_meta(v30, "someone/data")
    assert meta.info.version == "v3.0"
    assert meta.tasks == {0: "pick the cube", 1: "drop the cube"}
    assert meta.episodes.length.tolist() == [7, 5]
    assert data_files(meta) == ["data/chunk-000/file-000.parquet"]
    assert video_files(meta, cameras=[FRONT]) == [f"videos/{FRONT}/chunk-000/file-000.mp4"]
    assert meta.episodes.videos[FRONT].start.tolist() == pytest.approx([0, 0.7])
    expected = np.concatenate([Recording().joints(episode)[0] for episode in range(2)])
    np.testing.assert_array_equal(read_frames(meta, ["action"])["action"], expected)


def test_v3_episodes_may_lie_in_any_order_and_file(v30, tmp_path):
    """Episodes 1, 0 swapped in the data file, and moved to a second one: the same frames come out."""
    plain = read_frames(load_meta(v30, "a/b"), ["action", "episode_index"])
    root = shutil.copytree(v30, tmp_path / "data")
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table.slice(7), table.slice(0, 7)]), file)
    swapped = read_frames(load_meta(root, "a/b"), ["action", "episode_index"])
    pq.write_table(table.slice(0, 7), root / "data/chunk-000/file-001.parquet")
    pq.write_table(table.slice(7), file)
    episodes = next((root / "meta/episodes").glob("*/*.parquet"))
    rows = pq.read_table(episodes)
    moved = rows.set_column(rows.column_names.index("data/file_index"), "data/file_index", pa.array([1, 0]))
    pq.write_table(moved, episodes)
    meta = load_meta(root, "a/b")
    assert data_files(meta) == ["data/chunk-000/file-001.parquet", "data/chunk-000/file-000.parquet"]
    apart = read_frames(meta, ["action", "episode_index"])
    for name, values in plain.items():
        np.testing.assert_array_equal(swapped[name], values)
        np.testing.assert_array_equal(apart[name], values)


def v2_copy(v21, tmp_path):
    return shutil.copytree(v21, tmp_path / "data")


def rewrite(root, relative, change):
    path = root / relative
    pq.write_table(change(pq.read_table(path)), path)


EPISODE = "data/chunk-000/episode_000001.parquet"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.slice(1), "has 4 rows, 5 were listed"),
        (lambda table: table.drop_columns(["action"]), "lacks the column 'action'"),
        (
            lambda table: table.set_column(0, "action", pa.array([[1.0] * 7] * 5)),
            "has not 6 numbers in every row",
        ),
        (
            lambda table: table.set_column(0, "action", pa.array([[1.0] * 6] * 3 + [[1.0] * 5, [1.0] * 7])),
            "has not 6 numbers in every row",
        ),
        (
            lambda table: table.set_column(0, "action", pa.array([[1.0] * 6] * 4 + [None])),
            "has gaps",
        ),
        (
            lambda table: table.set_column(0, "action", pa.array([[1.0] * 6] * 4 + [[None] * 6])),
            "has gaps",
        ),
        (
            lambda table: table.set_column(0, "action", pa.array([b"x"] * 5)),
            "has the type .* which is not read",
        ),
    ],
)
def test_tables_that_break_their_promise(v21, tmp_path, change, reason):
    root = v2_copy(v21, tmp_path)
    rewrite(root, EPISODE, change)
    with pytest.raises(DatasetError, match=reason):
        read_frames(load_meta(root, "a/b"), ["action"])


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("meta/info.json", b"{", "not valid JSON"),
        ("meta/info.json", b"\xff\xfe", "not UTF-8"),
        ("meta/info.json", b"[" * 200_000, "not valid JSON"),
        ("meta/info.json", b'{"fps": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        ("meta/episodes.jsonl", b"[1]\n", "line 1 .* expected an object"),
        ("meta/episodes.jsonl", b"", "no episodes"),
        ("meta/episodes.jsonl", b'{"episode_index": 0, "length": 10000000000}', "length of an episode"),
        ("meta/episodes.jsonl", b'{"episode_index": -1, "length": 1}', "episode_index is -1"),
        ("meta/episodes.jsonl", b'{"episode_index": 0, "length": 1}\n' * 2, "listed twice"),
        ("meta/tasks.jsonl", b'{"task_index": 0, "task": "' + b"x" * 1_000_000 + b'"}', "1000000 characters"),
        ("meta/tasks.jsonl", b'{"task_index": 0, "task": 5}', "a task is 5"),
    ],
)
def test_hostile_metadata(v21, tmp_path, file, content, reason):
    root = v2_copy(v21, tmp_path)
    (root / file).write_bytes(content)
    with pytest.raises(DatasetError, match=reason):
        load_meta(root, "a/b")


@pytest.mark.parametrize("file", ["meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl"])
def test_missing_metadata_is_named(v21, tmp_path, file):
    root = v2_copy(v21, tmp_path)
    (root / file).unlink()
    with pytest.raises(DatasetError, match=f"{file} is missing"):
        load_meta(root, "a/b")


def test_hostile_v3_episodes(v30, tmp_path):
    root = shutil.copytree(v30, tmp_path / "data")
    file = next((root / "meta/episodes").glob("*/*.parquet"))
    table = pq.read_table(file)
    name = f"videos/{FRONT}/from_timestamp"
    place = table.column_names.index(name)
    for values, reason in (
        ([0.0, float("nan")], "nan seconds"),
        ([-1.0, 0.0], "seconds"),
        ([None, 1.0], "gaps"),
    ):
        pq.write_table(table.set_column(place, name, pa.array(values, pa.float64())), file)
        with pytest.raises(DatasetError, match=reason):
            load_meta(root, "a/b")
    pq.write_table(table.set_column(1, "tasks", pa.array([["x" * 1_000_000]] * 2)), file)
    with pytest.raises(DatasetError, match="characters"):
        load_meta(root, "a/b")
    file.write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(DatasetError, match="cannot be read as parquet"):
        load_meta(root, "a/b")


def test_a_parquet_bomb_is_not_unfolded(v21, tmp_path):
    """A few kB of run-length encoded zeros would unfold to 12 GB."""
    root = v2_copy(v21, tmp_path)
    rows = 2_000_000
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array([0.0]))
    path = root / EPISODE
    with pq.ParquetWriter(path, pa.schema([("action", one.type)]), compression="zstd") as writer:
        for _ in range(10):
            writer.write_table(pa.table({"action": one}))
    assert path.stat().st_size < 500_000
    with pytest.raises(DatasetError, match="20000000 rows, at most 5"):
        read_frames(load_meta(root, "a/b"), ["action"])


def test_links_out_of_the_dataset_are_refused(v21, tmp_path):
    root = v2_copy(v21, tmp_path)
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(INFO))
    (root / "meta/info.json").unlink()
    (root / "meta/info.json").symlink_to(secret)
    with pytest.raises(DatasetError, match="leaves the dataset's folder"):
        load_meta(root, "a/b")


def test_links_inside_the_hubs_cache_are_followed(v21, tmp_path):
    snapshot = tmp_path / "datasets--a--b/snapshots/abc"
    blobs = tmp_path / "datasets--a--b/blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(v21 / "meta", blobs)
    (snapshot / "info.json").symlink_to("../../blobs/info.json")
    assert resolve_file(snapshot, "info.json") == blobs / "info.json"


@pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not here")
def test_real_metadata():
    meta = load_meta(REAL / "so101_pick_tiger", "someone/so101_pick_tiger")
    assert len(meta.episodes) == 50
    assert meta.num_frames == meta.info.total_frames == 22449
    assert meta.tasks == {0: "Pick the tiger and place near elephant"}
    assert meta.info.camera_keys == ("observation.images.top_phone",)
    starts = meta.episodes.videos["observation.images.top_phone"].start
    assert starts[1] == pytest.approx(448 / 30)
    with pytest.raises(DatasetError, match=r"data/chunk-000/file-000\.parquet is missing"):
        read_frames(meta, ["action"])
