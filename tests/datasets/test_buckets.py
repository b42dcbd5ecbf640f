"""Datasets in buckets, on a real S3 server on loopback: read like the same dataset in a folder."""

import json
import re
import shutil
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from recordings import Recording, write_v2
from werkzeug.serving import make_server

from depi.annotate.episode_journal import annotated_datasets
from depi.catalog import view
from depi.catalog.find import read_ids
from depi.datasets.recording.addresses import as_path, check_address, from_path
from depi.datasets.recording.sources import DatasetSource
from depi.datasets.recording.storages import open_source
from depi.datasets.samples.annotations import EpisodeAnnotation, annotation_path, write_annotations
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.errors import DatasetError, MachineError, UserError
from depi.training.command_line import parse_train_config

ADDRESS = "s3://robots/ann/cups"
SECRET = "wJalrXUtnFEMI"


class Server:
    """moto's S3 server; it notes what it is asked, and may cut off what it sends."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.cut = False
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=MotoRequestHandler)
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.seen.append((method, path))
        answer = self._moto(environ, start_response)
        if self.cut and method == "GET" and path.endswith(".mp4"):
            return [b"".join(answer)[:100]]
        return answer

    def tell(self, what: str, data: bytes = b"") -> None:
        """One of moto's own commands."""
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/moto-api/{what}", data, headers)
        urllib.request.urlopen(request, timeout=10).close()

    def downloads(self) -> list[str]:
        """The files that were sent since the last call."""
        found = [path for method, path in self.seen if method == "GET" and "." in path]
        self.seen.clear()
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def s3(tmp_path, monkeypatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))
    forget_connections()
    server.tell("reset")  # what moto holds is kept in the process
    bucket().mkdir("robots")
    yield server
    server.close()
    forget_connections()


def forget_connections() -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def bucket() -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("s3")


def upload(folder: Path, address: str = ADDRESS) -> None:
    bucket().put(f"{folder}/", f"{address}/", recursive=True)


def opened(*names: str, **options) -> MultiLeRobotDataset:
    sources = [name if isinstance(name, DatasetSource) else DatasetSource(name) for name in names]
    return MultiLeRobotDataset(sources, **({"chunk_size": 4, "image_size": 64} | options))


def assert_same(one: MultiLeRobotDataset, other: MultiLeRobotDataset) -> None:
    assert len(one) == len(other) > 0
    for position in range(len(one)):
        for (name, value), expected in zip(one[position].items(), other[position].values(), strict=True):
            np.testing.assert_array_equal(np.asarray(value), np.asarray(expected), err_msg=name)


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_every_sample_is_that_of_the_folder(s3, version, request):
    folder = request.getfixturevalue(version)
    upload(folder)
    dataset = opened(ADDRESS)
    assert_same(dataset, opened(DatasetSource("ann/cups", root=folder)))
    (entry,) = dataset.entries
    assert entry["repo_id"] == ADDRESS
    assert re.fullmatch("[0-9a-f]{40}", entry["revision"])
    assert not entry["local"]
    local = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    files = open_source(DatasetSource(ADDRESS))
    assert files.list_files() == local == open_source(DatasetSource("a/b", root=folder)).list_files()


def test_what_is_cached_is_not_downloaded_again(s3, v21):
    upload(v21)
    first = opened(ADDRESS)
    assert len(s3.downloads()) == 9
    again = opened(f"{ADDRESS}/")
    assert len(s3.seen) == 1  # the listing
    assert s3.downloads() == []
    assert again.entries == first.entries
    opened(DatasetSource(ADDRESS, first.entries[0]["revision"]))
    assert s3.seen == []


