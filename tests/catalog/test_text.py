import pytest

from depi.catalog.text import clean
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
