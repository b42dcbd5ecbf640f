import base64
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import recordings
from browsing import OpenedPage, chromium
from made_up_annotations import HAND, TOP, failure, result, write
from PIL import Image
from playwright.sync_api import Browser

from depi.annotate.episode_journal import RULES, read_results
from depi.annotate.review import decide, main, make_app, select, take_pictures
from depi.annotate.sidecar import write_sidecar
from depi.annotate.stats import count
from depi.annotate.work import local_state
from depi.datasets.samples.annotations import (
    MAX_TEXT,
    AnnotatedEpisodes,
    EpisodeAnnotation,
    read_annotations,
    write_annotations,
)
from depi.errors import DatasetError, UserError
from depi.serving import listen, make_server, own_names, serving
from tests.helpers.training_set import training_set

HOSTILE = "</script><img src=x onerror=\"window.hacked='img'\"><script>window.hacked='script'</script>"
RECORDING = recordings.Recording(
    lengths=(12, 12, 12, 12), cameras=(TOP, HAND), tasks=("test",), size=(64, 64)
)
REPO = "ann/cubes"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from chromium()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recordings.write_v2(tmp_path_factory.mktemp("recorded") / "cubes", RECORDING)


@pytest.fixture
def folder(tmp_path: Path, root: Path) -> Path:
    state = local_state(root)
    unsure = {"task": None, "proposed": "Touch the blue cube.", "confidence": 0.2}
    write(
        tmp_path,
        REPO,
        result(0, revision=state, confidence=0.8, frames={TOP: (0, 4, 11), HAND: (0, 4, 11)}),
        result(1, revision=state, confidence=0.95, task="test", frames={TOP: (0, 11), HAND: (0, 11)}),
        result(2, revision=state, frames={TOP: (3,), HAND: (3,)}, flags=("low_confidence",), **unsure),
        replace(failure(3, "the server answered 500"), revision=state),
    )
    return tmp_path


@contextmanager
def served(folder: Path, root: Path | None = None, repo_id: str | None = None) -> Iterator[tuple[str, str]]:
    """The address of the page, and the token."""
    chosen = select(folder, repo_id, 300)
    pictures, without = take_pictures(chosen, root, 64e6) if root else ({}, 0)
    with listen("127.0.0.1", 0, "the test") as sock:
        port, token = sock.getsockname()[1], "a-token"
        app = make_app(folder, token, chosen, pictures, without)
        server = make_server(app, own_names("127.0.0.1", sock))
        with serving(server, sock, "review"):
            yield f"http://127.0.0.1:{port}/", token


def ids(opened: OpenedPage) -> list[str]:
    return opened.page.eval_on_selector_all("#list > li", "all => all.map(each => each.dataset.id)")


def number_in(src: str) -> int:
    """The number in a picture of the page."""
    jpeg = base64.b64decode(src.removeprefix("data:image/jpeg;base64,"))
    return recordings.number_in(np.asarray(Image.open(io.BytesIO(jpeg))).transpose(2, 0, 1))


def card(opened: OpenedPage, episode: int, repo_id: str = REPO):
    return opened.page.locator(f'li[data-id="{repo_id} {episode}"]')


def test_the_page_shows_the_frames_that_the_model_saw(browser: Browser, folder: Path, root: Path, tmp_path):
    page = tmp_path / "page.html"
    assert main([str(folder), f"--repo_id={REPO}", f"--root={root}", f"--output={page}"]) == 0
    opened = OpenedPage(browser, page.as_uri())
    shown = card(opened, 0).locator("img").evaluate_all("all => all.map(image => image.src)")
    assert list(map(number_in, shown)) == [0, 4, 11, 1000, 1004, 1011]
    captions = card(opened, 0).locator("figcaption").all_inner_texts()
    assert captions == ["frame 0", "frame 4", "frame 11"] * 2
    assert card(opened, 0).locator(".camera").all_inner_texts() == ["cam_a (top)", "image2 (wrist)"]
    assert card(opened, 0).locator(".recorded").inner_text() == "test"
    assert card(opened, 0).locator(".new").inner_text() == "Pick up the red cube."
    headings = [card(opened, episode).locator("h3").all_inner_texts()[1].lower() for episode in (0, 1)]
    assert headings == ["new", "same as recorded"]
    shown = card(opened, 3).locator("img").evaluate_all("all => all.map(image => image.src)")
    assert list(map(number_in, shown)) == [300, 306, 311, 1300, 1306, 1311], (
        "nothing was seen: its start to end"
    )
    assert "failed: the server answered 500" in card(opened, 3).inner_text()
    # A file cannot save: it says how.
    assert opened.page.locator("#list button:enabled").count() == 0
    assert f"depi annotate review --serve --annotations={folder}" in opened.page.inner_text("#how")
    opened.page.close()
    assert opened.complaints == []