def test_offline_needs_no_server(s3, v21, monkeypatch):
    upload(v21)
    with pytest.raises(UserError, match="not in the cache, open it once without offline"):
        opened(ADDRESS, offline=True)
    few = opened(ADDRESS, max_cameras=1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget_connections()
    assert_same(opened(ADDRESS, offline=True, max_cameras=1), few)
    with pytest.raises(UserError, match=r"observation.images.front.*open it once without offline"):
        opened(ADDRESS, offline=True)
    assert s3.downloads()


def test_a_changed_file_is_another_revision_and_the_rest_is_kept(s3, v21, tmp_path):
    upload(v21)
    before = opened(ADDRESS)
    s3.downloads()
    changed = shutil.copytree(v21, tmp_path / "changed")
    info = json.loads((changed / "meta/info.json").read_text())
    (changed / "meta/info.json").write_text(json.dumps(info | {"fps": 20}, indent=4))
    bucket().put_file(str(changed / "meta/info.json"), f"{ADDRESS}/meta/info.json")
    s3.seen.clear()
    after = opened(ADDRESS)
    assert (before.fps.tolist(), after.fps.tolist()) == ([10], [20])
    assert after.entries[0]["revision"] != before.entries[0]["revision"]
    assert s3.downloads() == ["/robots/ann/cups/meta/info.json"]
    # What a run began with is still there, as far as it was fetched.
    assert opened(DatasetSource(ADDRESS, before.entries[0]["revision"])).fps.tolist() == [10]
    with pytest.raises(UserError, match=r"no longer at 0000.*leave the revision out"):
        open_source(DatasetSource(ADDRESS, "0" * 40))


def test_a_file_that_changes_during_the_download_is_not_kept(s3, v21, tmp_path):
    upload(v21)
    files = open_source(DatasetSource(ADDRESS))
    bucket().pipe_file(f"{ADDRESS}/meta/tasks.jsonl", b"{}")
    with pytest.raises(UserError, match=r"meta/tasks.jsonl of .* is no longer as it was at .*: start again"):
        files.fetch(["meta/tasks.jsonl"])
    assert not (files.root / "meta/tasks.jsonl").exists()
    assert not list((tmp_path / "cache").rglob("blobs/*"))


def test_a_download_that_is_cut_leaves_nothing_behind(s3, v21, tmp_path):
    upload(v21)
    s3.cut = True
    with pytest.raises(UserError, match=ADDRESS) as caught:
        opened(ADDRESS)
    assert SECRET not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.mp4"))
    assert not list((tmp_path / "cache").rglob("blobs/.*"))
    s3.cut = False
    assert_same(opened(ADDRESS), opened(DatasetSource("ann/cups", root=v21)))


def test_datasets_of_all_storages_train_together(s3, v21, v30, tmp_path):
    upload(v21)
    other = write_v2(tmp_path / "other", Recording(seed=3))
    memory = fsspec.filesystem("memory")
    memory.put(f"{other}/", "/robots/boxes/", recursive=True)
    names = [ADDRESS, "memory://robots/boxes", f"file://{v30}"]
    dataset = opened(*names)
    memory.rm("/robots", recursive=True)
    assert dataset.repo_ids == tuple(names)
    assert [entry["local"] for entry in dataset.entries] == [False, False, True]
    roots = (v21, other, v30)
    assert_same(dataset, opened(*(DatasetSource(f"a/{n}", root=root) for n, root in enumerate(roots))))


def test_view_shows_an_episode(s3, v21, tmp_path):
    upload(v21)
    assert view.main([ADDRESS, "--episode=1", f"--output={tmp_path}/one.mp4"]) == 0
    assert (tmp_path / "one.mp4").stat().st_size > 1000


def test_annotations_lie_at_a_path_of_their_own(tmp_path):
    names = ["ann/cups", "s3://robots/ann/cups", "file:///data/cups", "ann/many:bob/cups"]
    for name in names:
        write_annotations(tmp_path, name, [EpisodeAnnotation(0)], {})
        assert from_path(as_path(name)) == name
    assert annotated_datasets(tmp_path) == sorted(names)
    assert annotation_path(tmp_path, names[1]) == tmp_path / "s3+/robots/ann/cups.parquet"


def test_what_cannot_be_opened_is_one_sentence_with_a_remedy(s3, v21, monkeypatch):
    for name, reason in (
        ("s3://nowhere/x", "s3://nowhere/x does not exist: check the bucket and the folder"),
        ("s3://robots/nothing", "s3://robots/nothing holds no files: check the bucket and the folder"),
        ("gs://robots/x", "gs://robots/x needs a package that is not here: install `gcsfs`"),
    ):
        with pytest.raises(UserError) as caught:
            open_source(DatasetSource(name))
        assert str(caught.value) == reason
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "s3fs", None)
        patch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
        with pytest.raises(UserError, match=r"needs a package that is not here: install `depi\[storage\]`"):
            open_source(DatasetSource(ADDRESS))


