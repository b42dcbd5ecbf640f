"""The cached index: built once, shared, rebuilt when something changed, usable offline."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from recordings import NAMES, Recording, write_v2

from depi.datasets.union import dataset_index as parts
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The datasets whose tables were read, in order."""
    names = []

    def counted(files, *rest):
        names.append(files.root.name)
        return read(files, *rest)

    read = parts.fetch_tables
    monkeypatch.setattr(parts, "fetch_tables", counted)
    return names


def opened(*roots, **options) -> MultiLeRobotDataset:
    sources = [DatasetSource(f"user/{root.name}", root=root) for root in roots]
    return MultiLeRobotDataset(sources, **({"chunk_size": 4, "image_size": 64} | options))


def sets_in(cache):
    return sorted(path for path in (cache / "index/sets").iterdir() if path.is_dir())


def assert_same(one, other):
    assert one.entries == other.entries
    for name in ("state", "action", "timestamp", "task", "episode_start", "camera_begin"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for key in ("observation.state", "action"):
        for name, value in one.stats[key].items():
            np.testing.assert_array_equal(other.stats[key][name], value)
            assert other.stats[key][name].dtype == value.dtype


def test_the_second_opening_reads_the_index_alone(v21, v30, cache, reads):
    first = opened(v21, v30)
    assert len(reads) == 2
    again = opened(v21, v30)
    assert len(reads) == 2
    assert_same(first, again)
    assert not again.state.flags.writeable
    # Another set, another number of cameras: the datasets' own indexes are there.
    assert opened(v30, max_cameras=1).num_frames == 12
    assert len(reads) == 2
    assert len(sets_in(cache)) == 2
    assert not list(cache.rglob(".*"))


def test_what_changed_is_read_again(v21, cache, reads, tmp_path):
    root = shutil.copytree(v21, tmp_path / "data")
    opened(root)
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"fps": 20}))
    assert opened(root).fps.tolist() == [20]
    table = root / "data/chunk-000/episode_000000.parquet"
    os.utime(table, ns=(1, 1))
    opened(root)
    assert len(reads) == 3
    os.utime(table, ns=(1, 1))  # as a copy that keeps times leaves it: same size, same time of modification
    opened(root)
    assert len(reads) == 4
    video = next(root.rglob("*.mp4"))
    video.unlink()
    with pytest.raises(UserError, match=rf"{video.name} is missing"):
        opened(root)


