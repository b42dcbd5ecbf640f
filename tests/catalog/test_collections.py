"""Repositories that hold a dataset per folder: found, inspected, remembered and read for training."""

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from starlette.requests import Request

from depi.catalog import collection
from depi.catalog.catalogue import read_rows
from depi.catalog.collect import CollectConfig, collect
from depi.datasets.recording.sources import DatasetSource
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.hub.client import api as client
from depi.hub.client import fetch
from depi.hub.server.serve import serve

COLLECTION = "crowd/community_dataset_v1"


class Counter:
    """Counts requests; answers none of them."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, request: Request) -> None:
        self.seen.append(f"{request.method} {request.url.path}")


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """An embedded Hub that lists 5 entries a page, and what it was asked."""
    counter = Counter()
    with serve(tmp_path / "root", faults=counter, page_size=5) as hub:
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "depi"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield counter


def publish_collection(root: Path, make) -> str:
    make(root / "ann/so100_cups", seed=1)
    make(root / "bob/so101_lamps", seed=2, version="v3.0")
    make(root / "bob/koch_box", seed=3, robot_type="koch")
    (root / "bob/notes").mkdir()
    (root / "bob/notes/read.txt").write_text("no dataset")
    card = json.dumps({"license": "apache-2.0", "tags": ["LeRobot"]})
    (root / "README.md").write_text(f"---\n{card}\n---\n")
    api = HfApi(endpoint=os.environ["HF_ENDPOINT"])
    api.create_repo(COLLECTION, repo_type="dataset", exist_ok=True)
    return api.upload_folder(repo_id=COLLECTION, folder_path=root, repo_type="dataset").oid


IDS = [f"{COLLECTION}:ann/so100_cups", f"{COLLECTION}:bob/koch_box", f"{COLLECTION}:bob/so101_lamps"]


@pytest.mark.parametrize("huge", [False, True])
def test_each_folder_is_a_dataset_of_its_own(counted, tmp_path, make_dataset, monkeypatch, huge):
    sha = publish_collection(tmp_path / "in", make_dataset)
    if huge:  # its list of files cannot be had at once
        monkeypatch.setattr(fetch, "MAX_ANSWER", 3_000)
    out = tmp_path / "out"
    summary = collect(CollectConfig(data_ids=out, workers=4))
    assert json.loads((out / "dataset_list.json").read_text()) == IDS
    assert sorted(json.loads((out / "dataset_list_valid.json").read_text())) == [IDS[0], IDS[2]]
    assert list(json.loads((out / "bad_dataset_ids.json").read_text())) == [IDS[1]]
    assert (summary.found, summary.failed) == (3, 0)
    row = {row.repo_id: row for row in read_rows(out)}[IDS[0]]
    assert (row.path, row.revision, row.license) == ("ann/so100_cups", sha, "apache-2.0")

    counted.seen.clear()
    assert collect(CollectConfig(data_ids=out, workers=4)).reused == 3
    assert all(seen.endswith("/api/datasets") for seen in counted.seen)


def test_a_dataset_of_a_collection_trains_like_any_other(counted, tmp_path, make_dataset):
    sha = publish_collection(tmp_path / "in", make_dataset)
    whole = MultiLeRobotDataset([DatasetSource("x/y", root=tmp_path / "in/ann/so100_cups")])
    counted.seen.clear()
    inside = MultiLeRobotDataset([DatasetSource(IDS[0]), DatasetSource(IDS[2], sha)])
    assert [entry["repo_id"] for entry in inside.entries] == [IDS[0], IDS[2]]
    assert (inside[3]["action"] == whole[3]["action"]).all()
    assert not [seen for seen in counted.seen if "koch_box" in seen]
    again = MultiLeRobotDataset([DatasetSource(IDS[0], sha)], offline=True)
    assert len(again) == len(whole)


def test_ids_of_a_file_may_name_folders(counted, tmp_path, make_dataset):
    publish_collection(tmp_path / "in", make_dataset)
    ids = tmp_path / "ids.txt"
    ids.write_text(f"{IDS[2]}\n{COLLECTION}:bob/nothing\n")
    out = tmp_path / "out"
    summary = collect(CollectConfig(data_ids=out, repo_ids=ids))
    assert json.loads((out / "dataset_list_valid.json").read_text()) == [IDS[2]]
    (reason,) = json.loads((out / "bad_dataset_ids.json").read_text())[f"{COLLECTION}:bob/nothing"]
    assert reason.startswith("reachable: ")
    assert summary.found == 2


def test_a_folder_whose_name_cannot_be_an_id_is_left_out_and_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path))
    files = ["a/b/meta/info.json", "~x/meta/info.json", "\u202ex/meta/info.json"]
    found = collection.from_file_list("ann/many", "0" * 40, files)
    assert [str(dataset) for dataset in found] == ["ann/many:a/b"]
    assert "~x" in caplog.text


def test_too_many_folders_are_a_reason(counted, tmp_path, make_dataset, monkeypatch):
    publish_collection(tmp_path / "in", make_dataset)
    monkeypatch.setattr(fetch, "MAX_ANSWER", 3_000)
    monkeypatch.setattr(collection, "MAX_FOLDERS", 1)
    out = tmp_path / "out"
    assert collect(CollectConfig(data_ids=out)).rejected == 1
    bad = json.loads((out / "bad_dataset_ids.json").read_text())
    assert bad == {COLLECTION: [f"reachable: {COLLECTION} holds more than 1 folders"]}


def test_a_folder_with_too_many_files_is_a_reason(counted, tmp_path, make_dataset, monkeypatch):
    publish_collection(tmp_path / "in", make_dataset)
    monkeypatch.setattr(client, "MAX_FILES", 3)
    out = tmp_path / "out"
    collect(CollectConfig(data_ids=out))
    bad = json.loads((out / "bad_dataset_ids.json").read_text())
    assert bad[IDS[0]] == ["reachable: ann/so100_cups holds more than 3 files"]


def test_one_dataset_with_a_boundless_file_list_is_a_reason(counted, tmp_path, make_dataset, monkeypatch):
    folder = make_dataset(tmp_path / "in", seed=1)
    client.upload_folder(folder, "mal/so100_endless", repo_type="dataset", commit_message="Add")
    monkeypatch.setattr(fetch, "MAX_ANSWER", 1_000)
    out = tmp_path / "out"
    collect(CollectConfig(data_ids=out, search=["endless"]))
    bad = json.loads((out / "bad_dataset_ids.json").read_text())
    assert bad == {"mal/so100_endless": ["reachable: the Hub's answer is larger than 0 MB"]}


@pytest.mark.parametrize("told", [0, 20])
def test_files_that_the_hub_leaves_out_of_a_long_list_are_found(
    counted, tmp_path, make_dataset, monkeypatch, told
):
    folder = make_dataset(tmp_path / "many", seed=9, episodes=30)
    client.upload_folder(folder, "ann/so100_many", repo_type="dataset", commit_message="Add")
    publish_collection(tmp_path / "in", make_dataset)
    get_json = client.get_json

    def cut(*args):
        value = get_json(*args)
        return {**value, "siblings": value["siblings"][:told]} if "siblings" in value else value

    monkeypatch.setattr(client, "get_json", cut)
    monkeypatch.setattr(client, "LISTED_WHOLE", 10)
    out = tmp_path / "out"
    assert collect(CollectConfig(data_ids=out)).found == 4
    assert sorted(json.loads((out / "dataset_list_valid.json").read_text())) == [
        "ann/so100_many",
        IDS[0],
        IDS[2],
    ]


def test_too_many_files_and_no_dataset_among_them_are_a_reason_that_stays(counted, tmp_path, monkeypatch):
    (tmp_path / "in/deep").mkdir(parents=True)
    for number in range(60):
        (tmp_path / f"in/deep/{number}.txt").write_text("no dataset")
    client.upload_folder(tmp_path / "in", "dan/so100_raw", repo_type="dataset", commit_message="Add")
    monkeypatch.setattr(fetch, "MAX_ANSWER", 5_000)
    config = CollectConfig(data_ids=tmp_path / "out")
    assert collect(config).rejected_by_rule == {"has_info": 1}
    assert json.loads((tmp_path / "out/dataset_list.json").read_text()) == ["dan/so100_raw"]
    counted.seen.clear()
    assert collect(config).reused == 1
    assert all(seen.endswith("/api/datasets") for seen in counted.seen)