def test_sort_and_filter(browser: Browser, folder: Path, root: Path, tmp_path: Path):
    assert main([str(folder), f"--output={tmp_path / 'page.html'}"]) == 0
    opened = OpenedPage(browser, (tmp_path / "page.html").as_uri())
    page = opened.page
    assert ids(opened) == [f"{REPO} {episode}" for episode in (2, 0, 1, 3)], "what is not known comes last"
    page.select_option("#sort", label="most confident first")
    assert ids(opened) == [f"{REPO} {episode}" for episode in (1, 0, 2, 3)]
    page.select_option('select[name="status"]', "kept recorded")
    assert ids(opened) == [f"{REPO} 2"]
    page.select_option('select[name="status"]', "")
    page.select_option('select[name="flag"]', "failed")
    assert ids(opened) == [f"{REPO} 3"]
    page.click("#clear")
    page.fill("#search", "BLUE touch")
    assert ids(opened) == [f"{REPO} 2"]
    assert page.inner_text("#count") == "1 of 4 episodes"
    page.fill("#search", "nowhere")
    assert page.is_visible("#empty")
    page.close()
    assert opened.complaints == []


def test_accept_reject_and_edit_are_in_the_sidecar_at_once(browser: Browser, folder: Path, root: Path):
    with served(folder, root, REPO) as (url, token):
        opened = OpenedPage(browser, f"{url}?token={token}")
        page = opened.page
        card(opened, 2).get_by_role("button", name="Accept").click()
        card(opened, 2).locator(".badge.accepted").wait_for()
        card(opened, 1).get_by_role("button", name="Reject").click()
        card(opened, 1).locator(".badge.rejected").wait_for()
        card(opened, 0).get_by_role("button", name="Edit").click()
        card(opened, 0).locator("textarea").fill("  Lift the\nred cube.  ")
        page.fill("#search", "cube")  # what is being typed survives
        card(opened, 0).get_by_role("button", name="Save").click()
        card(opened, 0).locator(".badge.edited").wait_for()
        reviewed = page.locator("#totals > div", has_text="Reviewed").locator(".number").inner_text()
        assert reviewed == "3"
        # As training reads it.
        annotated = AnnotatedEpisodes(training_set({REPO: range(3)}), folder)
        assert [annotated.task(episode) for episode in range(3)] == [
            "Lift the red cube.",
            None,
            "Touch the blue cube.",
        ]
        rows, provenance = read_annotations(folder, REPO)
        assert [row.flags for row in rows] == [("edited",), ("rejected",), ("low_confidence", "accepted")]
        assert provenance["counts"]["reviewed"] == 3
        page.reload()
        assert card(opened, 0).locator(".new").inner_text() == "Lift the red cube."
        badges = [card(opened, episode).locator(".badge").inner_text() for episode in range(4)]
        assert badges == ["edited", "rejected", "accepted", "failed"]
        assert card(opened, 0).locator("img").count() == 6
        page.select_option('select[name="review"]', "rejected")
        assert ids(opened) == [f"{REPO} 1"]
        page.close()
        assert opened.complaints == []


def test_an_episode_that_failed_takes_a_text_by_hand(browser: Browser, folder: Path):
    with served(folder) as (url, token):
        opened = OpenedPage(browser, f"{url}?token={token}")
        for name in ("Accept", "Reject"):
            assert card(opened, 3).get_by_role("button", name=name).is_disabled()
        card(opened, 3).get_by_role("button", name="Edit").click()
        card(opened, 3).locator("textarea").fill("Push the cube.")
        card(opened, 3).get_by_role("button", name="Save").click()
        card(opened, 3).locator(".badge.edited").wait_for()
        opened.page.close()
        assert opened.complaints == []
    rows, provenance = read_annotations(folder, REPO)
    assert (rows[3].task, rows[3].flags, rows[3].confidence) == ("Push the cube.", ("edited",), 1.0)
    assert rows[3].camera_views == {TOP: "top", HAND: "wrist"}
    assert (provenance["counts"]["episodes"], provenance["counts"]["failed"]) == (4, 0)
    episodes = count(folder)["episodes"]
    assert (episodes["all"], episodes["failed"]) == (4, 0)


