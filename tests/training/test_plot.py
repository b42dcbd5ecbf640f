"""`depi plot`: what it reads, draws and refuses."""

import json

import matplotlib.image
import pytest

from depi import cli
from depi.training.plot import BLOCKS, read_curves, sparkline
from tests.helpers.browsing import OpenedPage, chromium

HOSTILE = "<img src=x onerror=alert(1)>"


def write_run(folder, steps=50, factor=1.0, **more):
    folder.mkdir()
    lines = [
        {"step": step, "loss": factor / step, "lr": 1e-4 * step, "samples_per_s": 10.0 + step % 3, **more}
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_runs_are_drawn_as_png_and_in_the_terminal(tmp_path, capsys):
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", factor=2.0)]
    output = tmp_path / "new" / "figure.png"
    assert cli.main(["plot", *map(str, runs), f"--output={output}"]) == 0
    height, width, _ = matplotlib.image.imread(output).shape
    assert width == 1080
    assert height > 700
    said = capsys.readouterr().out
    assert said.count("training loss") == said.count("learning rate") == said.count("samples per second") == 2
    assert said.count(BLOCKS[-1]) >= 6
    alone = tmp_path / "alone.png"
    assert cli.main(["plot", str(runs[0]), f"--output={alone}"]) == 0
    assert alone.read_bytes() != output.read_bytes()


def test_a_figure_lies_with_its_run_and_not_in_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_run(tmp_path / name)
    assert cli.main(["plot", "one"]) == 0
    assert (tmp_path / "one" / "metrics.png").is_file()
    assert (tmp_path / "one" / "metrics.html").is_file()
    assert cli.main(["plot", "one", "two"]) == 0
    assert (tmp_path / "outputs" / "metrics.png").is_file()
    assert not list(tmp_path.glob("*.png"))
    capsys.readouterr()
    assert cli.main(["plot"]) == 2
    assert capsys.readouterr().err.startswith("error: name a run: depi plot")


def test_a_page_tells_the_values_under_the_pointer(tmp_path):
    runs = [
        write_run(tmp_path / "one", 3000),
        write_run(tmp_path / HOSTILE, 40, **{"eval/success_rate": 0.5}),
    ]
    output = tmp_path / "losses.html"
    assert cli.main(["plot", *map(str, runs), f"--output={output}"]) == 0
    for browser in chromium():
        opened = OpenedPage(browser, output.as_uri())
        loss = opened.page.locator("svg[aria-label^='training loss']")
        assert loss.locator("polyline").count() == 2
        loss.hover(position={"x": loss.bounding_box()["width"] - 2, "y": 100})
        assert loss.locator("text.name").all_text_contents() == [
            "one: 3.3e-4 at step 3,000",
            f"{HOSTILE}: 0.025 at step 40",
        ]
        success = opened.page.locator("svg[aria-label^='success']")
        assert success.locator("polyline").get_attribute("class") == "line curve-1", "the colour of its run"
        points = loss.locator("polyline").first.get_attribute("points").split()
        assert 500 < len(points) <= 1002
        opened.page.set_viewport_size({"width": 380, "height": 800})
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 380
        assert opened.complaints == []


def test_curves_of_a_run_that_is_still_writing(tmp_path):
    run = write_run(tmp_path / "run", steps=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "eval/loss": 0.5}\n{"step": 3, "lr": 0.1, "loss": null}\n{"step": 4, "lo')
    curves = read_curves(run)
    assert curves["loss"] == ([1, 2], [1.0, 0.5])
    assert curves["eval/loss"] == ([2], [0.5])
    assert curves["lr"][0] == [1, 2, 3]


def test_sparklines():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BLOCKS
    assert sparkline([3.0]) == sparkline([5.0]) == BLOCKS[0]
    falling = sparkline([1 / (1 + step) for step in range(1000)], width=10)
    assert len(falling) == 10
    assert falling[0] == BLOCKS[-1]
    assert list(falling) == sorted(falling, reverse=True)


@pytest.mark.parametrize("content", [None, "", "no json\n", "[1]\n", '{"loss": 1.0}\n'])
def test_what_is_no_run_is_refused_in_one_sentence(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    output = tmp_path / "figure.png"
    assert cli.main(["plot", str(tmp_path), f"--output={output}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert str(tmp_path) in error
    assert not output.exists()


def test_no_run_at_all(capsys):
    assert cli.main(["plot"]) == 2
    assert "depi plot" in capsys.readouterr().err


def test_only_pictures_and_pages_are_drawn(tmp_path, capsys):
    assert cli.main(["plot", str(write_run(tmp_path / "run")), "--output=loss.pdf"]) == 2
    assert "must end in .png or .html, not 'loss.pdf'" in capsys.readouterr().err
