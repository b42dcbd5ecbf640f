"""Mutated lists and tables get a verdict, the same one in the catalogue and in training."""

import copy
import io
import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from both_doors import LIMITS, NEEDED_TO_READ, in_catalogue, in_training
from huggingface_hub import HfApi
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from image_dataset import png_of
from recordings import numbered_image

from depi.catalog.find import Candidate
from depi.catalog.inspect import Inspector
from depi.datasets.recording.sources import DatasetSource
from depi.datasets.recording.storages import open_source
from depi.datasets.union.dataset_index import Options, open_part

CAMERA = "observation.images.front"
LISTS = {"v2.1": ("meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl")}
LISTS["v3.0"] = ("meta/info.json", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet")
TABLES = {"v2.1": "data/chunk-000/episode_000001.parquet", "v3.0": "data/chunk-000/file-000.parquet"}

ODD = [
    *(None, True, -1, 0, 1, 2, 7, 41, 10**6, 2**31, 2**53 + 1, 2**63, 10**30, -0.5, 0.1, 1e-20, 1e20, 1e300),
    *(float("nan"), float("inf"), "", "0", "v2.1", "v3.0", "video", "image", "\x00", "\udce9", "é" * 300),
    *([], {}, [[]], [1, 2], [6], {"a": 1}, ["a", "b"], [[[[[[[["a"]]]]]]]]),
    *("data/{episode_index}.parquet", "{chunk_index}/{file_index}", "../{video_key}", "{", "{0}"),
]
ODD_NUMBERS = [None, -1, 0, 1, 2, 3, 7, 39, 41, 10**6, 2**31, 2**62, -(2**63)]
ODD_FLOATS = [None, float("nan"), float("inf"), -float("inf"), -1e-3, 0.0, 1e-20, 1e6 + 1, 3e38]
ODD_TEXTS = [None, "", "x", "x" * 10_001, "\x00\n", "é"]


def with_images(root: Path) -> Path:
    """The same dataset with the camera's images in its tables."""
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][CAMERA]["dtype"] = "image"
    (root / "meta/info.json").write_text(json.dumps(info))
    image = {"bytes": png_of(numbered_image(1)), "path": None}
    for file in root.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.append_column(CAMERA, pa.array([image] * len(table))), file)
    shutil.rmtree(root / "videos")
    return root


class Base:
    """A good dataset in a folder, in which one file at a time is another one."""

    def __init__(self, root, version):
        self.root, self.version = root, version
        self.files = [*LISTS[version], TABLES[version]]
        self.good = {name: (root / name).read_bytes() for name in self.files}

    def outcomes(self, name, content):
        """What both doors say while a file has other content."""
        try:
            (self.root / name).write_bytes(content)
            return in_training(self.root), in_catalogue(self.root)
        finally:
            (self.root / name).write_bytes(self.good[name])


