"""What a dataset says of itself against its tables: which episodes can be read, and what is remarked on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import REAL, Recording, write_v2, write_v3

from depi.datasets.judging import contents
from depi.datasets.judging.examine import Examined, examine, examine_tables, fetch_tables
from depi.datasets.judging.faults import find_faults
from depi.datasets.judging.reading import table_readable
from depi.datasets.judging.rules import CONTENTS, LEAVING_OUT, OPTIONAL
from depi.datasets.recording import tables
from depi.datasets.recording.local_files import LocalFiles
from depi.datasets.recording.metadata import load_meta
from depi.datasets.recording.sources import DatasetSource
from depi.errors import DatasetError

EPISODES = 6
ONE_TASK = Recording(lengths=(9, 8, 9, 7, 8, 9), cameras=(), tasks=("pick the cube",))
TWO_TASKS = Recording(lengths=ONE_TASK.lengths, cameras=())


@pytest.fixture(scope="module")
def v2(tmp_path_factory) -> Path:
    return write_v2(tmp_path_factory.mktemp("v2") / "data", ONE_TASK)


@pytest.fixture(scope="module")
def v3(tmp_path_factory) -> Path:
    return write_v3(tmp_path_factory.mktemp("v3") / "data", ONE_TASK)


def copy(root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(root, tmp_path / "copy")


def examined(root: Path) -> Examined:
    files = LocalFiles(DatasetSource("a/b", root=root))
    return examine_tables(fetch_tables(files, load_meta(root, "a/b")))


def found(root: Path) -> dict[int, list[str]]:
    """Episode -> the rules that found something, of those that these tests are about."""
    faults: dict[int, list[str]] = {}
    names = {"files_there", "table_readable", "task_listed", *(rule.name for rule in CONTENTS)}
    for fault in examined(root).faults:
        if fault.rule in names:
            faults.setdefault(fault.episode, []).append(fault.rule)
    return faults


def edit(file: Path, column: str, change: Callable[[list], object]) -> None:
    """Change the values of a column of a parquet file, in place or by a new list."""
    table = pq.read_table(file)
    values = table[column].to_pylist()
    values = change(values) or values
    kind = table.schema.field(column).type
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values, kind)), file)


def put(index: int, value: object) -> Callable[[list], None]:
    return lambda values: values.__setitem__(index, value)


def add(amount: int) -> Callable[[list], list]:
    return lambda values: [value + amount for value in values]


def file_of(root: Path, episode: int) -> Path:
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def only_file(root: Path, inside: str = "data") -> Path:
    (file,) = (root / inside).rglob("*.parquet")
    return file


def edit_lines(file: Path, episode: int, **changes: object) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[episode].update(changes)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("recording", [ONE_TASK, TWO_TASKS], ids=["one_task", "two_tasks"])
@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_nothing_is_found_in_a_sound_dataset(tmp_path, write, recording):
    assert found(write(tmp_path / "data", recording)) == {}


def missing(root: Path) -> str:
    file_of(root, 2).unlink()
    return "files_there: data/chunk-000/episode_000002.parquet is missing"


def cut_off(root: Path) -> str:
    file = file_of(root, 2)
    file.write_bytes(file.read_bytes()[:-100])
    return "table_readable: data/chunk-000/episode_000002.parquet cannot be read as parquet"


def too_few_rows(root: Path) -> str:
    file = file_of(root, 2)
    pq.write_table(pq.read_table(file).slice(0, 5), file)
    return "table_readable: data/chunk-000/episode_000002.parquet has 5 rows, 9 were listed"


def other_length_listed(root: Path) -> str:
    edit_lines(root / "meta/episodes.jsonl", 2, length=11)
    return "table_readable: data/chunk-000/episode_000002.parquet has 9 rows, 11 were listed"


def gap(root: Path) -> str:
    edit(file_of(root, 2), "action", put(3, None))
    return "table_readable: column 'action' of data/chunk-000/episode_000002.parquet has gaps"


def words(root: Path) -> str:
    file = file_of(root, 2)
    table = pq.read_table(file)
    at = table.column_names.index("timestamp")
    pq.write_table(table.set_column(at, "timestamp", pa.array(["now"] * len(table))), file)
    return "table_readable: the column timestamp does not hold one number per frame"


def no_such_task(root: Path) -> str:
    edit(file_of(root, 2), "task_index", put(3, 8))
    return "task_listed: task_index 8 has no task"


@pytest.mark.parametrize(
    "how", [missing, cut_off, too_few_rows, other_length_listed, gap, words, no_such_task]
)
def test_an_episode_that_cannot_be_read_does_not_cost_the_others(v2, tmp_path, how):
    root = copy(v2, tmp_path)
    reason = how(root)
    result = examined(root)
    assert list(result.unreadable) == [2]
    assert result.unreadable[2].startswith(reason)
    assert result.recording.meta.episodes.episode_index.tolist() == [0, 1, 3, 4, 5]
    kept = [ONE_TASK.joints(episode)[0] for episode in (0, 1, 3, 4, 5)]
    np.testing.assert_array_equal(result.recording.columns["action"], np.concatenate(kept))
    assert found(root) == {2: [reason.partition(":")[0]]}


def test_rows_of_a_shared_file_that_are_not_as_many_as_listed_cost_one_episode(v3, tmp_path):
    root = copy(v3, tmp_path)
    edit(only_file(root), "episode_index", put(9, 0))
    result = examined(root)
    assert list(result.unreadable) == [0, 1]
    assert "episode 1 has 7 rows in data/chunk-000/file-000.parquet, 8 were listed" in result.unreadable[1]
    kept = [ONE_TASK.joints(episode)[0] for episode in (2, 3, 4, 5)]
    np.testing.assert_array_equal(result.recording.columns["action"], np.concatenate(kept))


def test_a_gap_in_a_shared_file_costs_one_episode(v3, tmp_path):
    root = copy(v3, tmp_path)
    edit(only_file(root), "observation.state", put(20, None))
    result = examined(root)
    assert list(result.unreadable) == [2]
    assert "column 'observation.state' of data/chunk-000/file-000.parquet has gaps" in result.unreadable[2]
    kept = [ONE_TASK.joints(episode)[1] for episode in (0, 1, 3, 4, 5)]
    np.testing.assert_array_equal(result.recording.columns["observation.state"], np.concatenate(kept))


def test_the_search_for_readable_episodes_in_a_shared_file_is_bounded(v3, tmp_path, monkeypatch):
    root = copy(v3, tmp_path)
    edit(only_file(root), "observation.state", lambda values: [None] * len(values))
    tried = []
    convert = tables.column_to_numpy
    monkeypatch.setattr(tables, "MAX_HALVINGS", 3)
    monkeypatch.setattr(
        tables, "column_to_numpy", lambda *args, **kwargs: tried.append(args[2]) or convert(*args, **kwargs)
    )
    with pytest.raises(DatasetError, match="has gaps"):
        examined(root)
    assert tried.count("observation.state") <= 7


def test_no_episode_without_its_files_is_an_error(v2, tmp_path):
    root = copy(v2, tmp_path)
    shutil.rmtree(root / "data")
    with pytest.raises(DatasetError, match=r"episode_000000\.parquet is missing, and every other episode"):
        examined(root)


def test_a_missing_video_costs_its_episode_and_a_lost_camera_none(v21, tmp_path):
    root = copy(v21, tmp_path)
    front, wrist = (root / f"videos/chunk-000/observation.images.{name}" for name in ("front", "wrist"))
    (front / "episode_000001.mp4").unlink()
    result = examined(root)
    assert list(result.unreadable) == [1]
    assert "observation.images.front/episode_000001.mp4 is missing" in result.unreadable[1]
    (front / "episode_000000.mp4").unlink()
    assert examined(root).unreadable == {}
    shutil.rmtree(wrist)
    assert examined(root).unreadable == {}


@pytest.mark.parametrize(
    ("column", "change", "rule"),
    [
        ("frame_index", add(1), "frames_numbered"),
        ("frame_index", put(4, 3), "frames_numbered"),
        ("index", put(4, 99), "index_continues"),
        ("episode_index", add(7), "episode_numbered"),
    ],
)
def test_numbering_that_is_wrong_in_one_file_is_a_remark(v2, tmp_path, column, change, rule):
    root = copy(v2, tmp_path)
    edit(file_of(root, 3), column, change)
    assert found(root) == {3: [rule]}
    result = examined(root)
    assert result.unreadable == {}
    assert not any(fault.leaves_out for fault in result.faults if fault.rule == rule)


def test_a_jump_of_the_index_between_episodes_is_seen_where_they_follow_each_other(v2, tmp_path):
    root = copy(v2, tmp_path)
    for episode in (3, 4, 5):
        edit(file_of(root, episode), "index", add(100))
    assert found(root) == {3: ["index_continues"]}
    file_of(root, 2).unlink()
    assert found(root) == {2: ["files_there"]}


def test_columns_that_number_are_not_needed(v2, tmp_path):
    root = copy(v2, tmp_path)
    for file in root.rglob("episode_*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["frame_index", "index", "episode_index"]), file)
    assert found(root) == {}
    assert examined(root).recording.columns.keys() == {
        "action",
        "observation.state",
        "timestamp",
        "task_index",
    }


def test_a_numbering_column_of_another_kind_is_passed_over(v2, tmp_path):
    root = copy(v2, tmp_path)
    file = file_of(root, 3)
    table = pq.read_table(file)
    at = table.column_names.index("index")
    pq.write_table(table.set_column(at, "index", pa.array([[1, 2]] * len(table))), file)
    assert found(root) == {}


@pytest.mark.parametrize(
    ("column", "change", "text"),
    [
        ("dataset_to_index", put(2, 40), {2: "it has 9 frames", 3: "before end at 40"}),
        ("dataset_from_index", put(2, 3), {2: "it has 9 frames"}),
    ],
)
def test_rows_that_are_not_as_listed_are_a_remark(v3, tmp_path, column, change, text):
    root = copy(v3, tmp_path)
    edit(only_file(root, "meta/episodes"), column, change)
    faults = [fault for fault in examined(root).faults if fault.rule == "rows_as_listed"]
    assert {fault.episode for fault in faults} == set(text)
    assert all(text[fault.episode] in fault.text and not fault.leaves_out for fault in faults)


def test_all_rows_shifted_are_seen_by_the_index(v3, tmp_path):
    root = copy(v3, tmp_path)
    file = only_file(root, "meta/episodes")
    for column in ("dataset_from_index", "dataset_to_index"):
        edit(file, column, add(5))
    assert found(root) == {episode: ["rows_as_listed"] for episode in range(EPISODES)}


def test_rows_that_are_no_numbers_are_as_good_as_not_listed(v3, tmp_path):
    root = copy(v3, tmp_path)
    edit(only_file(root, "meta/episodes"), "dataset_to_index", put(2, -4))
    assert found(root) == {}


def test_another_task_than_listed_leaves_the_episode_out(tmp_path):
    root = write_v2(tmp_path / "data", TWO_TASKS)
    edit(file_of(root, 2), "task_index", lambda values: [1] * len(values))
    (fault,) = [fault for fault in examined(root).faults if fault.rule == "task_matches"]
    assert (fault.episode, fault.leaves_out) == (2, True)
    assert fault.text == "the frames have the task 'drop the cube', listed for the episode is 'pick the cube'"


def test_a_task_that_changes_within_an_episode_is_right_where_both_are_listed(tmp_path):
    root = write_v2(tmp_path / "data", TWO_TASKS)
    edit(file_of(root, 2), "task_index", put(-1, 1))
    assert found(root) == {2: ["task_matches"]}
    edit_lines(root / "meta/episodes.jsonl", 2, tasks=list(TWO_TASKS.tasks))
    assert found(root) == {}


@pytest.mark.parametrize("text", ["", "test", "describe the task", "42"])
def test_a_poor_task_text_among_good_ones_is_a_remark(v2, tmp_path, text):
    root = copy(v2, tmp_path)
    edit(file_of(root, 4), "task_index", lambda values: [1] * len(values))
    with (root / "meta/tasks.jsonl").open("a") as file:
        file.write(json.dumps({"task_index": 1, "task": text}) + "\n")
    edit_lines(root / "meta/episodes.jsonl", 4, tasks=[text])
    assert found(root) == {4: ["task_instructive"]}
    for episode in range(3):
        edit_lines(root / "meta/episodes.jsonl", episode, tasks=[text])
        edit(file_of(root, episode), "task_index", lambda values: [1] * len(values))
    assert found(root) == {}  # the dataset's own fault, which the catalogue flags


def test_one_episode_with_a_task_of_its_own_is_a_remark(v2, tmp_path):
    root = copy(v2, tmp_path)
    with (root / "meta/tasks.jsonl").open("a") as file:
        file.write(json.dumps({"task_index": 1, "task": "fold the towel"}) + "\n")
    edit_lines(root / "meta/episodes.jsonl", 4, tasks=["fold the towel"])
    edit(file_of(root, 4), "task_index", lambda values: [1] * len(values))
    assert found(root) == {4: ["task_shared"]}
    edit_lines(root / "meta/episodes.jsonl", 1, tasks=["fold the towel"])
    edit(file_of(root, 1), "task_index", lambda values: [1] * len(values))
    assert found(root) == {}


def write_statistics(root: Path, change: Callable[[dict, int], None] | None = None) -> None:
    """meta/episodes_stats.jsonl as LeRobot 2.1 writes it, of action and state."""
    lines = []
    for episode in range(EPISODES):
        stats = {}
        for name, values in zip(("action", "observation.state"), ONE_TASK.joints(episode), strict=True):
            kinds = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
            stats[name] = {kind: numbers.tolist() for kind, numbers in kinds.items()} | {
                "count": [len(values)]
            }
        if change is not None:
            change(stats, episode)
        lines.append(json.dumps({"episode_index": episode, "stats": stats}))
    (root / "meta/episodes_stats.jsonl").write_text("\n".join(lines) + "\n")


def scale_state(stats: dict, episode: int) -> None:
    if episode == 2:
        stats["observation.state"]["max"] = [1.1 * value for value in stats["observation.state"]["max"]]


def drop_mean(stats: dict, episode: int) -> None:
    stats["action"]["mean"] = None if episode else "none"


def round_off(stats: dict, episode: int) -> None:
    for name in stats:
        stats[name]["mean"] = [round(value, 2) for value in stats[name]["mean"]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [(None, {}), (round_off, {}), (drop_mean, {}), (scale_state, {2: ["statistics_match"]})],
)
def test_statistics_of_an_episode_that_are_stale_are_a_remark(v2, tmp_path, change, expected):
    root = copy(v2, tmp_path)
    write_statistics(root, change)
    assert found(root) == expected


@pytest.mark.parametrize(
    "text", ["{", "[]\n", '{"episode_index": 1e400, "stats": 3}\n', '{"stats": {"action": [1]}}\n']
)
def test_statistics_that_are_nonsense_say_nothing(v2, tmp_path, text):
    root = copy(v2, tmp_path)
    (root / "meta/episodes_stats.jsonl").write_text(text)
    assert found(root) == {}


def test_stale_statistics_of_v3_are_seen_in_the_columns_and_in_the_file(v3, tmp_path):
    root = copy(v3, tmp_path)
    edit(
        only_file(root, "meta/episodes"), "stats/action/min", lambda values: values[3].__setitem__(1, -500.0)
    )
    stats = json.loads((root / "meta/stats.json").read_text())
    stats["observation.state"]["mean"][4] += 30
    (root / "meta/stats.json").write_text(json.dumps(stats))
    faults = [fault for fault in examined(root).faults if fault.rule == "statistics_match"]
    assert [fault.episode for fault in faults] == [3, 0]
    assert faults[0].text.startswith(
        "the statistics of action are stale: smallest value -500 of number 1, now "
    )
    assert "the statistics of observation.state in meta/stats.json are stale: mean value" in faults[1].text


def test_opening_asks_no_rule_that_only_remarks(v2, tmp_path):
    root = copy(v2, tmp_path)
    edit(file_of(root, 3), "frame_index", add(1))
    read, _ = table_readable(load_meta(root, "a/b"))
    everything, bad = (
        examine(read.meta, read.columns, asked=each).faults for each in (OPTIONAL, LEAVING_OUT)
    )
    assert "frames_numbered" in {fault.rule for fault in everything}
    assert bad == tuple(fault for fault in everything if fault.leaves_out)


@pytest.mark.parametrize(
    "name", ["degrees_one_episode", "degrees_so_follower", "normalized_clean", "radians_other_zero"]
)
def test_real_tables_have_no_fault_of_this_kind(name):
    root = REAL / name
    if not root.is_dir():
        pytest.skip("the real recordings are not here")
    read, unread = table_readable(load_meta(root, "a/b"))
    assert unread == []
    recording = contents.Recording(
        read.meta, read.columns, read.columns["action"], read.columns["observation.state"]
    )
    assert find_faults(recording, CONTENTS) == []
