"""Caches and outputs on a disk that is really full: no dataset is left out, and the call goes on later."""

import pytest
from huggingface_hub import constants

from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.datasets.union.prepare import Settings, prepare
from depi.engine import make_runner
from depi.errors import MachineError
from depi.hub.client import api as client

FULL = r"the disk is full \(No space left on device\); make room there, or "


def test_a_full_cache_disk_leaves_out_no_dataset(hub, v21, v30, tmp_path, small_disk, monkeypatch):
    cache = small_disk.path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "depi"))
    for root, name in ((v21, "old"), (v30, "new")):
        client.upload_folder(root, f"user/{name}", repo_type="dataset", commit_message="Record")
    sources = [DatasetSource("user/old"), DatasetSource("user/new")]
    MultiLeRobotDataset(sources[:1])
    small_disk.fill()
    with pytest.raises(MachineError, match=f"cannot write {cache}: {FULL}set HF_HOME"):
        MultiLeRobotDataset(sources, max_bad_datasets=0.5)
    small_disk.make_room()
    dataset = MultiLeRobotDataset(sources, max_bad_datasets=0.5)
    assert (dataset.num_datasets, dataset.quarantined) == (2, {})


def test_a_full_disk_of_indexes_leaves_out_no_dataset(v21, v30, small_disk, monkeypatch):
    monkeypatch.setenv("DEPI_CACHE", str(small_disk.path))
    sources = [DatasetSource("user/old", root=v21), DatasetSource("user/new", root=v30)]
    MultiLeRobotDataset(sources[:1])
    small_disk.fill()
    with pytest.raises(MachineError, match=f"cannot write {small_disk.path}/.*: {FULL}set DEPI_CACHE"):
        MultiLeRobotDataset(sources, max_bad_datasets=0.5)
    small_disk.make_room()
    assert MultiLeRobotDataset(sources, max_bad_datasets=0.5).num_datasets == 2


def test_preparing_stops_at_a_full_disk_and_goes_on(v21, tmp_path, small_disk, monkeypatch):
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "depi"))
    dataset = MultiLeRobotDataset([DatasetSource("user/old", root=v21)], image_size=96)
    settings = Settings(small_disk.path / "out", image_size=96, rows_per_shard=4)
    run = make_runner("local", workers=1)
    small_disk.fill(leave=24 * 1024)
    with pytest.raises(MachineError, match=f"cannot write {settings.root}: {FULL}choose another folder"):
        prepare(dataset, settings, run=run)
    small_disk.make_room()
    (result,) = prepare(dataset, settings, run=run)
    assert (result.error, result.images) == (None, 24)
    assert result.reused > 0