@pytest.fixture(scope="module")
def bases(make_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPI_CACHE", str(folder / "cache"))
        roots = {version: make_dataset(folder / version, version=version, episodes=3) for version in TABLES}
        found = [Base(root, version) for version, root in roots.items()]
        found += [Base(with_images(Path(shutil.copytree(root, f"{root}i"))), v) for v, root in roots.items()]
        for base in found:
            assert in_training(base.root).text == in_catalogue(base.root).text == "taken"
        yield found


def damaged(content: bytes, random: Random) -> bytes:
    """Bytes with some other ones, without some, with some twice, or without the end."""
    data = bytearray(content)
    for _ in range(random.randint(1, 4)):
        # The end of a parquet file is its footer, where a change does most.
        first = max(0, len(data) - 4_000) if random.random() < 0.5 else 0
        place, size = random.randrange(first, max(len(data), 1)), random.randint(1, 16)
        kind = random.choice(["other", "other", "bit", "gone", "twice", "end"])
        if kind == "other":
            data[place : place + 1] = bytes([random.randrange(256)])
        elif kind == "bit" and data:
            data[place] ^= 1 << random.randrange(8)
        elif kind == "gone":
            del data[place : place + size]
        elif kind == "twice":
            data[place:place] = data[place : place + size]
        elif kind == "end":
            del data[place:]
    return bytes(data)


def places(value, path=()):
    """The paths to all values within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def other_json(content: bytes, random: Random) -> bytes:
    """A JSON object with some of its values gone or odd."""
    value = json.loads(content)
    for _ in range(random.randint(1, 2)):
        paths = list(places(value))
        if not paths:
            break
        *path, last = random.choice(paths)
        inner = value
        for key in path:
            inner = inner[key]
        if random.random() < 0.25:
            del inner[last]
        else:
            inner[last] = copy.deepcopy(random.choice(ODD))  # the next change may be inside it
    return json.dumps(value).encode()


def other_lines(content: bytes, random: Random) -> bytes:
    """JSON lines, one of them odd, gone, or there twice."""
    lines = content.splitlines()
    number = random.randrange(len(lines))
    kind = random.choice(["odd", "odd", "odd", "gone", "twice"])
    others = [other_json(lines[number], random)] if kind == "odd" else [lines[number]] * 2
    lines[number : number + 1] = [] if kind == "gone" else others
    return b"\n".join(lines)


def other_table(content: bytes, random: Random) -> bytes:
    """Parquet with a column of other values, of another type, gone or there twice; or other rows or pages."""
    table = pq.read_table(io.BytesIO(content))
    for _ in range(random.randint(1, 2)):
        if table.num_columns and len(table):
            table = changed_table(table, random)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=random.choice([1, 7, 1000]),
        use_dictionary=random.random() < 0.5,
        compression=random.choice(["snappy", "zstd", "none", "gzip"]),
        data_page_version=random.choice(["1.0", "2.0"]),
        store_schema=random.random() < 0.5,
    )
    return buffer.getvalue()


def changed_table(table: pa.Table, random: Random) -> pa.Table:
    place = random.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place)
    kind = random.choice(["values", "values", "values", "type", "type", "gone", "twice", "rows", "name"])
    if kind == "gone":
        return table.remove_column(place)
    if kind == "twice":
        return table.append_column(name, column)
    if kind == "name":
        return table.rename_columns([f"{each}.x" if each == name else each for each in table.column_names])
    if kind == "rows":
        rows = [*range(len(table)), random.randrange(len(table))]
        if random.random() < 0.5:
            random.shuffle(rows)
        return table.take(
            pa.array(rows[: random.choice([1, len(table) // 2, len(table), len(rows)])], pa.int64())
        )
    change = other_type if kind == "type" else other_values
    return table.set_column(place, name, change(column, random))


def other_type(column: pa.ChunkedArray, random: Random) -> pa.Array:
    values, count = column.to_pylist(), len(column)
    makers = [
        lambda: pa.array([str(value) for value in values]),
        lambda: pa.array([[value] for value in values], pa.list_(column.type)),
        lambda: pa.array([{"a": value} for value in values], pa.struct({"a": column.type})),
        lambda: pa.array([str(value) for value in values]).dictionary_encode(),
        lambda: pa.nulls(count),
        lambda: pa.array([True] * count),
        lambda: pa.array([bytes(3)] * count, pa.binary()),
        lambda: pa.array([bytes(3)] * count, pa.binary(3)),
        lambda: pa.array([0] * count, pa.timestamp("s")),
        lambda: pa.array([2**64 - 1] * count, pa.uint64()),
        lambda: pa.array([[("a", 1)]] * count, pa.map_(pa.string(), pa.int64())),
        lambda: pa.array([[[0.0] * 3] * 2] * count),
        lambda: pa.array(np.zeros(count, np.float16)),
        lambda: pa.array([0.5] * count, pa.float64()),
        lambda: pa.array([1] * count, pa.int8()),
        lambda: pa.array([1] * count, pa.decimal128(5)),
    ]
    return random.choice(makers)()


def other_values(column: pa.ChunkedArray, random: Random) -> pa.Array:
    """Some values of a column of numbers, texts, or lists of them."""
    values = column.to_pylist()
    for _ in range(random.randint(1, 3)):
        row = random.randrange(len(values))
        value = values[row]
        if isinstance(value, list) and value and random.random() < 0.75:
            inner = random.randrange(len(value))
            value = [*value[:inner], odd_like(value[inner], random), *value[inner + 1 :]]
        elif isinstance(value, list):
            value = random.choice([[], value[:-1], value * 2, None])
        else:
            value = odd_like(value, random)
        for each in range(row, len(values) if random.random() < 0.2 else row + 1):
            values[each] = value
    try:
        return pa.array(values, column.type)
    except (pa.ArrowException, OverflowError):
        return pa.nulls(len(values), column.type)


def odd_like(value, random: Random):
    if isinstance(value, int | float):
        return random.choice(ODD_NUMBERS if isinstance(value, int) else ODD_FLOATS)
    return random.choice(ODD_TEXTS)


def mutated(base: Base, random: Random) -> tuple[str, bytes]:
    """One of the dataset's files, and another content."""
    name = random.choice(base.files)
    change = {".parquet": other_table, ".jsonl": other_lines, ".json": other_json}[Path(name).suffix]
    return name, (damaged if random.random() < 0.3 else change)(base.good[name], random)


def check(base, name, content):
    trained, listed = base.outcomes(name, content)
    for outcome in (trained, listed):
        for text in (*outcome.reasons, *outcome.left_out.values()):
            assert len(text) <= 500
            assert text.isprintable()
            assert "Error" not in text.replace("UnicodeDecodeError", ""), text
    rules = {reason.partition(":")[0] for reason in listed.reasons}
    if not listed.reasons:
        assert not trained.reasons
        assert trained.left_out.keys() == listed.left_out.keys()
    elif rules & NEEDED_TO_READ:
        assert trained.reasons, listed


def run(bases, count):
    # The default run tries the same ones every time, the long one others.
    @settings(
        max_examples=count,
        derandomize=count == 500,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(base=st.sampled_from(bases), random=st.randoms(use_true_random=False))
    def property_of_mutated_files(base, random):
        name, content = mutated(base, random)
        note(f"{base.root.name}/{name}: {content[:2000]!r}")
        check(base, name, content)

    property_of_mutated_files()


def test_an_episode_whose_images_have_others_between_them_is_left_out(bases):
    base = next(base for base in bases if base.root.name == "v3.0i")
    table = pq.read_table(io.BytesIO(base.good[TABLES["v3.0"]]))
    rows = [*range(10), *range(40, 80), *range(10, 40), *range(80, 120)]
    buffer = io.BytesIO()
    pq.write_table(table.take(pa.array(rows)), buffer)
    for outcome in base.outcomes(TABLES["v3.0"], buffer.getvalue()):
        assert not outcome.reasons
        (reason,) = outcome.left_out.values()
        assert outcome.left_out.keys() == {0}
        assert "the rows of an episode in data/chunk-000/file-000.parquet are not side by side" in reason


@pytest.mark.parametrize("key", ["self", "get", "ignore_metadata_errors", "pop", "to_dict"])
def test_a_card_may_have_fields_of_any_name(hub, make_dataset, tmp_path, key):
    root = make_dataset(tmp_path / "data", episodes=3)
    (root / "README.md").write_text(f"---\nlicense: mit\n{key}: 1\n---\n# Data\n")
    api = HfApi()
    api.create_repo("ann/data", repo_type="dataset")
    api.upload_folder(repo_id="ann/data", folder_path=root, repo_type="dataset")
    row = Inspector(LIMITS)(Candidate("ann/data"))
    assert (row.verdict, row.reasons, row.license) == ("accepted", [], "mit")
    part = open_part(open_source(DatasetSource("ann/data")), Options(max_cameras=3))
    assert part.entry["licence"] == "mit"


def test_mutated_files_get_the_same_verdict_at_both_doors(bases):
    run(bases, 500)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_mutated_files_get_the_same_verdict_at_both_doors(bases):
    run(bases, 20_000)