def test_a_dataset_of_which_all_failed_takes_texts_by_hand(tmp_path: Path):
    write(tmp_path, REPO, failure(0, "refused"), failure(1, "refused"))
    assert read_annotations(tmp_path, REPO) is None
    for verdict in ("accepted", "rejected"):
        with pytest.raises(UserError, match="no annotation to decide about"):
            decide(tmp_path, {REPO}, {"repo_id": REPO, "episode": 1, "verdict": verdict, "task": "x"})
    with pytest.raises(UserError, match="was not annotated"):
        decide(tmp_path, {REPO}, {"repo_id": REPO, "episode": 2, "verdict": "edited", "task": "Push it."})
    row = decide(tmp_path, {REPO}, {"repo_id": REPO, "episode": 1, "verdict": "edited", "task": "Push it."})
    assert (row["status"], row["review"], row["task"]) == ("annotated", "edited", "Push it.")
    rows, provenance = read_annotations(tmp_path, REPO)
    assert [(row.episode_index, row.task) for row in rows] == [(1, "Push it.")]
    assert (provenance["model"], provenance["counts"]["failed"]) == ("some/vlm", 1)
    assert select(tmp_path, None, 9).keys == [(REPO, 0), (REPO, 1)], "undecided ones first"
    row = decide(tmp_path, {REPO}, {"repo_id": REPO, "episode": 1, "verdict": "rejected", "task": None})
    assert (row["status"], row["review"], row["task"]) == ("failed", None, None)
    assert read_annotations(tmp_path, REPO) is None, "no text is left"
    assert [path.name for path in (tmp_path / REPO).parent.iterdir()] == ["cubes.jsonl"]
    write(tmp_path, REPO, result(1))
    assert read_annotations(tmp_path, REPO)[0][0].task == "Pick up the red cube.", "another text is used"


def test_a_sidecar_without_a_journal_stays_where_all_fails(tmp_path: Path):
    write_annotations(tmp_path, REPO, [EpisodeAnnotation(0, task="Wipe it.")], {"state": "a" * 40})
    write(tmp_path, REPO, failure(0, "refused"))
    assert read_annotations(tmp_path, REPO)[0][0].task == "Wipe it."


def test_what_cannot_be_saved_is_said_beside_the_episode(browser: Browser, folder: Path):
    with served(folder) as (url, token):
        opened = OpenedPage(browser, f"{url}?token={token}")
        # Another tab changes the text meanwhile.
        decide(folder, {REPO}, {"repo_id": REPO, "episode": 0, "verdict": "edited", "task": "Drop it."})
        decided = len(read_results(folder, REPO).reviews)
        write(folder, REPO, result(0, revision=read_results(folder, REPO).revision, proposed="Drop it."))
        card(opened, 0).get_by_role("button", name="Accept").click()
        said = card(opened, 0).locator(".said")
        said.wait_for()
        assert "the text has changed meanwhile" in said.inner_text()
        card(opened, 1).get_by_role("button", name="Edit").click()
        card(opened, 1).locator("textarea").fill("   ")
        card(opened, 1).get_by_role("button", name="Save").click()
        card(opened, 1).locator(".said").wait_for()
        assert "an edit needs a text" in card(opened, 1).locator(".said").inner_text()
        assert len(read_results(folder, REPO).reviews) == decided
        opened.page.close()
        assert all("409" in complaint for complaint in opened.complaints), opened.complaints


@pytest.mark.parametrize("saves", [False, True])
def test_hostile_text_is_only_text(browser: Browser, tmp_path: Path, saves: bool):
    hostile = result(
        0,
        recorded=HOSTILE,
        proposed=f"{HOSTILE} $title \u2028 ]]> &lt;b&gt;",
        task=HOSTILE,
        flags=(f"check:{HOSTILE}", "__proto__"),
        views={f"observation.images.{HOSTILE}": "top"},
        frames={HOSTILE: (0,)},
    )
    write(tmp_path, "evil/data", hostile, failure(1, HOSTILE))
    if saves:
        with served(tmp_path) as (url, token):
            opened = OpenedPage(browser, f"{url}?token={token}")
            card(opened, 0, "evil/data").get_by_role("button", name="Edit").click()
            card(opened, 0, "evil/data").locator("textarea").fill(HOSTILE)
            card(opened, 0, "evil/data").get_by_role("button", name="Save").click()
            card(opened, 0, "evil/data").locator(".badge.edited").wait_for()
            opened.page.reload()
            check_harmless(opened)
        assert read_annotations(tmp_path, "evil/data")[0][0].task == HOSTILE
    else:
        assert main([str(tmp_path), f"--output={tmp_path / 'page.html'}"]) == 0
        check_harmless(OpenedPage(browser, (tmp_path / "page.html").as_uri()))


