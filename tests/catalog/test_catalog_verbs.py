"""`depi catalog show`, `stats` and `diff`, and the flags of `depi collect-ids` that choose and order."""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import draccus
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depi import cli
from depi.catalog import collect as collecting
from depi.catalog.catalogue import CATALOG_FILE, SCHEMA, Row, load_catalog, read_rows, write_catalog
from depi.catalog.collect import CollectConfig, collect
from depi.catalog.duplicates import pack
from depi.catalog.episodes import add_verdicts, verdicts_of
from depi.catalog.score import WEIGHTS
from depi.datasets.judging.faults import Fault
from depi.datasets.union.lists import read_bad_episodes
from depi.errors import UserError


@dataclasses.dataclass
class LeRobotEpisodes:
    """The field of LeRobot's DatasetConfig."""

    episodes: list[int] | None = None


CREATED = datetime(2025, 6, 1, tzinfo=UTC)
ROWS = [
    Row(
        "ann/cube",
        "accepted",
        revision="a" * 40,
        codebase_version="v2.1",
        robot_type="so101_follower",
        joint_convention="normalized",
        fps=30.0,
        cameras=["observation.images.front", "observation.images.wrist"],
        num_cameras=2,
        episodes=50,
        frames=54_000,
        tasks=["Pick up the [bold]cube[/]."],
        license="apache-2.0",
        bimanual=False,
        evaluation=False,
        created_at=CREATED,
        action_min=[-30.0, -90, 0, 1, 2, 3],
        smoothness=0.9,
        episode_hashes=pack(np.arange(50, dtype=np.uint64)),
        score=0.8,
        rules_version="2",
    ),
    Row(
        "bob/all:sets/box", "accepted", codebase_version="v3.0", fps=29.97, episodes=1, frames=100, score=0.1
    ),
    Row(
        "cid/copy",
        "rejected",
        codebase_version="v2.1",
        reasons=["not_duplicate: same actions as ann/cube, published earlier"],
        duplicate_of="ann/cube",
    ),
    Row(
        "dan/two",
        "rejected",
        bimanual=True,
        reasons=["enough_cameras: 0 cameras", "so100_arm: robot type is '[x]'"],
    ),
    Row("eve/away", "failed", reasons=["not inspected: the Hub broke off"]),
]


def changed(row: Row, **fields) -> Row:
    return dataclasses.replace(row, **fields)


@pytest.fixture
def data_ids(tmp_path: Path) -> Path:
    write_catalog(tmp_path / "ids", ROWS, {"rules_version": "2"})
    return tmp_path / "ids"


def depi(*args: str) -> int:
    return cli.main(["catalog", *args])


