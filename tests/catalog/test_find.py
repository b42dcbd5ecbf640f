import json
import threading

import pytest
from huggingface_hub import DatasetInfo

from depi.catalog.find import Candidate, find, read_ids
from depi.errors import UserError
from depi.hub.client import api as client
from depi.hub.client.api import HubUnreachable


@pytest.fixture(scope="module")
def listed(module_hub, tmp_path_factory, publish):
    """A Hub with repositories that differ in name, author and tags; their content does not matter."""
    root = tmp_path_factory.mktemp("repos")
    commits = {}
    for repo_id, tags in {
        "ann/cubes": ("LeRobot", "so100"),
        "ann/so101_cups": (),
        "bob/lamps": ("LeRobot", "so101_follower"),
        "bob/so100_Lego": ("LeRobot", "so100"),
        "cid/aloha": ("LeRobot", "aloha"),
        "cid/not_lerobot": ("so100",),
    }.items():
        folder = root / repo_id
        folder.mkdir(parents=True)
        commits[repo_id] = publish(folder, repo_id, tags)
    return commits


def found(**options) -> list[str]:
    return [candidate.repo_id for candidate in find(**options)]


def test_the_default_unites_usual_tags_and_names_sorted_and_each_once(listed):
    assert found() == ["ann/cubes", "ann/so101_cups", "bob/lamps", "bob/so100_Lego"]


def test_the_default_finds_what_lerobot_calls_its_arms_and_every_spelling(monkeypatch):
    asked = []

    def listing(tags=(), search=None, author=None):
        asked.append((tags, search))
        yield DatasetInfo(id="ann/x", tags=[])

    monkeypatch.setattr(client, "list_datasets", listing)
    find()
    assert {"so_follower", "bi_so_follower", "so100_follower"} <= {tags[-1] for tags, _ in asked if tags}
    names = {search for _, search in asked}
    assert {"so100", "so-100", "so_100", "so101", "so-101", "so_101", "so-arm", "so_follower"} <= names
    assert {"soarm", "so_arm"} <= names
    assert (("phosphobot",), None) in asked  # which does not tag LeRobot


def test_listed_candidates_carry_their_newest_commit(listed):
    assert find(tags=["aloha"]) == [Candidate("cid/aloha", listed["cid/aloha"], False)]


def test_tags_go_together_with_lerobot(listed):
    assert found(tags=["so100"]) == ["ann/cubes", "bob/so100_Lego"]


def test_search_looks_at_names_whatever_their_tags(listed):
    assert found(search=["lego", "CUPS"]) == ["ann/so101_cups", "bob/so100_Lego"]


def test_author_alone_takes_all_and_narrows_the_rest(listed):
    assert found(author="cid") == ["cid/aloha", "cid/not_lerobot"]
    assert found(author="bob", tags=["so100"], search=["so101"]) == ["bob/so100_Lego"]


def test_a_file_stands_alone_or_adds_to_what_is_named(listed, tmp_path):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(["zoe/far", "ann/cubes"]))
    assert find(repo_ids=path) == [Candidate("ann/cubes"), Candidate("zoe/far")]
    both = find(repo_ids=path, tags=["so100"])
    assert [candidate.repo_id for candidate in both] == ["ann/cubes", "bob/so100_Lego", "zoe/far"]
    assert both[0].revision == listed["ann/cubes"]


def test_ids_that_the_client_refuses_are_left_out_and_named(monkeypatch, caplog):
    infos = [DatasetInfo(id=name, tags=[]) for name in ("ann/so101", "ann/a--b\x1b[2J", "canonical")]
    monkeypatch.setattr(client, "list_datasets", lambda **_: iter(infos))
    assert found(author="ann") == ["ann/so101"]
    assert r"'ann/a--b\x1b[2J'" in caplog.text


def test_limit(listed):
    assert found(limit=3) == ["ann/cubes", "ann/so101_cups", "bob/lamps"]


def test_nothing_found_is_an_error(listed):
    with pytest.raises(UserError, match="no dataset was found"):
        find(search=["no such name"])


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("a.json", '["a/b", "c/d", "a/b"]', ["a/b", "c/d"]),
        ("bad.json", '{"a/b": ["x: y"], "c/d": []}', ["a/b", "c/d"]),
        ("a.txt", "# my own\n\na/b  # the first\n c/d \na/b\n", ["a/b", "c/d"]),
        ("a.txt", "\ufeffa/b\r\nc/d\r\n", ["a/b", "c/d"]),
    ],
)
def test_ids_files(tmp_path, name, content, ids):
    (tmp_path / name).write_text(content)
    assert read_ids(tmp_path / name) == ids


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[", "is not valid JSON"),
        ("a.json", '"a/b"', "is not a JSON list"),
        ("a.json", "[1, 2]", "is not a JSON list"),
        ("a.json", "[]", "names no dataset"),
        ("a.txt", "# nothing\n", "names no dataset"),
        ("a.txt", "lonely\n", "'lonely', which is no dataset id"),
        ("a.txt", "a/b/c\n", "'a/b/c', which is no dataset id"),
        ("a.txt", "a/../b\n", "which is no dataset id"),
        ("a.txt", "a/b\x1b[31m\n", r"'a/b.x1b.31m', which is no dataset id"),
    ],
)
def test_malformed_ids_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_ids(tmp_path / name)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.txt"):
        read_ids(tmp_path / "absent.txt")


def test_listings_are_asked_at_once_and_a_failing_one_is_an_error(monkeypatch):
    both = threading.Barrier(2, timeout=20)

    def listing(tags=(), search=None, author=None):
        both.wait()
        if search == "down":
            raise HubUnreachable("no answer")
        yield from ()

    monkeypatch.setattr(client, "list_datasets", listing)
    with pytest.raises(UserError, match="no dataset was found"):
        find(tags=["so100"], search=["so101"])
    with pytest.raises(HubUnreachable, match="no answer"):
        find(tags=["so100"], search=["down"])
