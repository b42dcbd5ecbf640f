"""A list of datasets on the Hub, from a catalogue's list to what training reads."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import Recording, write_v2, write_v3
from vlm_server import GOOD, serving

from depi.annotate.annotate import main
from depi.annotate.episode_journal import read_results
from depi.datasets.recording.sources import DatasetSource
from depi.datasets.samples.annotations import read_annotations
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.errors import UserError
from depi.hub.client.api import upload_folder
from depi.training.config import DatasetConfig, TrainConfig
from depi.training.data import training_stream

NAMES = ("ann/old", "ann/new", "bob/last")


def publish(root: Path, repo_id: str) -> str:
    return upload_folder(root, repo_id, repo_type="dataset", commit_message="Record", tag=None)


@pytest.fixture
def data_ids(hub, tmp_path, monkeypatch) -> Path:
    """A list with its catalogue, as `depi collect-ids` leaves them, of datasets of v2.1, v3.0 and v2.1."""
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))
    roots = [
        write_v2(tmp_path / "old", Recording(lengths=(5, 6), tasks=("test",))),
        write_v3(tmp_path / "new", Recording(lengths=(6, 4), tasks=("test",), seed=1)),
        write_v2(tmp_path / "last", Recording(lengths=(5,), tasks=("test",), seed=2)),
    ]
    folder = tmp_path / "data_ids"
    folder.mkdir()
    commits = [publish(root, name) for root, name in zip(roots, NAMES, strict=True)]
    pq.write_table(pa.table({"repo_id": list(NAMES), "revision": commits}), folder / "catalog.parquet")
    (folder / "dataset_list_valid.json").write_text(json.dumps(NAMES))
    return folder


def annotate(data_ids: Path, url: str, *flags: str) -> int:
    given = {"repo_ids": data_ids / "dataset_list_valid.json", "annotations": data_ids.parent / "out"}
    words = [f"--{name}={value}" for name, value in {**given, "base_url": url, "view_episodes": 1}.items()]
    return main([*words, "--json", *flags])


def test_a_list_is_annotated_part_by_part_and_training_reads_it(data_ids, tmp_path, capsys, caplog):
    out = tmp_path / "out"
    with serving() as server:
        assert annotate(data_ids, server.url, "--start=1", "--end=2") == 0
        assert [path.name for path in out.glob("*/*.parquet")] == ["new.parquet"]
        assert annotate(data_ids, server.url) == 0
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(each["datasets"], each["done"], each["reused"]) for each in said] == [(1, 2, 0), (3, 3, 2)]
        assert server.of_stage("instruction") == 5
        revisions = dict(zip(NAMES, catalogued(data_ids), strict=True))
        assert {name: read_annotations(out, name)[1]["revision"] for name in NAMES} == revisions

        sources = [DatasetSource(name, revisions[name]) for name in NAMES]
        dataset = MultiLeRobotDataset(sources, chunk_size=3, image_size=64)
        assert tasks(dataset, use_annotated_tasks=False, annotations=out) == {"test"}
        assert tasks(dataset, use_annotated_tasks=True, annotations=out) == {GOOD}

        # One dataset is recorded again, and the catalogue judges its new commit.
        again = write_v2(tmp_path / "again", Recording(lengths=(5, 6, 7), tasks=("pick a cube",), seed=3))
        revisions["ann/old"] = publish(again, "ann/old")
        newer = MultiLeRobotDataset(
            [DatasetSource(name, revisions[name]) for name in NAMES], chunk_size=3, image_size=64
        )
        tasks(newer, use_annotated_tasks=True, annotations=out)
        assert (
            "1 of 3 datasets were annotated at another revision than the one in use: ann/old" in caplog.text
        )
        table = pa.table({"repo_id": list(NAMES), "revision": list(revisions.values())})
        pq.write_table(table, data_ids / "catalog.parquet")
        server.asked.clear()
        assert annotate(data_ids, server.url) == 0
        assert server.of_stage("instruction") == 3, "all of the changed one, none of the others"
    said = json.loads(capsys.readouterr().out)
    assert list(said["changed"]) == ["ann/old"]
    assert "ann/old was annotated at revision" in caplog.text
    rows, provenance = read_annotations(out, "ann/old")
    assert provenance["revision"] == revisions["ann/old"]
    assert [(row.original_task, row.task) for row in rows] == [("pick a cube", GOOD)] * 3


def catalogued(data_ids: Path) -> list[str]:
    return pq.read_table(data_ids / "catalog.parquet")["revision"].to_pylist()


def tasks(dataset: MultiLeRobotDataset, **flags) -> set[str]:
    """The texts of all samples of a training with these flags."""
    draws = {"time_sampling_beta_alpha": 1.5, "time_sampling_beta_beta": 1.0, "time_sampling_scale": 0.999}
    policy = SimpleNamespace(
        type="depi_pi0", chunk_size=3, max_action_dim=8, time_sampling_offset=0.001, **draws
    )
    stream = training_stream(dataset, TrainConfig(dataset=DatasetConfig(**flags)), policy, "train")
    return {stream[position]["task"] for position in range(dataset.num_frames)}


def test_what_cannot_be_read_is_named_and_costs_the_others_nothing(data_ids, tmp_path, capsys):
    root = write_v2(tmp_path / "gone", Recording(lengths=(5, 6), tasks=("test",)))
    (root / "videos/chunk-000/observation.images.front/episode_000001.mp4").unlink()
    publish(root, "eve/no_video")
    names = ["eve/none", "eve/no_video", "ann/new", "eve/../up"]
    (data_ids / "dataset_list_valid.json").write_text(json.dumps(names))
    with serving() as server:
        assert annotate(data_ids, server.url) == 3
    said = json.loads(capsys.readouterr().out)
    assert set(said["dataset_failures"]) == {"eve/none", "eve/../up"}
    assert "eve/none" in said["dataset_failures"]["eve/none"]
    assert list(said["failures"]["eve/no_video"]) == ["1"]
    assert said["done"] == 3
    assert {path.name for path in (tmp_path / "out").rglob("*.*") if path.is_file()} == {
        f"{name}.{suffix}" for name in ("new", "no_video") for suffix in ("json", "jsonl", "parquet")
    }


def test_many_datasets_that_cannot_be_read_are_counted_and_the_first_named(data_ids, tmp_path, capsys):
    names = [f"eve/../up{number}" for number in range(13)]
    (data_ids / "dataset_list_valid.json").write_text(json.dumps(names))
    assert annotate(data_ids, "", "--backend=rules", "--json=false") == 3
    shown = capsys.readouterr().out
    assert re.search(r"datasets not read .* 13 ", shown)
    assert len(re.findall(r"^eve/../up\d+: ", shown, re.MULTILINE)) == 10
    assert "and 3 more; --json names all" in shown


def test_an_empty_list_and_an_empty_part_are_one_sentence(data_ids):
    for start in (3, 9):
        with pytest.raises(UserError, match=rf"--start={start} --end=None leave nothing"):
            annotate(data_ids, "http://127.0.0.1:9/v1", f"--start={start}")
    (data_ids / "dataset_list_valid.json").write_text("[]")
    with pytest.raises(UserError, match="lists no dataset"):
        annotate(data_ids, "http://127.0.0.1:9/v1")


def test_a_damaged_catalogue_is_one_sentence(data_ids):
    for content in (b"PAR1 and nothing else", b""):
        (data_ids / "catalog.parquet").write_bytes(content)
        with pytest.raises(UserError, match=r"catalog.parquet cannot be read .*: collect it again with"):
            annotate(data_ids, "http://127.0.0.1:9/v1")
    pq.write_table(pa.table({"repo_id": list(NAMES)}), data_ids / "catalog.parquet")
    with pytest.raises(UserError, match=r"catalog.parquet cannot be read .*no column revision"):
        annotate(data_ids, "http://127.0.0.1:9/v1")


def test_two_revisions_in_turn_keep_their_own_answers(data_ids, tmp_path):
    """A person goes back to the first commit: what was answered about it is not asked again."""
    first = catalogued(data_ids)[0]
    second = publish(write_v2(tmp_path / "b", Recording(lengths=(4,), tasks=("test",), seed=9)), "ann/old")
    asked = []
    with serving() as server:
        for revision in (first, second, first):
            annotate(data_ids, server.url, "--repo_id=ann/old", f"--revision={revision}")
            asked.append(server.of_stage("instruction"))
    assert asked == [2, 3, 3]
    assert read_annotations(tmp_path / "out", "ann/old")[1]["revision"] == first
    assert len(read_results(tmp_path / "out", "ann/old", second).results) == 1
