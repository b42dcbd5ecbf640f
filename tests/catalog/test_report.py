import dataclasses
import io
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import OpenedPage, chromium
from PIL import Image
from playwright.sync_api import Browser

from depi.catalog.catalogue import Row, write_catalog
from depi.catalog.episodes import add_verdicts, verdicts_of
from depi.catalog.report import ReportConfig, main, read_pictures, render
from depi.catalog.thumbnails import Thumbnail, write_thumbnails
from depi.datasets.judging.faults import Fault
from depi.errors import UserError

HOSTILE = "</script><img src=x onerror=\"window.hacked='img'\"><script>window.hacked='script'</script>"
TASKS = ("Pick up the red cube.", "Stack the cups.", "Fold the towel in half.", "Put the pen in the holder.")
RULES = ("not_duplicate", "enough_episodes", "joints_known", "tables_readable", "motion_present")


def jpeg(seed: int, size: tuple[int, int] = (120, 160)) -> bytes:
    rows, columns = np.mgrid[: size[0], : size[1]] / size[1]
    image = np.stack([rows, columns, (rows + columns + seed / 7) % 1], axis=2) * 255
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """A catalogue with the spread of a real one, in its order: accepted first, best first."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        accepted = number < 0.7 * count
        names = [f"observation.images.{name}" for name in ("front", "wrist", "top")[: random.integers(1, 4)]]
        low = np.array([-60, -99, -90, 10, -50, 0]) + random.uniform(-30, 30, 6)
        high = np.array([50, 40, 95, 90, 60, 80]) + random.uniform(-20, 20, 6)
        rows.append(
            Row(
                repo_id=f"author{random.integers(count // 5 + 1)}/so101_{number:05d}",
                verdict="accepted" if accepted else "rejected" if number < 0.98 * count else "failed",
                revision=f"{number:040x}",
                codebase_version=random.choice(["v2.1", "v3.0", "v2.0"], p=[0.6, 0.3, 0.1]),
                robot_type=random.choice(["so101_follower", "so100"]),
                joint_convention=random.choice(["normalized", "degrees", "degrees_v1"], p=[0.7, 0.2, 0.1]),
                joint_evidence="names of today, 3 of 5 joints rest at ±100" if accepted else None,
                fps=float(random.choice([30, 30, 30, 25, 60])),
                cameras=names,
                num_cameras=len(names),
                episodes=int(random.integers(5, 200)),
                frames=int(random.integers(1000, 90000)),
                tasks=[TASKS[random.integers(4)]],
                license="apache-2.0",
                created_at=datetime(2024, 6, 1, tzinfo=UTC)
                + timedelta(days=float(600 * random.uniform() ** 0.5)),
                score=round(1 - number / count, 4) if accepted else None,
                reasons=[] if accepted else [f"{RULES[random.integers(5)]}: so it was found to be"],
                flags=["approximate_joints: degrees right to about 2%"] if accepted else [],
                checked_at=datetime(2026, 2, 1, tzinfo=UTC),
                rules_version="3",
                action_min=low.tolist(),
                action_max=high.tolist(),
                action_q01=(low + 8).tolist(),
                action_q99=(high - 8).tolist(),
            )
        )
    return rows


def write_pictures(folder: Path, rows: list[Row]) -> None:
    pictures = [
        Thumbnail(row.repo_id, row.revision or "", camera, jpeg(number + 3 * slot))
        for number, row in enumerate(rows)
        for slot, camera in enumerate(row.cameras or [])
    ]
    write_thumbnails(folder, pictures)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from chromium()


class Opened(OpenedPage):
    """The report in a browser."""

    def __init__(self, browser: Browser, path: Path, **context: Any) -> None:
        super().__init__(browser, path.as_uri(), **context)

    def ids(self) -> list[str]:
        return self.page.eval_on_selector_all("tbody tr[data-id]", "rows => rows.map(row => row.dataset.id)")

    def count(self) -> str:
        return self.page.inner_text("#count")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return make_rows(60)


@pytest.fixture(scope="module")
def folder(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data_ids")
    write_catalog(folder, rows, {})
    write_pictures(folder, rows[:20])
    assert main([f"--data_ids={folder}", "--title=Robots & arms"]) == 0
    return folder


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Iterator[Opened]:
    opened = Opened(browser, folder / "report.html")
    yield opened
    opened.page.close()
    assert opened.complaints == []


def test_totals_and_charts_count_the_catalogue(opened: Opened, rows: list[Row]):
    page = opened.page
    assert page.inner_text("h1") == "Robots & arms"
    totals = page.locator("#totals .number").all_inner_texts()
    accepted = [row for row in rows if row.verdict == "accepted"]
    assert totals[:3] == ["60", str(len(accepted)), f"{sum(row.episodes for row in accepted):,}"]
    hours = sum(row.frames / row.fps for row in accepted) / 3600
    assert totals[4] == f"{hours:.0f} h"
    version = page.locator('button[data-facet="version"][data-value="v3.0"]')
    assert version.locator(".bar-count").inner_text() == str(
        sum(row.codebase_version == "v3.0" for row in rows)
    )
    assert page.locator(".growth svg").get_attribute("aria-label").startswith("60 datasets by 2026-")
    names = page.locator(".card h2").evaluate_all("all => all.map(each => each.firstChild.textContent)")
    assert names == [
        *("Growth", "Rejections by rule", "Format version", "Joint convention"),
        *("Frames per second", "Number of cameras", "Camera names", "Licence", "Tasks"),
    ]


def test_header_buttons_sort_up_down_and_back(opened: Opened, rows: list[Row]):
    page, header = opened.page, opened.page.locator("#table thead th.c-episodes")
    first = opened.ids()[0]
    assert first == rows[0].repo_id
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    most = max(rows, key=lambda row: row.episodes)
    assert opened.ids()[0] == most.repo_id
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert opened.ids()[0] == min(rows, key=lambda row: row.episodes).repo_id
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "none"
    assert opened.ids()[0] == first
    page.locator("#table thead th.c-score button").click()
    page.locator("#table thead th.c-score button").click()
    worst = min((row for row in rows if row.score is not None), key=lambda row: row.score)
    assert opened.ids()[0] == worst.repo_id, "a dataset without a score is no worse one: it comes last"


def test_search_finds_every_word_in_any_order(opened: Opened, rows: list[Row]):
    opened.page.fill("#search", "TOWEL fold")
    expected = sum("Fold the towel in half." in row.tasks for row in rows)
    assert opened.count() == f"{expected} of 60 datasets"
    opened.page.fill("#search", "no such dataset")
    assert opened.page.is_visible("#empty")
    assert opened.ids() == []
    opened.page.click("#clear")
    assert opened.count() == "60 datasets"


def test_bars_and_menus_filter_alike(opened: Opened, rows: list[Row]):
    page = opened.page
    page.click('button[data-facet="rule"][data-value="not_duplicate"]')
    refused = [row for row in rows if row.reasons and row.reasons[0].startswith("not_duplicate")]
    assert set(opened.ids()) == {row.repo_id for row in refused}
    assert page.input_value('#facets select[name="rule"]') == "not_duplicate"
    page.select_option('#facets select[name="version"]', "v2.1")
    both = [row for row in refused if row.codebase_version == "v2.1"]
    assert opened.count() == f"{len(both)} of 60 datasets"
    assert page.get_attribute('button[data-facet="version"][data-value="v2.1"]', "aria-pressed") == "true"
    page.click('button[data-facet="rule"][data-value="not_duplicate"]')
    page.select_option('#facets select[name="version"]', "")
    assert opened.count() == "60 datasets"


def test_two_arms_and_evaluation_runs_are_told_apart(browser: Browser, tmp_path: Path):
    rows = make_rows(6)
    for row, (bimanual, evaluation) in zip(rows, [(False, False), (True, False), (True, True)], strict=False):
        row.bimanual, row.evaluation = bimanual, evaluation
    rows[3].evaluation = True
    path = tmp_path / "report.html"
    path.write_text(render(rows, {}, title="Kinds"), encoding="utf-8")
    opened = Opened(browser, path)
    for kind, expected in {
        "one arm": [0],
        "two arms": [1, 2],
        "evaluation run": [2, 3],
        "not known": [4, 5],
    }.items():
        opened.page.select_option('#facets select[name="kind"]', kind)
        assert opened.ids() == [rows[number].repo_id for number in expected]
    opened.page.close()
    assert opened.complaints == []


def test_pictures_and_joint_ranges_are_shown(opened: Opened, rows: list[Row]):
    page = opened.page
    page.locator("#datasets-heading").evaluate("heading => heading.scrollIntoView()")
    page.wait_for_selector("tr[aria-rowindex='18']")
    page.wait_for_function("[...document.querySelectorAll('#table img')].every(image => image.complete)")
    widths = page.eval_on_selector_all("#table img", "all => all.map(image => image.naturalWidth)")
    assert len(widths) >= 15
    assert set(widths) == {160}
    said = page.locator("#table svg.ranges title").first.text_content()
    assert said.startswith(f"shoulder pan {rows[0].action_min[0]:.2f} to ")
    assert page.locator("#table svg.ranges").first.locator("rect.bulk").count() == 6


def test_section_shows_all_evidence_and_closes(opened: Opened, rows: list[Row]):
    page, row = opened.page, rows[3]
    assert page.is_hidden("#panel")
    page.locator(f'tr[data-id="{row.repo_id}"] a.name').click()
    section = page.inner_text("#section")
    for value in (row.repo_id, row.revision, row.joint_evidence, row.license, row.tasks[0], row.robot_type):
        assert value in section
    assert "degrees right to about 2%" in section
    assert "null" not in section
    assert page.evaluate("document.activeElement.id") == "section-heading"
    link = page.locator("#section a[target=_blank]")
    assert link.get_attribute("href").endswith(f"/datasets/{row.repo_id}/tree/{row.revision}/")
    assert page.locator("#section figure").count() == len(row.cameras)
    page.get_by_label("Next dataset").click()
    assert page.inner_text("#section-heading") == rows[4].repo_id
    page.go_back()
    assert page.inner_text("#section-heading") == row.repo_id
    page.keyboard.press("Escape")
    assert page.is_hidden("#panel")


def test_section_shows_where_the_faults_of_episodes_lie(browser: Browser, tmp_path: Path, rows: list[Row]):
    row = dataclasses.replace(rows[0])
    faults = [
        Fault("state_live", 7, "the state <b>stands</b> still", leaves_out=True, begin=50, end=75),
        Fault("task_told", 7, "no task", leaves_out=False),
    ]
    add_verdicts(row, verdicts_of([6, 7], [80, 100], faults))
    write_catalog(tmp_path, [row, *rows[1:3]], {})
    assert main([f"--data_ids={tmp_path}"]) == 0
    opened = Opened(browser, tmp_path / "report.html")
    opened.page.locator(f'tr[data-id="{row.repo_id}"] a.name').click()
    section = opened.page.inner_text("#section")
    assert "state_live the state <b>stands</b> still" in section
    assert "task_told no task (remark)" in section
    assert "episode 6" not in section
    marks = opened.page.locator(".timeline rect")
    assert [marks.nth(1).get_attribute(name) for name in ("x", "width", "class")] == ["50", "25", "rejected"]
    assert [marks.nth(2).get_attribute(name) for name in ("x", "width", "class")] == ["0", "100", "failed"]
    assert opened.complaints == []
    opened.page.close()


def test_section_can_be_linked_to(browser: Browser, folder: Path, rows: list[Row]):
    page = browser.new_page()
    page.goto(f"{(folder / 'report.html').as_uri()}#{rows[50].repo_id.replace('/', '%2F')}")
    assert page.inner_text("#section-heading") == rows[50].repo_id
    assert rows[50].reasons[0].partition(": ")[2] in page.inner_text("#section .reasons")
    page.close()


@pytest.mark.parametrize("width", [360, 768, 1024, 1920])
def test_nothing_overflows_sideways(browser: Browser, folder: Path, width: int):
    opened = Opened(browser, folder / "report.html", viewport={"width": width, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.close()
    assert opened.complaints == []


def test_hostile_text_is_only_text(browser: Browser, tmp_path: Path):
    hostile = Row(
        repo_id=f"evil/{HOSTILE}",
        verdict="rejected",
        revision="javascript:alert(1)",
        codebase_version=HOSTILE,
        robot_type="<!--<script>",
        joint_evidence=HOSTILE,
        cameras=[f"observation.images.{HOSTILE}"],
        num_cameras=1,
        fps=math.inf,
        tasks=[HOSTILE, "]]>", "\u2028 &lt;b&gt; \\u003c"],
        license="__proto__",
        reasons=[f"rule: {HOSTILE}", "__proto__: constructor"],
        duplicate_of=f"evil/{HOSTILE}",
    )
    write_catalog(tmp_path, [hostile, Row(repo_id="__proto__", verdict=HOSTILE)], {})
    write_pictures(tmp_path, [hostile])
    assert main([f"--data_ids={tmp_path}", f"--title={HOSTILE}"]) == 0
    opened = Opened(browser, tmp_path / "report.html")
    page = opened.page
    assert page.inner_text("h1") == HOSTILE
    page.locator("tbody a.name").first.click()
    assert HOSTILE in page.inner_text("#section .evidence")
    assert page.inner_text("#section-heading") == f"evil/{HOSTILE}"
    assert page.locator("#section a[target=_blank]").count() == 0, "no link to a name that is none"
    page.fill("#search", "</script>")
    assert opened.count() == "1 of 2 datasets"
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    page.close()
    assert opened.complaints == []


def test_the_policy_of_the_page_lets_no_other_script_run(opened: Opened):
    opened.page.evaluate(
        "() => { const script = document.createElement('script'); script.textContent = 'window.hacked = 1';"
        " document.body.append(script); document.body.setAttribute('onclick', 'window.hacked = 2'); }"
    )
    opened.page.click("h1")
    assert opened.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in text for text in opened.complaints)
    opened.complaints.clear()


APPLY = """([kind, value]) => new Promise(done => {
  const start = performance.now();
  if (kind === 'sort') document.querySelector(`#table thead th.c-${value} button`).click();
  else {
    const box = document.querySelector('#search');
    box.value = value;
    box.dispatchEvent(new Event('input'));
  }
  document.body.getBoundingClientRect();
  done(performance.now() - start);
})"""


def test_ten_thousand_datasets_stay_quick(browser: Browser, tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text(render(make_rows(10_000), {}, title="Many"), encoding="utf-8")
    opened = Opened(browser, path)
    page = opened.page
    opening = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    times = {
        name: min(page.evaluate(APPLY, [kind, value]) for value in values)
        for name, kind, values in (
            ("sort", "sort", ["name", "frames", "created"]),
            ("filter", "search", ["towel", "author12", "pick cube"]),
        )
    }
    page.fill("#search", "")
    page.evaluate("window.scrollTo(0, 300_000)")
    page.wait_for_function("Number(document.querySelector('tr[data-id]').ariaRowIndex) > 4000")
    nodes = page.evaluate("document.querySelectorAll('*').length")
    page.close()
    print(json.dumps({"opening_ms": opening, **times, "nodes": nodes}))
    assert opened.complaints == []
    assert nodes < 4000
    assert opening < 6000
    assert times["sort"] < 200
    assert times["filter"] < 200


def test_rows_follow_the_scroll_and_keep_their_elements(browser: Browser, tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text(render(make_rows(500), {}, title="Many"), encoding="utf-8")
    opened = Opened(browser, path)
    page = opened.page
    page.locator("#table thead th.c-frames button").click()
    expected = sorted(make_rows(500), key=lambda row: -row.frames)
    seen: dict[int, str] = {}
    for _ in range(65):
        page.evaluate("window.scrollBy(0, 600)")
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        if seen:
            assert page.evaluate("window.kept.isConnected"), "rows near the view are not made anew"
        page.evaluate("window.kept = [...document.querySelectorAll('tr[data-id]')].at(-14)")
        rows = page.eval_on_selector_all(
            "tr[data-id]", "rows => rows.map(row => [Number(row.ariaRowIndex) - 2, row.dataset.id])"
        )
        assert [position for position, _ in rows] == list(range(rows[0][0], rows[-1][0] + 1))
        seen.update(rows)
    assert [seen[position] for position in sorted(seen)] == [row.repo_id for row in expected]
    page.close()
    assert opened.complaints == []


def test_printing_shows_rows_from_the_first(opened: Opened):
    opened.page.locator("footer").scroll_into_view_if_needed()
    opened.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert len(opened.ids()) == 60
    opened.page.evaluate("window.dispatchEvent(new Event('afterprint'))")


def test_pictures_are_left_out_past_the_limit_and_of_other_revisions(folder: Path, rows: list[Row], caplog):
    pictures = read_pictures(folder)
    first = sum(len(image) for _, image in pictures[rows[0].repo_id, rows[0].revision])
    page = render(rows, pictures, title="t", max_picture_mb=first / 1e6)
    assert page.count('"pictures":[') == 1
    assert "pictures of 19 datasets are left out" in caplog.text
    renamed = {(repo_id, "0" * 39 + "z"): images for (repo_id, _), images in pictures.items()}
    assert '"pictures":[' not in render(rows, renamed, title="t")


def test_an_empty_catalogue_makes_a_page(browser: Browser, tmp_path: Path):
    write_catalog(tmp_path, [], {})
    assert main([f"--data_ids={tmp_path}", f"--output={tmp_path / 'sub/page.html'}"]) == 0
    opened = Opened(browser, tmp_path / "sub/page.html")
    assert opened.count() == "0 datasets"
    opened.page.close()
    assert opened.complaints == []


def test_datasets_of_one_month_have_a_growth_chart_and_missing_pictures_are_said(
    browser: Browser, rows: list[Row], tmp_path: Path
):
    month = datetime(2026, 11, 3, tzinfo=UTC)
    write_catalog(tmp_path, [dataclasses.replace(row, created_at=month) for row in rows[:3]], {})
    assert main([f"--data_ids={tmp_path}", f"--output={tmp_path / 'page.html'}"]) == 0
    opened = Opened(browser, tmp_path / "page.html")
    box = opened.page.locator(".growth path.others").bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) > 100
    assert opened.page.locator("tbody .no-picture").first.inner_text() == "no picture"
    opened.page.close()
    assert opened.complaints == []


def test_errors_name_the_remedy(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no catalogue at .*: `depi collect-ids` writes one"):
        main([f"--data_ids={tmp_path}"])
    (tmp_path / "thumbnails.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"thumbnails.parquet cannot be read"):
        read_pictures(tmp_path)
    write_thumbnails(tmp_path, [Thumbnail("a/b", "r", "c", b"<svg>")])
    with pytest.raises(UserError, match="not a small JPEG for a/b"):
        read_pictures(tmp_path)
    with pytest.raises(UserError, match="must be at least 0"):
        ReportConfig(max_picture_mb=math.nan)