def test_show_prints_everything_known_of_one_dataset(data_ids, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert depi("show", "ann/cube", f"--data_ids={data_ids}") == 0
    out = capsys.readouterr().out
    for text in ("ann/cube", "a" * 40, "2025-06-01", "Pick up the [bold]cube[/].", "shoulder_lift -90"):
        assert text in out
    assert "cid/copy" in out
    assert "length 0.91" in out


def test_show_as_json_has_every_column(data_ids, capsys):
    assert depi("show", "ann/cube", f"--data_ids={data_ids}", "--json") == 0
    known = json.loads(capsys.readouterr().out)
    assert set(SCHEMA.names) - {"judged"} | {"faults"} <= set(known)
    assert (known["created_at"], known["episode_hashes"]) == (CREATED.isoformat(), 50)
    assert known["copies"] == ["cid/copy"]
    assert set(known["score_parts"]) == set(WEIGHTS)
    assert depi("show", "dan/two", f"--data_ids={data_ids}", "--json") == 0
    rejected = json.loads(capsys.readouterr().out)
    assert rejected["reasons"] == ROWS[3].reasons
    assert "score_parts" not in rejected
    assert depi("show", "bob/all:sets/box", f"--data_ids={data_ids}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["fps"] == 29.97


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["show", "ann/cubes"], "ann/cubes is not in the catalogue of 5 datasets; there is ann/cube"),
        (["show", "zz\u202ez"], "zz\\u202ez is not in the catalogue of 5 datasets"),
        (["show", "bob/all"], "bob/all is a collection of 1 datasets: name one as bob/all:FOLDER"),
        (["show"], "depi catalog show needs a dataset"),
        (["show", "ann/cube", "--no_such=1"], "no_such"),
        (["stat"], "depi catalog has no verb 'stat': choose one of show, export, stats, diff"),
        (["diff", "{ids}"], "depi catalog diff needs two catalogues"),
        (["diff", "{ids}", "{ids}/absent"], "there is no catalogue at"),
        (["diff", "{ids}", "{ids}/dataset_list.json"], "cannot be read"),
        (["stats", "--data_ids={ids}/absent"], "`depi collect-ids` writes one"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_sentence(data_ids, capsys, args, message):
    args = [arg.replace("{ids}", str(data_ids)) for arg in args]
    if args[0] == "show":
        args.append(f"--data_ids={data_ids}")
    assert depi(*args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.isascii()
    assert error.count("\n") == 1


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A catalogue that judged the episodes of one dataset."""
    faults = [
        Fault("numbers_finite", 3, "the action is not a finite number", leaves_out=True, begin=5, end=9),
        Fault("time_told", 3, "a remark", leaves_out=False),
        Fault("time_told", 4, "a remark", leaves_out=False),
    ]
    row = changed(ROWS[0])
    add_verdicts(row, verdicts_of([0, 3, 4], [100, 50, 70], faults))
    write_catalog(tmp_path / "judged", [row, *ROWS[1:]], {})
    return tmp_path / "judged"


def test_episodes_are_written_as_a_table_and_read_for_training(judged):
    table = pq.read_table(judged / "episodes.parquet").to_pylist()
    assert [(row["episode"], row["frames"], row["bad"]) for row in table] == [
        (0, 100, False),
        (3, 50, True),
        (4, 70, False),
    ]
    assert table[1]["faults"] == [
        "numbers_finite: the action is not a finite number",
        "time_told: a remark",
    ]
    assert (table[1]["begin"], table[1]["end"], table[1]["leaves_out"]) == (
        [5, None],
        [9, None],
        [True, False],
    )
    assert read_bad_episodes(judged) == {
        ("ann/cube", "a" * 40): {3: "numbers_finite: the action is not a finite number"}
    }
    (row, *_) = load_catalog(judged)
    assert (row.bad_episodes, row.good_frames, row.num_remarks) == (1, 170, 2)


def test_show_names_the_episodes_with_faults(judged, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert depi("show", "ann/cube", f"--data_ids={judged}") == 0
    out = capsys.readouterr().out
    assert "episode 3 (left out): numbers_finite: the action is not a finite number (frames 5 to 8)" in out
    assert "episode 4: time_told: a remark" in out
    assert depi("show", "ann/cube", f"--data_ids={judged}", "--json") == 0
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert [(one["episode"], one["bad"]) for one in faults] == [(3, True), (4, False)]


def test_export_prints_what_lerobot_takes(judged, capsys):
    assert depi("export", "ann/cube", f"--data_ids={judged}") == 0
    assert draccus.parse(
        LeRobotEpisodes, args=[f"--episodes={capsys.readouterr().out.strip()}"]
    ).episodes == [0, 4]
    assert depi("export", f"--data_ids={judged}") == 0
    assert json.loads(capsys.readouterr().out) == {"ann/cube": {"revision": "a" * 40, "episodes": [0, 4]}}
    assert depi("export", "cid/copy", f"--data_ids={judged}") == 2
    assert (
        "the episodes of cid/copy were not judged: it is rejected (not_duplicate" in capsys.readouterr().err
    )


def test_damaged_episodes_are_said(judged):
    (judged / "episodes.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"episodes\.parquet cannot be read .*: collect it again"):
        read_bad_episodes(judged)


def test_help_names_the_verbs(capsys):
    assert depi("--help") == 0
    assert "diff OLD NEW" in capsys.readouterr().out
    assert depi() == 2


def test_stats_count_by_everything(data_ids, capsys, monkeypatch):
    assert depi("stats", str(data_ids), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["datasets"] == 5
    assert found["accepted"] == {
        "accepted": 2,
        "episodes": 51,
        "bad episodes": 0,
        "frames": 54_100,
        "hours": 0.5,
    }
    assert found["verdict"] == {"accepted": 2, "rejected": 2, "failed": 1}
    assert found["rule"] == {"enough_cameras": 1, "not_duplicate": 1, "so100_arm": 1}
    assert found["kinds"]["version"] == {
        "not known": {"accepted": 0, "all": 2},
        "v2.1": {"accepted": 1, "all": 2},
        "v3.0": {"accepted": 1, "all": 1},
    }
    assert found["kinds"]["fps"]["29.97"] == {"accepted": 1, "all": 1}
    assert found["kinds"]["arms"] == {
        "not known": {"accepted": 1, "all": 3},
        "1": {"accepted": 1, "all": 1},
        "2": {"accepted": 0, "all": 1},
    }
    assert found["kinds"]["evaluation run"]["no"] == {"accepted": 1, "all": 1}
    assert set(found["kinds"]) == {
        *("version", "joint convention", "fps", "cameras"),
        *("arms", "evaluation run", "licence", "robot type"),
    }
    monkeypatch.setenv("COLUMNS", "120")
    assert depi("stats", f"--data_ids={data_ids}") == 0
    out = capsys.readouterr().out
    assert "54,100" in out
    assert "not_duplicate" in out


def test_diff_of_equal_catalogues_is_empty_whatever_the_hour(data_ids, tmp_path, capsys):
    later = [changed(row, checked_at=datetime.now(UTC), score=0.5, downloads=7) for row in reversed(ROWS)]
    write_catalog(tmp_path / "later", later, {})
    assert depi("diff", str(data_ids), str(tmp_path / "later")) == 0
    assert capsys.readouterr().out == "0 added, 0 removed, 0 changed\n"


def test_diff_tells_what_changed_and_why(data_ids, tmp_path, capsys):
    later = [
        changed(ROWS[0], revision="b" * 40),
        changed(ROWS[2], verdict="accepted", reasons=[], duplicate_of=None),
        changed(ROWS[3], reasons=["enough_cameras: 0 cameras"]),
        ROWS[4],
        Row("zoe/new", "rejected", reasons=["has_info: no meta/info.json"]),
    ]
    write_catalog(tmp_path / "later", later, {})
    paths = [str(data_ids / CATALOG_FILE), str(tmp_path / "later")]
    assert depi("diff", *paths) == 1
    assert capsys.readouterr().out.splitlines() == [
        "~ ann/cube: accepted, commit aaaaaaaa -> bbbbbbbb",
        "- bob/all:sets/box: accepted",
        "~ cid/copy: rejected (not_duplicate: same actions as ann/cube, published earlier) -> accepted",
        "~ dan/two: rejected (enough_cameras: 0 cameras; so100_arm: robot type is '[x]')"
        " -> rejected (enough_cameras: 0 cameras)",
        "+ zoe/new: rejected (has_info: no meta/info.json)",
        "1 added, 1 removed, 3 changed",
    ]
    assert depi("diff", *paths, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert list(found["added"]) == ["zoe/new"]
    assert list(found["removed"]) == ["bob/all:sets/box"]
    assert found["changed"]["cid/copy"]["new"] == {"verdict": "accepted", "reasons": [], "revision": None}


def test_a_catalogue_of_an_earlier_version_can_be_read(data_ids, tmp_path):
    table = pq.read_table(data_ids / CATALOG_FILE)
    older = tmp_path / "older"
    older.mkdir()
    pq.write_table(table.drop_columns(["path", "smoothness", "near_duplicate_of"]), older / CATALOG_FILE)
    assert load_catalog(older) == [changed(row, smoothness=None) for row in ROWS]
    assert read_rows(older, {"rules_version": "3"}) == []


@pytest.mark.parametrize("columns", [{"repo_id": ["a/a"]}, {name: [[1]] for name in SCHEMA.names}])
def test_another_table_is_no_catalogue(tmp_path, columns):
    pq.write_table(pa.table(columns), tmp_path / CATALOG_FILE)
    with pytest.raises(UserError, match=r"catalog\.parquet cannot be read .*: remove it, or run"):
        load_catalog(tmp_path)


@pytest.fixture(scope="module")
def crowd(module_hub, tmp_path_factory, make_dataset, publish):
    """Five datasets that differ in length and licence."""
    root = tmp_path_factory.mktemp("crowd")
    for number in range(5):
        folder = make_dataset(root / str(number), seed=number, episodes=1 + number, length=60)
        publish(folder, f"ann/so101_{number}")
    folder = make_dataset(root / "unlicensed", seed=9)
    publish(folder, "bob/so101_unlicensed")
    from huggingface_hub import HfApi

    HfApi().upload_file(
        path_or_fileobj=b"# no licence\n",
        path_in_repo="README.md",
        repo_id="bob/so101_unlicensed",
        repo_type="dataset",
    )
    return module_hub


def test_top_lists_the_best_and_judges_all(crowd, tmp_path, capsys):
    assert collecting.main([f"--data_ids={tmp_path}", "--top", "2"]) == 0
    assert "the best 2 of 6 accepted (--top)" in capsys.readouterr().out
    valid = json.loads((tmp_path / "dataset_list_valid.json").read_text())
    assert valid == ["ann/so101_4", "ann/so101_3"]
    rows = read_rows(tmp_path)
    assert [row.verdict for row in rows] == ["accepted"] * 6
    assert [row.repo_id for row in rows][:2] == valid
    assert json.loads((tmp_path / "bad_dataset_ids.json").read_text()) == {}
    again = collect(CollectConfig(data_ids=tmp_path, top=100))
    assert (again.reused, again.accepted, again.listed) == (6, 6, 6)
    assert len(json.loads((tmp_path / "dataset_list_valid.json").read_text())) == 6


def test_a_licence_can_be_asked_for(crowd, tmp_path):
    assert collecting.main([f"--data_ids={tmp_path}", "--licenses=[apache-2.0,mit]"]) == 0
    bad = json.loads((tmp_path / "bad_dataset_ids.json").read_text())
    reason = "license_allowed: no licence given, wanted apache-2.0, mit (--licenses)"
    assert bad == {"bob/so101_unlicensed": [reason]}


def test_what_was_measured_is_in_the_rows(crowd, tmp_path):
    collect(CollectConfig(data_ids=tmp_path))
    (row,) = [row for row in read_rows(tmp_path) if row.repo_id == "ann/so101_2"]
    assert (row.camera_sizes, row.num_tasks, row.bimanual, row.evaluation) == (["64x48"], 1, False, False)
    assert row.downloads is not None
    assert row.likes is not None
    for low, q01, q99, high in zip(
        row.action_min, row.action_q01, row.action_q99, row.action_max, strict=True
    ):
        assert low <= q01 < q99 <= high
    assert row.action_max[2] == pytest.approx(97.4)  # degrees, where 100 was recorded
    assert row.motion > 1
    assert 0 < row.smoothness <= 1
    assert 0 <= row.idle < 1
    assert (row.lag, row.gripper_range > 10) == (0.0, True)
    assert len(row.episode_hashes) == 8 * 3


def test_rules_from_a_file_hold_unless_a_flag_says_otherwise(crowd, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text("min_episodes: 4\nlicenses: [apache-2.0]\ndisable_rules: [license_allowed]\n")
    out = tmp_path / "out"
    assert collecting.main([f"--data_ids={out}", f"--rules={rules}"]) == 0
    assert json.loads((out / "dataset_list_valid.json").read_text()) == ["ann/so101_4", "ann/so101_3"]
    assert collecting.main([f"--data_ids={out}", "--rules", str(rules), "--min_episodes=3"]) == 0
    assert len(json.loads((out / "dataset_list_valid.json").read_text())) == 3
    flags = [f"--data_ids={out}", f"--rules={rules}", "--disable-rules=[enough_episodes]"]
    assert collecting.main(flags) == 0
    bad = json.loads((out / "bad_dataset_ids.json").read_text())
    assert list(bad) == ["bob/so101_unlicensed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_camera: 2", "has 'min_camera', which is none of min_cameras, "),
        ("output_dir: /tmp", "has 'output_dir', which is none of"),
        ("min_cameras: many", r"min_cameras: Couldn't parse 'many' into an? int"),
        ("min_fps: .nan", "--min_fps is NaN"),
        ("disable_rules: [no_such]", "there is no rule no_such"),
        ("- min_cameras", "is not a list of `threshold: value` lines"),
        ("", "is not a list of `threshold: value` lines"),
        ("min_cameras: [1", "is not valid YAML"),
    ],
)
def test_a_rules_file_is_checked(tmp_path, text, message):
    rules = tmp_path / "rules.yaml"
    rules.write_text(text)
    with pytest.raises(UserError, match=message):
        collecting.main([f"--rules={rules}", f"--data_ids={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_rules_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot read --rules="):
        collecting.main([f"--rules={tmp_path / 'absent.yaml'}"])


@pytest.mark.parametrize("name", ["strict", "lenient"])
def test_the_rules_that_come_with_depi_are_sound(name, capsys):
    path = Path(__file__).parents[2] / "configs" / "catalog" / f"{name}.yaml"
    assert collecting.main([f"--rules={path}", "--list-rules"]) == 0
    assert "not_near_duplicate" in capsys.readouterr().out


def test_top_must_be_something():
    with pytest.raises(UserError, match="--top must be at least 1, not 0"):
        CollectConfig(top=0)