def test_wrong_credentials_are_named_and_not_shown(s3, v21, monkeypatch):
    upload(v21)
    s3.tell("reset-auth", b"0")  # from now on it asks who is there
    forget_connections()
    try:
        with pytest.raises(UserError) as caught:
            open_source(DatasetSource(ADDRESS))
    finally:
        s3.tell("reset-auth", b"inf")
    assert str(caught.value).startswith(f"{ADDRESS} does not open with your credentials: check AWS_PROFILE")
    assert caught.value.__suppress_context__
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        f"s3://AKIA:{SECRET}@robots/x",
        f"s3://robots/x?X-Amz-Signature={SECRET}",
        f"s3://AKIA:{SECRET}",
        f"s3://robots/{SECRET}@x",
        f"https://AKIA:{SECRET}@host/x",
        f"AKIA:{SECRET}@host://x",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(address):
    with pytest.raises(UserError) as caught:
        DatasetSource(address)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["s3://robots/../x", "s3://", "s3://a//b", "s3://a/\u202eb", "file://x", "file:///", "hf://datasets/a/b"],
)
def test_addresses_that_lead_nowhere_are_refused(address):
    with pytest.raises(UserError):
        check_address(address)


def test_names_of_a_bucket_cannot_leave_the_cache(s3, v21, tmp_path):
    upload(v21)
    for key in ("ann/cups/../../../../evil.json", "ann/cups//evil.json", "ann/cups/meta/"):
        bucket().pipe_file(f"robots/{key}", b"{}")
    files = open_source(DatasetSource(ADDRESS))
    assert not [name for name in files.list_files() if "evil" in name or name.endswith("/")]
    with pytest.raises(DatasetError, match="missing"):
        files.fetch(["../../../../evil.json"])
    assert not list(tmp_path.rglob("evil*"))


def test_the_catalogue_takes_no_addresses_and_repeats_none(tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text(f"ann/cups\ns3://AKIA:{SECRET}@robots/x\n")
    with pytest.raises(UserError, match="names an address: take it out") as caught:
        read_ids(ids)
    assert SECRET not in str(caught.value)


def test_a_full_disk_is_this_machines_fault(s3, v21, small_disk, monkeypatch):
    monkeypatch.setenv("DEPI_CACHE", str(small_disk.path))
    upload(v21)
    files = open_source(DatasetSource(ADDRESS))
    small_disk.fill()
    with pytest.raises(MachineError, match=r"the disk is full .* or set DEPI_CACHE"):
        files.fetch(["meta/info.json"])
    small_disk.make_room()
    files.fetch(["meta/info.json"])


@pytest.mark.parametrize("flag", ["--dataset.repo_id=ADDRESS", "--dataset.mixture=[{repo_id: ADDRESS}]"])
def test_training_shows_no_credentials(flag, tmp_path, capsys, caplog):
    flags = [flag.replace("ADDRESS", f"s3://AKIA:{SECRET}@robots/x"), "--policy.type=depi_pi0"]
    with pytest.raises(UserError, match="credentials or a query is refused") as caught:
        parse_train_config([*flags, "--policy.push_to_hub=false", f"--output_dir={tmp_path}/run"])
    assert SECRET not in f"{caught.value}{capsys.readouterr()}{caplog.text}"
