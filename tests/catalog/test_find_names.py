"""The listing of all names, page by page from the embedded Hub, and what each way of finding contributed."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from depi.catalog import names
from depi.catalog.collect import CollectConfig, _find
from depi.catalog.find import Candidate, contributions, find
from depi.catalog.names import PATTERN, matching_names
from depi.errors import UserError
from depi.files import cache_folder
from depi.flags import parse_flags
from depi.hub.client import api as client
from depi.hub.client import retry
from depi.hub.server.serve import serve
from depi.journal import LineFile

REPOS = {
    "ann/MyRoboSO.ARM.101Cups": ("LeRobot",),
    "ann/so101_cubes": ("LeRobot", "so101"),
    "bob/lamps": ("LeRobot", "so_follower"),
    "bob/towels": ("phosphobot", "so100", "phospho-dk"),
    "cid/aloha": ("LeRobot", "aloha"),
    "cid/english": (),
    "dan/boxes": ("LeRobot", "so 101"),
    "dan/reso.100nance": (),
}


class Desk:
    """Notes the listings of names that are asked for, and answers some itself: by their number, from 1."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.answer: dict[int, Response] = {}

    def __call__(self, request: Request) -> Response | None:
        if request.url.path != "/api/datasets" or "expand" not in request.query_params:
            return None
        self.asked.append(request)
        return self.answer.get(len(self.asked))


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A Hub's folder with repositories that differ in name and tags."""
    root = tmp_path_factory.mktemp("names")
    with serve(root) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.environment()["HF_TOKEN"])
        for repo_id, tags in REPOS.items():
            api.create_repo(repo_id, repo_type="dataset")
            card = "---\ntags:\n" + "".join(f"- {tag}\n" for tag in tags) + "---\n"
            api.upload_file(
                path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo_id, repo_type="dataset"
            )
    return root


@pytest.fixture
def listed(root, desk, tmp_path, monkeypatch) -> Iterator[Desk]:
    """That Hub, three names to a page."""
    monkeypatch.setattr(retry, "RETRIES", retry.RetryPolicy(attempts=1, longest_silence=0))
    with serve(root, page_size=3, faults=desk) as hub:
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))
        yield desk


def found(**options) -> list[str]:
    return [candidate.repo_id for candidate in find(**options)]


def test_a_listing_of_all_names_finds_the_robot_inside_longer_words(listed):
    names_found = {"ann/MyRoboSO.ARM.101Cups", "ann/so101_cubes", "dan/reso.100nance"}
    assert dict(matching_names()).keys() == names_found
    assert len(listed.asked) == 3  # eight repositories
    assert all(request.query_params.getlist("expand") == ["sha"] for request in listed.asked)
    assert set(found(wide="names")) - set(found()) == {"ann/MyRoboSO.ARM.101Cups", "dan/reso.100nance"}
    assert dict(matching_names(search=["ENGLISH"])).keys() == names_found | {"cid/english"}
    assert dict(matching_names(author="ann")).keys() == {"ann/MyRoboSO.ARM.101Cups", "ann/so101_cubes"}


def test_a_name_comes_with_the_newest_commit(listed):
    (candidate,) = [each for each in find(wide="names") if each.repo_id == "ann/MyRoboSO.ARM.101Cups"]
    assert candidate.revision == HfApi(endpoint=client.endpoint()).dataset_info(candidate.repo_id).sha
    assert candidate.ways == ("all names",)


def test_a_listing_that_fails_half_way_goes_on_there(listed):
    whole = set(matching_names())
    listed.asked.clear()
    listed.answer[3] = JSONResponse({"error": "down"}, 503)
    with pytest.raises(client.HubUnreachable):
        list(matching_names())
    first = [request.query_params.get("cursor") for request in listed.asked]
    listed.answer.clear()
    listed.asked.clear()
    assert set(matching_names()) == whole
    assert [request.query_params.get("cursor") for request in listed.asked] == first[2:]
    assert not list((cache_folder() / "names").iterdir())


def test_an_old_listing_is_begun_anew(listed, monkeypatch):
    listed.answer[2] = JSONResponse({"error": "down"}, 503)
    with pytest.raises(client.HubUnreachable):
        list(matching_names())
    now = time.time()
    monkeypatch.setattr(names.time, "time", lambda: now + names.MAX_AGE + 60)
    listed.asked.clear()
    listed.answer.clear()
    list(matching_names())
    assert len(listed.asked) == 3


