import re

import pytest
from markdown_it import MarkdownIt

from depi.catalog.text import clean, in_markdown
from depi.datasets.judging.instructions import is_instruction


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pick up\nthe\tcube", "pick up the cube"),
        ("\x1b]0;owned\x07red \x1b[31mcube", "]0;owned red [31mcube"),
        ("left\u202etfel\u200b", "left tfel"),
        ("half \ud800 pair", "half pair"),
        ("[bold red]x[/]", "[bold red]x[/]"),
        (None, "None"),
    ],
)
def test_clean_leaves_one_printable_line(text, shown):
    assert clean(text) == shown


def test_clean_bounds_the_length():
    assert clean("ab" * 10_000, 10) == "abababab" + "a…"
    assert clean("x" * 10, 10) == "x" * 10


@pytest.mark.parametrize(
    "text",
    [
        *("<script>a()</script>", "<img src=x onerror=a()>", "![a](http://evil.example/x.png)", "a&lt;b>"),
        *("[a](http://evil.example)", "www.evil.example", "https://evil.example", "x@evil.example"),
        *(
            "a | b",
            "a \\| b",
            "a\\",
            "`a` <b>",
            "``` a",
            "**a**",
            "# a\n---\n| x |",
            "\u202ea`|",
            "$$a$$",
            "- a",
        ),
    ],
)
def test_markdown_shows_a_text_as_it_is(text):
    shown = in_markdown(text)
    page = MarkdownIt("commonmark", {"html": True}).enable("table")
    for source, around in (
        (f"| a | b |\n|---|---|\n| {shown} | c |", ["<td>", "</td>"]),
        (f"- {shown}: c", []),
    ):
        html = page.render(source)
        (code,) = re.findall(r"<code>(.*?)</code>", html)
        assert not re.search(r"[<>]", code)
        assert html.count("<td>") == len(around)
        assert not re.search(r"<(?!/?(table|thead|tbody|tr|th|td|code|ul|li)>)", html)


def test_markdown_of_nothing_and_of_too_much():
    assert in_markdown(" \n ") == ""
    assert len(in_markdown("a" * 1000)) == 102


@pytest.mark.parametrize(
    "task",
    ["", " ", "test", "Test", "task desc", "Task_Desc.", "so100 test 3", "task 0", "1 2 3", "pick", "?"],
)
def test_junk_is_no_instruction(task):
    assert not is_instruction(task)


@pytest.mark.parametrize(
    "task", ["Pick up the cube", "grab cube", "拿起方块", "lego-in-box", "put 2 cups away"]
)
def test_instructions_are_told(task):
    assert is_instruction(task)
