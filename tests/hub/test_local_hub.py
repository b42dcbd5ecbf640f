"""The unmodified Hub client against the embedded Hub: reading, writing, listing."""

import os
from pathlib import Path

import httpx
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from depi.hub.server.serve import LocalHub, serve

CARD = """---
license: apache-2.0
task_categories: [robotics]
tags: [LeRobot, so101]
configs:
- config_name: default
  data_files: data/*/*.parquet
---
A dataset.
"""


def make_dataset(folder: Path, size: int = 300_000) -> dict[str, bytes]:
    files = {
        "README.md": CARD.encode(),
        "meta/info.json": b'{"codebase_version": "v3.0"}',
        "data/chunk-000/file-000.parquet": os.urandom(size),
        "videos/observation.images.top/chunk-000/file-000.mp4": os.urandom(1000),
        "notes/a b#?%41é.txt": b"odd names",
        "empty.txt": b"",
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.write_token)


def test_folder_round_trip(api: HfApi, tmp_path: Path) -> None:
    files = make_dataset(tmp_path / "in")
    url = api.create_repo("ann/pick", repo_type="dataset")
    assert url.repo_id == "ann/pick"
    commit = api.upload_folder(
        repo_id="ann/pick", repo_type="dataset", folder_path=tmp_path / "in", commit_message="First data"
    )
    assert len(commit.oid) == 40
    assert [c.title for c in api.list_repo_commits("ann/pick", repo_type="dataset")] == [
        "First data",
        "initial commit",
    ]
    folder = Path(snapshot_download("ann/pick", repo_type="dataset", revision=commit.oid))
    for name, content in files.items():
        assert (folder / name).read_bytes() == content
    again = api.upload_folder(repo_id="ann/pick", repo_type="dataset", folder_path=tmp_path / "in")
    assert again.oid == commit.oid, "unchanged files make no commit"


def test_info_sizes_card_and_tags(api: HfApi, tmp_path: Path) -> None:
    files = make_dataset(tmp_path / "in")
    api.create_repo("ann/pick", repo_type="dataset")
    commit = api.upload_folder(repo_id="ann/pick", repo_type="dataset", folder_path=tmp_path / "in")
    info = api.dataset_info("ann/pick", files_metadata=True)
    assert info.sha == commit.oid
    assert (info.author, info.private, info.gated) == ("ann", False, False)
    assert {"LeRobot", "so101", "license:apache-2.0", "task_categories:robotics"} <= set(info.tags)
    assert info.card_data.license == "apache-2.0"
    sizes = {file.rfilename: file.size for file in info.siblings}
    assert {name: sizes[name] for name in files} == {name: len(content) for name, content in files.items()}
    large = {file.rfilename for file in info.siblings if file.lfs}
    assert large == {name for name in files if name.endswith((".parquet", ".mp4"))}
    chosen = api.dataset_info("ann/pick", expand=["sha", "gated"])
    assert (chosen.sha, chosen.gated, chosen.siblings) == (commit.oid, False, None)