def check_harmless(opened: OpenedPage) -> None:
    page = opened.page
    assert card(opened, 0, "evil/data").locator(".recorded").inner_text() == HOSTILE
    assert card(opened, 0, "evil/data").locator(".new").inner_text() == HOSTILE
    assert HOSTILE in card(opened, 1, "evil/data").inner_text()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    page.close()
    assert opened.complaints == []


@pytest.mark.parametrize("width", [360, 1024])
def test_nothing_overflows_sideways(browser: Browser, folder: Path, root: Path, tmp_path: Path, width: int):
    assert main([str(folder), f"--repo_id={REPO}", f"--root={root}", f"--output={tmp_path / 'p.html'}"]) == 0
    opened = OpenedPage(browser, (tmp_path / "p.html").as_uri(), viewport={"width": width, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.close()


def test_other_sites_and_users_are_refused(folder: Path):
    decision = {"repo_id": REPO, "episode": 0, "verdict": "rejected", "task": None}
    before = (folder / f"{REPO}.jsonl").read_bytes()
    with served(folder) as (url, token), httpx.Client(trust_env=False) as client:
        origin = url.rstrip("/")
        host = url.split("/")[2]
        good = {"Origin": origin, "X-Review-Token": token, "Content-Type": "application/json"}

        def post(body: object = decision, **changes: str | None) -> httpx.Response:
            headers = {name: value for name, value in {**good, **changes}.items() if value is not None}
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return client.post(f"{url}review", headers=headers, content=content)

        assert client.get(url).status_code == 403
        assert client.get(url, params={"token": "wrong"}).status_code == 403
        rebound = client.get(url, params={"token": token}, headers={"Host": f"evil.example:{host[10:]}"})
        assert rebound.status_code == 400
        page = client.get(url, params={"token": token})
        assert page.status_code == 200
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["x-content-type-options"] == "nosniff"
        refused = {
            403: [
                post(**{"X-Review-Token": None}),
                post(**{"X-Review-Token": "wrong"}),
                post(Origin=None),
                post(Origin="http://evil.example"),
                post(Origin="null"),
                post(Origin=f"https://{host}"),
            ],
            415: [post(**{"Content-Type": "text/plain"}), post(**{"Content-Type": None})],
            413: [post(b" " * 20_000)],
            400: [post(Host="evil.example"), post(b"{"), post(b"[]"), post(b"[" * 10_000)],
            409: [
                post({**decision, "repo_id": "other/data"}),
                post({**decision, "repo_id": ["ann/cubes"]}),
                post({**decision, "repo_id": "../cubes"}),
                post({**decision, "episode": 99}),
                post({**decision, "episode": True}),
                post({**decision, "episode": "0"}),
                post({**decision, "verdict": "deleted"}),
                post({**decision, "verdict": "edited", "task": "x" * (MAX_TEXT + 1)}),
                post({**decision, "verdict": "edited", "task": "Turn \x1b[31m it."}),
                post({**decision, "verdict": "edited", "task": 3}),
                post({**decision, "verdict": "accepted", "task": "Something else."}),
                post({**decision, "episode": 3}),
            ],
            405: [client.get(f"{url}review", headers=good)],
            404: [client.get(f"{url}../../etc/passwd"), client.get(f"{url}cubes.jsonl")],
        }
        for status, answers in refused.items():
            assert [answer.status_code for answer in answers] == [status] * len(answers)
        assert (folder / f"{REPO}.jsonl").read_bytes() == before
        assert post().json()["row"]["review"] == "rejected"


def test_tabs_and_servers_that_save_at_once_lose_nothing(tmp_path: Path):
    episodes = 12
    write(tmp_path, REPO, *(result(number) for number in range(episodes)))
    with (
        served(tmp_path) as (one, token),
        served(tmp_path) as (two, _),
        httpx.Client(trust_env=False) as client,
    ):

        def post(number: int) -> int:
            url = (one, two)[number % 2]
            decision = {
                "repo_id": REPO,
                "episode": number,
                "verdict": "edited",
                "task": f"Take cube {number}.",
            }
            headers = {"Origin": url.rstrip("/"), "X-Review-Token": token}
            return client.post(f"{url}review", headers=headers, json=decision).status_code

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(post, range(episodes))) == {200}
    rows, _ = read_annotations(tmp_path, REPO)
    assert [row.task for row in rows] == [f"Take cube {number}." for number in range(episodes)]
    assert len(read_results(tmp_path, REPO).reviews) == episodes


def test_the_command_serves_until_it_is_told_to_stop(folder: Path):
    command = [sys.executable, "-m", "depi.cli", "annotate", "review", "--serve", f"--annotations={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", process.stdout.readline())
        assert url is not None
        assert "Review of annotations" in httpx.get(url[0], trust_env=False).text
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert "Review ended." in process.stdout.read()
    finally:
        process.kill()
        process.communicate()


def test_a_rejected_text_gives_way_to_another_one(tmp_path: Path):
    write(tmp_path, REPO, result(0))
    decide(tmp_path, {REPO}, {"repo_id": REPO, "episode": 0, "verdict": "rejected", "task": None})
    assert read_annotations(tmp_path, REPO)[0][0].task is None
    write(tmp_path, REPO, result(0, proposed="Touch the cube.", task="Touch the cube."))
    assert read_annotations(tmp_path, REPO)[0][0].task == "Touch the cube."


def test_an_accepted_text_stays_when_another_is_proposed(tmp_path: Path):
    write(tmp_path, REPO, result(0))
    accepted = {"repo_id": REPO, "episode": 0, "verdict": "accepted", "task": "Pick up the red cube."}
    assert decide(tmp_path, {REPO}, accepted)["review"] == "accepted"
    write(tmp_path, REPO, result(0, proposed="Touch the cube.", task="Touch the cube."))
    assert read_annotations(tmp_path, REPO)[0][0].task == "Pick up the red cube."


def test_episodes_and_pictures_are_bounded(folder: Path, root: Path, caplog: pytest.LogCaptureFixture):
    chosen = select(folder, REPO, 2)
    assert chosen.keys == [(REPO, 2), (REPO, 0)]
    assert chosen.left_out == 2
    everything = select(folder, REPO, 300)
    pictures, without = take_pictures(everything, root, 64e6)
    assert without == 0
    size = sum(len(jpeg) for _, _, jpeg in pictures[REPO, 2])
    some, without = take_pictures(everything, root, size * 1.5)
    assert (list(some), without) == ([(REPO, 2)], 3)
    # Without the folder there are none, and it is said why.
    assert take_pictures(everything, None, 64e6) == ({}, 4)
    assert "it was annotated from a folder" in caplog.text


def test_results_of_rules_show_start_middle_and_end(folder: Path, root: Path):
    state = local_state(root)
    rules = {"backend": RULES, "model": RULES, "confidence": None, "frames": {}, "tokens": {}}
    write(folder, "ann/rules", result(0, revision=state, **rules))
    pictures, _ = take_pictures(select(folder, "ann/rules", 9), root, 64e6)
    assert [(key, frame) for key, frame, _ in pictures["ann/rules", 0]] == [
        *((TOP, number) for number in (0, 6, 11)),
        *((HAND, number) for number in (0, 6, 11)),
    ]


def test_decisions_are_checked(folder: Path):
    good = {"repo_id": REPO, "episode": 0, "verdict": "edited", "task": "Lift it."}
    with pytest.raises(DatasetError, match="1001 characters"):
        decide(folder, {REPO}, {**good, "task": "x" * 1001})
    with pytest.raises(DatasetError, match="not printable"):
        decide(folder, {REPO}, {**good, "task": "Turn \u202e it."})
    for changes in ({"episode": -1}, {"episode": 1.0}, {"episode": None}, {"repo_id": None}, {"verdict": []}):
        with pytest.raises(UserError):
            decide(folder, {REPO}, {**good, **changes})
    write_sidecar(folder, REPO)
    assert read_results(folder, REPO).reviews == {}


def test_errors_name_the_remedy(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no folder .*: `depi annotate` writes one"):
        main([str(tmp_path / "none")])
    with pytest.raises(UserError, match="has no annotations of ann/x to review"):
        main([str(tmp_path), "--repo_id=ann/x"])
    write(tmp_path, REPO, result(0))
    for flags, says in {
        ("--repo_id=../x",): "--repo_id must be USER/NAME",
        ("--root=x",): "--root needs --repo_id",
        ("--serve", "--output=x.html"): "--output does not go with --serve",
        ("--max_episodes=0",): "must be at least 1",
        ("--max_picture_mb=-1",): "must be at least 0",
        ("--serve", "--port=70000"): "70000 is not a port",
    }.items():
        with pytest.raises(UserError, match=says):
            main([str(tmp_path), *flags])