@pytest.mark.parametrize("name", ["frames.arrow", "episodes.arrow", "files.arrow", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_index_is_built_again_and_said(v21, cache, reads, caplog, name, how):
    intact = opened(v21)
    state = intact.state.copy()
    for folder in (*sets_in(cache), *(cache / "index/datasets").iterdir()):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (folder / name).unlink()
        if how != "remove":
            (folder / name).write_bytes(content if how == "flip" else content[: len(content) // 2])
    again = opened(v21)
    assert "is damaged and will be built again" in caplog.text
    assert len(reads) == 2
    np.testing.assert_array_equal(again.state, state)
    caplog.clear()
    opened(v21)
    assert "damaged" not in caplog.text


def test_other_code_builds_its_own_index(v21, cache, reads, monkeypatch):
    opened(v21)
    monkeypatch.setattr(parts, "code", lambda *modules: "newer")
    opened(v21)
    assert len(reads) == 2


def test_an_index_that_nobody_opens_is_removed(v21, v30, cache):
    opened(v21)
    (old,), (part,) = sets_in(cache), (cache / "index/datasets").iterdir()
    os.utime(old, (0, 0))
    os.utime(part, (0, 0))
    opened(v30)
    assert not old.exists()
    assert not part.exists()


def test_a_cache_that_may_only_be_read_is_used(v21, cache, reads, monkeypatch):
    first = opened(v21)

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    assert_same(first, opened(v21))
    assert len(reads) == 1


def _open_and_sum(root, results):
    results.put(float(opened(root).state.sum()))


def test_processes_that_open_at_once_share_one_index(v21, cache):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_open_and_sum, args=(v21, results)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    sums = {results.get(timeout=60) for _ in ranks}
    for rank in ranks:
        rank.join(60)
    assert sums == {float(opened(v21).state.sum())}
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert len(sets_in(cache)) == 1
    assert not list(cache.rglob(".join-*"))


def test_a_cache_that_cannot_be_written_is_a_user_error(v21, cache):
    cache.write_text("a file")
    with pytest.raises(UserError, match=r"cannot be made \(Not a directory\), set DEPI_CACHE"):
        opened(v21)


def test_columns_are_mapped_again_in_a_spawned_process(v21, cache):
    import pickle

    dataset = opened(v21)
    data = pickle.dumps(dataset.__getstate__() | {"_quarantine": None})
    assert len(data) < 5000
    copy = MultiLeRobotDataset.__new__(MultiLeRobotDataset)
    copy.__setstate__(pickle.loads(data))
    assert torch.equal(copy[3]["action"], dataset[3]["action"])


def test_statistics_are_those_of_numpy_on_the_pooled_data(v21, v30, tmp_path, cache):
    other = write_v2(tmp_path / "other", Recording(seed=4, lengths=(9, 4)))
    dataset = opened(v21, v30, other)
    for key, values in (("action", dataset.action), ("observation.state", dataset.state)):
        pooled = values.astype(np.float64)
        expected = {
            "mean": pooled.mean(0),
            "std": pooled.std(0),
            "min": pooled.min(0),
            "max": pooled.max(0),
            **{f"q{share:02d}": np.quantile(pooled, share / 100, axis=0) for share in (1, 10, 50, 90, 99)},
        }
        for name, value in expected.items():
            np.testing.assert_array_equal(dataset.stats[key][name], value.astype(np.float32))
        assert dataset.stats[key]["count"].tolist() == [37]


def test_units_can_be_chosen(v21, cache):
    degrees, normalized = opened(v21), opened(v21, joint_convention="normalized")
    np.testing.assert_allclose(normalized.action[:, 0] * 1.108, degrees.action[:, 0], rtol=1e-5)
    with pytest.raises(UserError, match="expected one of degrees, normalized, native"):
        opened(v21, joint_convention="furlongs")


def push(root, repo_id):
    from depi.hub.client import api as client

    return client.upload_folder(root, repo_id, repo_type="dataset", commit_message="Record")


def no_hub(monkeypatch):
    from depi.hub.client import api as client

    def refuse(*_, **__):
        raise AssertionError("the Hub was asked")

    for name in ("repo_info", "download_files", "download_file"):
        monkeypatch.setattr(client, name, refuse)


def test_what_was_opened_once_opens_offline(hub, v21, v30, monkeypatch):
    sha = push(v21, "user/old")
    push(v30, "user/new")
    sources = [DatasetSource("user/old", sha), DatasetSource("user/new")]
    options = {"chunk_size": 4, "image_size": 64}
    first = MultiLeRobotDataset(sources, **options)
    no_hub(monkeypatch)
    again = MultiLeRobotDataset(sources, offline=True, **options)
    assert_same(first, again)
    # A commit that is there whole costs no request in any case.
    assert_same(
        first, MultiLeRobotDataset([sources[0], DatasetSource("user/new", again.entries[1]["revision"])])
    )
    # Without the index, the cached files are enough.
    shutil.rmtree(index_folder())
    assert_same(first, MultiLeRobotDataset(sources, offline=True, **options))


def index_folder():
    from depi.files import cache_folder

    return cache_folder() / "index"


def test_offline_names_what_is_missing(hub, v21, monkeypatch):
    sha = push(v21, "user/old")
    no_hub(monkeypatch)
    with pytest.raises(UserError, match=r"user/old at main is not in the cache, open it once without"):
        MultiLeRobotDataset([DatasetSource("user/old")], offline=True)
    with pytest.raises(UserError, match=rf"user/old at {sha} is not completely.*meta/info.json must be"):
        MultiLeRobotDataset([DatasetSource("user/old", sha)], offline=True)
    monkeypatch.undo()


def split_episodes(root):
    """Put each row of a v3.0 dataset's list of episodes into a file of its own; returns the last one."""
    (file,) = (root / "meta/episodes").rglob("*.parquet")
    rows = pq.read_table(file)
    for number in range(len(rows)):
        pq.write_table(rows.slice(number, 1), file.with_name(f"file-{number:03d}.parquet"))
    return f"meta/episodes/chunk-000/file-{len(rows) - 1:03d}.parquet"


@pytest.mark.parametrize("recorded", ["v21", "v30"])
def test_offline_metadata_that_is_there_in_part_is_refused_and_not_remembered(
    hub, request, tmp_path, recorded
):
    root = shutil.copytree(request.getfixturevalue(recorded), tmp_path / "data")
    needed = [split_episodes(root), "meta/tasks.parquet"] if recorded == "v30" else ["meta/tasks.jsonl"]
    source = DatasetSource("user/part", push(root, "user/part"))
    (snapshot,) = MultiLeRobotDataset([source]).roots
    for name in needed:
        shutil.rmtree(index_folder())
        (snapshot / name).unlink()
        with pytest.raises(UserError, match=r"user/part at .* is not completely in the cache: "):
            MultiLeRobotDataset([source], offline=True)
        assert MultiLeRobotDataset([source]).num_episodes == 2
        assert (snapshot / name).exists()


def test_offline_a_video_that_is_gone_is_named(hub, v21, monkeypatch):
    sha = push(v21, "user/old")
    dataset = MultiLeRobotDataset([DatasetSource("user/old", sha)])
    video = next(dataset.roots[0].rglob("*.mp4"))
    video.unlink()
    with pytest.raises(UserError, match=rf"not completely in the cache: .*{video.name} must be fetched"):
        MultiLeRobotDataset([DatasetSource("user/old", sha)], offline=True)
    assert MultiLeRobotDataset([DatasetSource("user/old", sha)])[0]["task"] == "pick the cube"
    assert video.exists()


def test_failures_of_the_hub_are_not_remembered(hub, v21, v30):
    push(v21, "user/old")
    sources = [DatasetSource("user/old"), DatasetSource("user/late")]
    first = MultiLeRobotDataset(sources, max_bad_datasets=0.5)
    assert list(first.quarantined) == ["user/late"]
    push(v30, "user/late")
    assert MultiLeRobotDataset(sources).repo_ids == ("user/old", "user/late")


def test_a_bad_dataset_is_remembered_with_its_reason(v21, tmp_path, cache, reads):
    bad = write_v2(tmp_path / "bad", Recording(dim=2, names=list(NAMES)[:2]))
    shutil.rmtree(bad / "videos")
    first = opened(v21, bad, max_bad_datasets=0.5)
    assert "is missing" in first.quarantined["user/bad"]
    assert opened(v21, bad, max_bad_datasets=0.5).quarantined == first.quarantined
    assert len(reads) == 2