def test_branches_tags_and_shas(api: HfApi) -> None:
    api.create_repo("ann/pick", repo_type="dataset")
    shas = []
    for text in (b"one", b"two"):
        operation = CommitOperationAdd("value.txt", text)
        shas.append(api.create_commit("ann/pick", [operation], commit_message="set", repo_type="dataset").oid)
    api.create_tag("ann/pick", tag="v2.1", revision=shas[0], repo_type="dataset")
    api.create_branch("ann/pick", branch="fix/one", revision=shas[0], repo_type="dataset")

    def value(revision: str) -> bytes:
        return Path(
            hf_hub_download("ann/pick", "value.txt", repo_type="dataset", revision=revision)
        ).read_bytes()

    assert value("main") == b"two"
    assert value("v2.1") == value("fix/one") == value(shas[0]) == b"one"
    assert api.dataset_info("ann/pick", revision="v2.1").sha == shas[0]
    assert api.dataset_info("ann/pick", revision=shas[0][:8]).sha == shas[0]
    refs = api.list_repo_refs("ann/pick", repo_type="dataset")
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v2.1": shas[0]}
    assert {ref.name for ref in refs.branches} == {"main", "fix/one"}

    on_branch = api.upload_file(
        path_or_fileobj=b"x", path_in_repo="x", repo_id="ann/pick", repo_type="dataset", revision="fix/one"
    )
    assert api.dataset_info("ann/pick").sha == shas[1], "a commit to a branch leaves main alone"
    assert api.dataset_info("ann/pick", revision="fix/one").sha == on_branch.oid
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("ann/pick", tag="v2.1", repo_type="dataset")
    api.delete_tag("ann/pick", tag="v2.1", repo_type="dataset")
    api.delete_branch("ann/pick", branch="fix/one", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info("ann/pick", revision="v2.1")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.delete_branch("ann/pick", branch="main", repo_type="dataset")


def test_tree_and_paths_info(api: HfApi, tmp_path: Path) -> None:
    make_dataset(tmp_path / "in")
    api.create_repo("ann/pick", repo_type="dataset")
    first = api.upload_folder(
        repo_id="ann/pick", repo_type="dataset", folder_path=tmp_path / "in", commit_message="all"
    )
    api.upload_file(
        path_or_fileobj=b"new",
        path_in_repo="meta/info.json",
        repo_id="ann/pick",
        repo_type="dataset",
        commit_message="fix",
    )
    top = {entry.path for entry in api.list_repo_tree("ann/pick", repo_type="dataset")}
    assert top == {".gitattributes", "README.md", "data", "empty.txt", "meta", "notes", "videos"}
    below = [e.path for e in api.list_repo_tree("ann/pick", "data", recursive=True, repo_type="dataset")]
    assert below == ["data/chunk-000", "data/chunk-000/file-000.parquet"]
    newest = {
        entry.path: entry.last_commit.title
        for entry in api.list_repo_tree("ann/pick", repo_type="dataset", expand=True, recursive=True)
    }
    assert newest["meta/info.json"] == newest["meta"] == "fix"
    assert newest["README.md"] == "all"
    assert newest[".gitattributes"] == "initial commit"
    old = api.get_paths_info(
        "ann/pick", ["meta/info.json", "data", "no"], revision=first.oid, repo_type="dataset"
    )
    assert [entry.path for entry in old] == ["meta/info.json", "data"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("ann/pick", "nothing", repo_type="dataset"))


def test_delete_copy_and_stale_parent(api: HfApi) -> None:
    api.create_repo("ann/model")
    first = api.create_commit(
        "ann/model",
        [CommitOperationAdd("a/one.bin", b"\0" * 10), CommitOperationAdd("a/two.txt", b"2")],
        commit_message="two files",
    )
    operations = [
        CommitOperationCopy("a/one.bin", "b/one.bin"),
        CommitOperationCopy("a/two.txt", "b/two.txt"),
        CommitOperationDelete("a/", is_folder=True),
    ]
    api.create_commit("ann/model", operations, commit_message="move")
    assert sorted(api.list_repo_files("ann/model")) == [".gitattributes", "b/one.bin", "b/two.txt"]
    api.delete_file("b/two.txt", "ann/model")
    with pytest.raises(EntryNotFoundError):
        api.delete_file("b/two.txt", "ann/model")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(
            "ann/model", [CommitOperationAdd("c", b"c")], commit_message="late", parent_commit=first.oid
        )
    with pytest.raises(BadRequestError, match="both a file and a folder"):
        api.create_commit("ann/model", [CommitOperationAdd("b/one.bin/x", b"x")], commit_message="clash")


def test_create_exists_and_delete(api: HfApi) -> None:
    api.create_repo("ann/pick", repo_type="dataset")
    api.create_repo("ann/pick")  # a model may have a dataset's name
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("ann/pick", repo_type="dataset")
    assert caught.value.response.status_code == 409
    assert api.create_repo("ann/pick", repo_type="dataset", exist_ok=True).repo_id == "ann/pick"
    api.delete_repo("ann/pick", repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("ann/pick")
    assert api.model_info("ann/pick").id == "ann/pick"


def test_ranges_and_headers(api: HfApi, hub: LocalHub, tmp_path: Path) -> None:
    files = make_dataset(tmp_path / "in")
    api.create_repo("ann/pick", repo_type="dataset")
    commit = api.upload_folder(repo_id="ann/pick", repo_type="dataset", folder_path=tmp_path / "in")
    name = "data/chunk-000/file-000.parquet"
    url = f"{hub.endpoint}/datasets/ann/pick/resolve/main/{name}"
    head = httpx.head(url)
    assert head.headers["X-Repo-Commit"] == commit.oid
    assert int(head.headers["Content-Length"]) == int(head.headers["X-Linked-Size"]) == 300_000
    assert head.headers["ETag"] == head.headers["X-Linked-ETag"]
    assert not any("xet" in header.lower() for header in head.headers)
    part = httpx.get(url, headers={"Range": "bytes=1000-1999"})
    assert (part.status_code, part.content) == (206, files[name][1000:2000])
    assert httpx.get(url, headers={"Range": "bytes=299990-"}).content == files[name][-10:]
    assert httpx.get(url, headers={"Range": "bytes=-7"}).content == files[name][-7:]
    beyond = httpx.get(url, headers={"Range": "bytes=300000-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */300000")


def test_listing_pages(tmp_path: Path) -> None:
    with serve(tmp_path / "root", page_size=10) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
        for number in range(35):
            api.create_repo(f"user{number % 3}/so101_{number:02}", repo_type="dataset")
        newest_first = [f"user{number % 3}/so101_{number:02}" for number in reversed(range(35))]
        for limit in (None, 1, 7, 10, 25, 60):
            found = [info.id for info in api.list_datasets(sort="last_modified", limit=limit)]
            assert found == newest_first[:limit]
        assert len({info.id for info in api.list_datasets(author="user1")}) == 12
        found = [info.id for info in api.list_datasets(search="SO101_2", author="user2")]
        assert sorted(found) == ["user2/so101_20", "user2/so101_23", "user2/so101_26", "user2/so101_29"]


def test_pages_stay_whole_while_repositories_are_added(tmp_path: Path) -> None:
    with serve(tmp_path / "root", page_size=5) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
        for number in range(15):
            api.create_repo(f"ann/d{number:02}", repo_type="dataset")
        listing = iter(api.list_datasets())
        seen = [next(listing).id for _ in range(5)]
        for number in range(15, 20):
            api.create_repo(f"ann/d{number:02}", repo_type="dataset")
        seen += [info.id for info in listing]
        assert sorted(seen) == [f"ann/d{number:02}" for number in range(15)]


def test_listing_filters_by_tags(api: HfApi, tmp_path: Path) -> None:
    cards = {
        "ann/one": "---\ntags: [LeRobot]\ntask_categories: [robotics]\n---",
        "ann/two": "---\ntags: [LeRobot, so100]\n---",
        "bob/broken": "---\ntags: [LeRobot\n---",
        "bob/bomb": "---\na: &a [x, x]\ntags: [*a, *a]\n---",
        "bob/odd": "---\ntags: [3, .nan, LeRobot]\ndate: 2024-01-01\nx: .inf\n---",
        "bob/plain": "no front matter",
    }
    for repo_id, card in cards.items():
        api.create_repo(repo_id, repo_type="dataset")
        # The client checks a README.md that it sends; anyone else may send what they like.
        line = {"key": "file", "value": {"path": "README.md", "content": card, "encoding": "utf-8"}}
        answer = httpx.post(
            f"{api.endpoint}/api/datasets/{repo_id}/commit/main",
            json=line,
            headers={"Authorization": f"Bearer {api.token}"},
        )
        assert answer.status_code == 200

    def ids(*tags: str) -> set[str]:
        return {info.id for info in api.list_datasets(filter=list(tags), full=True)}

    assert ids("LeRobot") == {"ann/one", "ann/two", "bob/odd"}
    assert ids("LeRobot", "so100") == {"ann/two"}
    assert ids("task_categories:robotics") == {"ann/one"}
    assert ids("nothing") == set()
    everything = {info.id: info for info in api.list_datasets(full=True)}
    assert everything.keys() == cards.keys()
    assert [file.rfilename for file in everything["ann/one"].siblings] == [".gitattributes", "README.md"]
    (tmp_path / "README.md").write_text(cards["bob/broken"])
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        api.upload_folder(repo_id="ann/one", repo_type="dataset", folder_path=tmp_path)


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    with serve(tmp_path / "root") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
        api.create_repo("ann/pick", repo_type="dataset", private=True)
        commit = api.upload_file(
            path_or_fileobj=b"x", path_in_repo="x", repo_id="ann/pick", repo_type="dataset"
        )
        api.create_tag("ann/pick", tag="v1", repo_type="dataset")
    with serve(tmp_path / "root") as again:
        assert (again.write_token, again.read_token) == (hub.write_token, hub.read_token)
        info = HfApi(endpoint=again.endpoint, token=again.write_token).dataset_info("ann/pick", revision="v1")
        assert (info.sha, info.private) == (commit.oid, True)
        assert (tmp_path / "root" / "tokens.json").stat().st_mode & 0o777 == 0o600
