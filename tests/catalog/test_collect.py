"""The whole command against the embedded Hub: real uploads, real downloads, hostile datasets among them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi

from depi.catalog import collect as collecting
from depi.catalog.catalogue import SCHEMA, read_rows
from depi.catalog.collect import CollectConfig, collect, main
from depi.hub.client import api as client

LISTS = ("dataset_list.json", "dataset_list_valid.json", "bad_dataset_ids.json")
GOOD = ["ann/two_cameras", "bob/version_three", "cid/old_version", "dan/junk_text"]


def nan_action(columns):
    columns["action"][5, 1] = np.nan


def time_stops(columns):
    columns["timestamp"][20:] = columns["timestamp"][19]


def frozen(columns):
    columns["action"][:] = 3.0
    columns["observation.state"][:] = 3.0


def ragged(columns):
    columns["action"] = columns["action"][:, :4]


def edit_info(folder: Path, **changes) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def community(root: Path, make, publish) -> None:
    """Publish the good, the bad and the hostile."""

    def add(repo_id: str, tags=("LeRobot", "so101"), **options) -> Path:
        folder = make(root / repo_id, seed=len(list(root.glob("*/*"))), **options)
        publish(folder, repo_id, tags)
        return folder

    add("ann/two_cameras", cameras=("front", "wrist"), episodes=3)
    add("bob/version_three", version="v3.0", episodes=2, length=60)
    add("cid/old_version", version="v2.0", tags=("LeRobot", "so100"), robot_type=None)
    add("dan/junk_text", task="test")

    add("eve/eval_act_so101")
    add("eve/two_arms", width=12)
    add("eve/nan_action", poison=nan_action)
    add("eve/nan_action_v3", version="v3.0", poison=nan_action)
    add("eve/time_stops", poison=time_stops)
    add("eve/frozen", poison=frozen)
    add("eve/ragged", poison=ragged)
    add("eve/koch", robot_type="koch")
    add("eve/no_camera", cameras=())
    add("eve/too_slow", fps=2)
    add("eve/wrong_counts", total_frames=900)
    add("eve/short_rows", poison=lambda columns: columns.update({k: v[:-1] for k, v in columns.items()}))

    folder = make(root / "eve/video_missing", seed=50)
    shutil.rmtree(folder / "videos")
    publish(folder, "eve/video_missing")
    folder = make(root / "eve/so101_no_info", seed=51)
    (folder / "meta/info.json").unlink()
    publish(folder, "eve/so101_no_info", tags=())

    add("mal/version", codebase_version="v9.9")
    add("mal/escape", data_path="../../../../etc/{episode_chunk}{episode_index}.parquet")
    add("mal/attribute", data_path="data/{episode_index.__class__}.parquet")
    add("mal/huge_numbers", total_frames=10**30)
    add("mal/markup", robot_type="[bold red]koch[/]\x1b]0;title\x07", task="[link=http://x]" * 400)
    folder = make(root / "mal/not_json", seed=60)
    (folder / "meta/info.json").write_text('{"codebase_version": ')
    publish(folder, "mal/not_json")
    folder = make(root / "mal/deep_json", seed=61)
    (folder / "meta/info.json").write_text("[" * 100_000)
    publish(folder, "mal/deep_json")
    folder = make(root / "mal/not_parquet", seed=62)
    for file in folder.glob("data/*/*.parquet"):
        file.write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    publish(folder, "mal/not_parquet")
    folder = make(root / "mal/many_rows", seed=63)
    bomb = pa.table({"action": pa.repeat(0.0, 6_000_000), "timestamp": pa.repeat(0.0, 6_000_000)})
    pq.write_table(bomb, folder / "data/chunk-000/episode_000001.parquet")
    publish(folder, "mal/many_rows")
    folder = make(root / "mal/bad_episodes", seed=64)
    (folder / "meta/episodes.jsonl").write_text('{"episode_index": -1, "length": 40}\n')
    publish(folder, "mal/bad_episodes")

    folder = make(root / "zoe/copy_of_ann", seed=0, cameras=("front", "wrist"), episodes=3)
    publish(folder, "zoe/copy_of_ann")
    add("fay/gated")
    HfApi().update_repo_settings("fay/gated", repo_type="dataset", gated="auto")
    folder = make(root / "gil/untagged_so101_box", seed=70)
    publish(folder, "gil/untagged_so101_box", tags=())
    folder = make(root / "gil/nothing_to_find", seed=71)
    publish(folder, "gil/nothing_to_find", tags=())


@pytest.fixture(scope="module")
def crowd(module_hub, tmp_path_factory, make_dataset, publish):
    """An embedded Hub with the community on it."""
    community(tmp_path_factory.mktemp("community"), make_dataset, publish)
    return module_hub


@pytest.fixture(scope="module")
def collected(crowd, tmp_path_factory):
    """Folder and summary of one call over the whole community."""
    folder = tmp_path_factory.mktemp("ids")
    return folder, collect(CollectConfig(data_ids=folder, workers=4))


def test_candidates_are_listed_and_the_good_accepted_best_first(collected):
    folder, summary = collected
    candidates, valid, bad = (json.loads((folder / name).read_text()) for name in LISTS)
    assert candidates == sorted([*valid, *bad])
    assert "gil/untagged_so101_box" in candidates
    assert "gil/nothing_to_find" not in candidates
    assert set(valid) == {*GOOD, "gil/untagged_so101_box"}
    assert valid[0] == "ann/two_cameras"
    assert valid[-1] == "dan/junk_text"
    assert (summary.found, summary.accepted, summary.failed) == (len(candidates), 5, 0)
    assert summary.rejected == len(bad)


def test_every_rejected_one_has_its_reason(collected):
    bad = json.loads((collected[0] / "bad_dataset_ids.json").read_text())
    front = "videos/chunk-000/observation.images.front/episode_000000.mp4"
    exact = {
        "eve/eval_act_so101": ["not_evaluation: the name eval_act_so101 is that of an evaluation run"],
        "eve/two_arms": [
            "not_bimanual: two arms: action has shape [12], state [12], robot type 'so101_follower'"
        ],
        "eve/nan_action": [
            "tables_readable: no episode can be used: numbers_finite: the action is not a finite number "
            "in 1 of 40 frames"
        ],
        "eve/nan_action_v3": [
            "tables_readable: no episode can be used: numbers_finite: the action is not a finite number "
            "in 1 of 40 frames"
        ],
        "eve/frozen": ["not_frozen: action is the same in all 80 frames"],
        "eve/koch": ["so100_arm: robot type is 'koch', not an SO-100 or SO-101"],
        "eve/no_camera": ["enough_cameras: 0 cameras, at least 1 are needed (--min_cameras)"],
        "eve/too_slow": ["fps_in_range: 2 fps, expected 5 to 120"],
        "eve/wrong_counts": ["counts_match: 900 frames declared, 80 listed, 80 in the tables"],
        "eve/video_missing": [f"files_present: 2 of 2 video files missing, as {front}"],
        "eve/so101_no_info": ["has_info: no meta/info.json among its 8 files"],
        "zoe/copy_of_ann": ["not_duplicate: same actions as ann/two_cameras, published earlier"],
        "fay/gated": ["not_gated: gated: its author grants access on request"],
    }
    assert {repo_id: bad.get(repo_id) for repo_id in exact} == exact
    starts = {
        "eve/time_stops": "tables_readable: no episode can be used: time_increases: time stands still",
        "eve/ragged": "tables_readable: column 'action' of data/chunk-000/episode_000000.parquet",
        "eve/short_rows": "tables_readable: data/chunk-000/episode_000000.parquet has 39 rows",
        "mal/version": "info_readable: codebase_version is 'v9.9'",
        "mal/escape": "info_readable: data_path",
        "mal/attribute": "info_readable: data_path",
        "mal/huge_numbers": "info_readable: total_frames is 1000",
        "mal/markup": "so100_arm: robot type is '[bold red]koch[/] ]0;title', not",
        "mal/not_json": "info_readable: meta/info.json is not valid JSON",
        "mal/deep_json": "info_readable: meta/info.json is not valid JSON",
        "mal/not_parquet": "tables_readable: data/chunk-000/episode_000000.parquet cannot be read as parquet",
        "mal/many_rows": "tables_readable: the tables have more than 5000000 rows",
        "mal/bad_episodes": "metadata_readable: episode_index is -1",
    }
    assert {repo_id: bad[repo_id][0][: len(start)] for repo_id, start in starts.items()} == starts
    assert set(bad) == {*exact, *starts}


def test_the_catalogue_has_one_row_with_everything_for_each_candidate(collected):
    folder, _ = collected
    table = pq.read_table(folder / "catalog.parquet")
    assert table.schema.equals(SCHEMA)
    rows = {row.repo_id: row for row in read_rows(folder)}
    assert sorted(rows) == json.loads((folder / "dataset_list.json").read_text())
    good = rows["ann/two_cameras"]
    assert (good.verdict, good.reasons, good.codebase_version) == ("accepted", [], "v2.1")
    assert (good.robot_type, good.fps, good.episodes, good.frames) == ("so101_follower", 30.0, 3, 120)
    assert (good.cameras, good.num_cameras) == (["observation.images.front", "observation.images.wrist"], 2)
    assert (good.tasks, good.license, good.joint_convention) == (
        ["Pick up the cube."],
        "apache-2.0",
        "normalized",
    )
    assert good.revision == HfApi().dataset_info("ann/two_cameras").sha
    assert good.last_modified is not None
    assert good.checked_at is not None
    assert good.flags == ["approximate_joints: degrees right to about 2%"]
    assert rows["dan/junk_text"].flags[0] == "junk_task_text: task text 'test'"
    copy = rows["zoe/copy_of_ann"]
    assert copy.fingerprint == good.fingerprint
    assert copy.duplicate_of == "ann/two_cameras"
    assert rows["eve/nan_action"].codebase_version == "v2.1"
    assert rows["eve/nan_action"].score is None
    assert len({row.fingerprint for row in rows.values() if row.verdict == "accepted"}) == 5


def test_text_from_datasets_is_bounded_and_printable(collected):
    text = (collected[0] / "bad_dataset_ids.json").read_text()
    assert "\x1b" not in text
    assert "\x07" not in text
    for row in read_rows(collected[0]):
        for value in (row.robot_type, *(row.tasks or ()), *(row.cameras or ()), *row.reasons):
            assert value is None or (len(value) <= 500 and value.isprintable())


def test_nothing_but_the_cache_and_the_lists_is_written_and_no_video_is_fetched(collected):
    from huggingface_hub import constants

    assert sorted(path.name for path in collected[0].iterdir()) == sorted(
        [*LISTS, "catalog.parquet", "episodes.parquet"]
    )
    assert list(Path(constants.HF_HUB_CACHE).rglob("*.parquet"))
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.mp4"))


def test_a_second_call_asks_no_repository_and_gives_the_same_files(collected, monkeypatch):
    folder, first = collected
    before = {name: (folder / name).read_bytes() for name in LISTS}
    rows = read_rows(folder)

    def not_again(*args, **kwargs):
        raise AssertionError(f"asked for {args}")

    for name in ("repo_info", "download_file", "download_files"):
        monkeypatch.setattr(client, name, not_again)
    second = collect(CollectConfig(data_ids=folder, workers=4))
    assert second.reused == first.found
    assert (second.accepted, second.rejected, second.failed) == (first.accepted, first.rejected, 0)
    assert {name: (folder / name).read_bytes() for name in LISTS} == before
    assert read_rows(folder) == rows


def test_the_order_of_completion_does_not_matter(crowd, collected, tmp_path):
    collect(CollectConfig(data_ids=tmp_path, workers=1))
    for name in LISTS:
        assert (tmp_path / name).read_bytes() == (collected[0] / name).read_bytes()


def test_the_printed_summary_shows_numbers_and_reasons_and_no_markup_of_strangers(
    collected, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setattr(collecting, "SHOWN", 100)
    assert main([f"--data_ids={collected[0]}"]) == 0
    out = capsys.readouterr().out
    assert "[bold red]koch[/] ]0;title" in out
    assert "not_duplicate" in out
    assert "numbers_finite" in out
    assert "eve/video_missing" in out


def test_json_prints_one_machine_readable_line(collected, capsys):
    assert main([f"--data_ids={collected[0]}", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["accepted"] == 5
    assert summary["ways"]["tag so101"]["accepted"] == 3
    assert summary["ways"]["name so101"] == {"found": 3, "alone": 2, "accepted": 1}
    assert summary["rejected_by_rule"]["tables_readable"] >= 2
    assert summary["reasons"]["eve/too_slow"] == ["fps_in_range: 2 fps, expected 5 to 120"]
    assert summary["failures"] == {}


def test_flags_narrow_tune_and_switch_off(crowd, tmp_path):
    flags = [f"--data_ids={tmp_path}", "--author=eve", "--min_fps=1", "--disable_rules=[not_evaluation]"]
    assert main(flags) == 0
    # Declared 2 fps is in range now, and the next tier finds that it is not true.
    bad = json.loads((tmp_path / "bad_dataset_ids.json").read_text())
    assert bad["eve/too_slow"] == ["timestamps_in_step: frames are 0.03333 s apart, 2 fps means 0.5 s"]
    assert json.loads((tmp_path / "dataset_list_valid.json").read_text()) == ["eve/eval_act_so101"]
    assert all(
        repo_id.startswith("eve/") for repo_id in json.loads((tmp_path / "dataset_list.json").read_text())
    )


def test_other_thresholds_judge_again(crowd, tmp_path):
    config = {"data_ids": tmp_path, "author": "ann"}
    assert collect(CollectConfig(**config)).accepted == 1
    second = collect(CollectConfig(**config, min_cameras=3))
    assert (second.accepted, second.reused) == (0, 0)
    assert read_rows(tmp_path)[0].reasons == [
        "enough_cameras: 2 cameras, at least 3 are needed (--min_cameras)"
    ]
    assert collect(CollectConfig(**config, min_cameras=3)).reused == 1
    assert collect(CollectConfig(**config, min_cameras=3, refresh=True)).reused == 0


def test_ids_from_a_file_and_one_that_is_not_there(crowd, tmp_path):
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(["bob/version_three", "nobody/nothing", "bob/version_three"]))
    config = CollectConfig(data_ids=tmp_path / "out", repo_ids=ids)
    summary = collect(config)
    assert (summary.found, summary.accepted, summary.rejected) == (2, 1, 1)
    (reason,) = json.loads((tmp_path / "out/bad_dataset_ids.json").read_text())["nobody/nothing"]
    assert reason.startswith("reachable: ")
    assert "nobody/nothing" in reason
    again = collect(config)
    assert (again.found, again.reused) == (2, 1)


def test_limit_takes_the_first_of_the_sorted_candidates(crowd, tmp_path):
    collect(CollectConfig(data_ids=tmp_path, limit=2))
    assert json.loads((tmp_path / "dataset_list.json").read_text()) == [
        "ann/two_cameras",
        "bob/version_three",
    ]


def test_only_what_changed_is_inspected_again(hub, tmp_path, make_dataset, publish, monkeypatch):
    for number, name in enumerate(("one", "two", "three")):
        publish(make_dataset(tmp_path / name, seed=number), f"ann/so101_{name}")
    out = tmp_path / "out"
    assert collect(CollectConfig(data_ids=out)).accepted == 3
    edit_info(tmp_path / "two", fps=300)
    publish(tmp_path / "two", "ann/so101_two")
    asked = []
    ask = client.repo_info
    monkeypatch.setattr(
        client, "repo_info", lambda repo_id, **kw: asked.append(repo_id) or ask(repo_id, **kw)
    )
    summary = collect(CollectConfig(data_ids=out))
    assert asked == ["ann/so101_two"]
    assert (summary.accepted, summary.rejected, summary.reused) == (2, 1, 2)
    bad = json.loads((out / "bad_dataset_ids.json").read_text())
    assert bad == {"ann/so101_two": ["fps_in_range: 300 fps, expected 5 to 120"]}


def test_access_that_was_granted_since_is_noticed(hub, tmp_path, make_dataset, publish, monkeypatch):
    publish(make_dataset(tmp_path / "open", seed=1), "ann/so101_open")
    publish(make_dataset(tmp_path / "gated", seed=2), "bob/so101_gated")
    HfApi().update_repo_settings("bob/so101_gated", repo_type="dataset", gated="manual")
    config = CollectConfig(data_ids=tmp_path / "out", disable_rules=["not_gated"])
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    first = collect(config)
    assert (first.accepted, first.rejected, first.rejected_by_rule) == (1, 1, {"reachable": 1})
    monkeypatch.setenv("HF_TOKEN", hub.write_token)
    second = collect(config)
    assert (second.accepted, second.rejected, second.reused) == (2, 0, 1)