def test_a_cursor_that_the_hub_refuses_does_not_stop_all_later_calls(listed):
    listed.answer[2] = JSONResponse({"error": "Invalid cursor"}, 400)
    with pytest.raises(client.HubError, match="Invalid cursor"):
        list(matching_names())
    listed.asked.clear()
    listed.answer.clear()
    assert len(list(matching_names())) == 3
    assert len(listed.asked) == 3


@pytest.mark.parametrize("answer", [{"a": 1}, ["x"], [1], None])
def test_an_answer_that_is_no_list_of_datasets_is_an_error(listed, answer):
    listed.answer[1] = JSONResponse(answer)
    with pytest.raises(client.HubError, match="answers a listing with something else"):
        list(matching_names())


def test_entries_without_an_id_or_a_sha_do_no_harm(listed):
    entries = [{"id": "zoe/so101", "sha": 5}, {"id": None, "sha": "x"}, {"sha": "so101"}]
    listed.answer[1] = JSONResponse(entries)
    assert list(matching_names()) == [("zoe/so101", None)]


def test_two_processes_do_not_list_at_once(listed, tmp_path):
    listed.answer[2] = JSONResponse({"error": "down"}, 503)
    with pytest.raises(client.HubUnreachable):
        list(matching_names())
    (file,) = (cache_folder() / "names").iterdir()
    with LineFile(file), pytest.raises(UserError, match="another depi collect-ids lists the names"):
        list(matching_names())


def test_the_default_knows_the_spellings_and_phosphobot(listed):
    assert found() == ["ann/so101_cubes", "bob/lamps", "bob/towels", "dan/boxes"]
    ways = {candidate.repo_id: candidate.ways for candidate in find()}
    assert ways["bob/towels"] == ("tag phosphobot",)
    assert ways["bob/lamps"] == ("tag so_follower",)
    assert ways["dan/boxes"] == ("tag so 101",)
    assert set(ways["ann/so101_cubes"]) == {"tag so101", "name so101"}


@pytest.mark.parametrize(
    "name",
    [
        "so101",
        "SO_101",
        "so-arm",
        "soarm",
        "SO.ARM.100",
        "grabso100er",
        "so_follower",
        "bi_so101_x",
        "so_arm101",
    ],
)
def test_names_that_match(name):
    assert PATTERN.search(name)


@pytest.mark.parametrize("name", ["so10", "solar", "also_army", "espresso_follower", "s0101", "so_1_100"])
def test_names_that_do_not(name):
    assert not PATTERN.search(name)


@pytest.mark.parametrize(
    ("flags", "ways"),
    [
        (["--wide"], {"tag LeRobot"}),
        (["--wide=true"], {"tag LeRobot"}),
        (["--wide=tags"], {"tag LeRobot"}),
        (["--wide=all"], {"tag LeRobot", "all names"}),
        (["--wide=names", "--search=cups"], {"all names", "name cups"}),
        (["--wide=false", "--search=cups"], {"name cups"}),
    ],
)
def test_how_far_to_look_is_said_by_a_flag(listed, flags, ways):
    config = parse_flags(CollectConfig, flags, "depi collect-ids")
    assert {way for candidate in _find(config) for way in candidate.ways} == ways


def test_another_way_is_refused():
    with pytest.raises(UserError, match="--wide=far is none of tags, names, all"):
        CollectConfig(wide="far")


def test_each_way_is_told_what_it_contributed():
    candidates = [
        Candidate("a/one", ways=("tag so100", "name so100")),
        Candidate("a/two", ways=("name so100",)),
        Candidate("b/many", ways=("name so100",)),
        Candidate("c/three", ways=("repo_ids",)),
    ]
    assert contributions(candidates, ["a/one", "b/many:x", "b/many:y"]) == {
        "name so100": {"found": 3, "alone": 2, "accepted": 3},
        "repo_ids": {"found": 1, "alone": 1, "accepted": 0},
        "tag so100": {"found": 1, "alone": 0, "accepted": 1},
    }
