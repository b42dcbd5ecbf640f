from dataclasses import dataclass, field
from pathlib import Path

import pytest

from depi.errors import UserError
from depi.flags import parse_flags


@dataclass
class Example:
    """An example."""

    name: str = "x"
    list_rules: bool = False
    count: int = 1
    items: list[str] = field(default_factory=list)
    root: Path | None = None

    def __post_init__(self):
        if self.count < 0:
            raise ValueError(f"count must not be negative, not {self.count}")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], Example()),
        (["--list-rules"], Example(list_rules=True)),
        (["--list_rules", "--count=2"], Example(list_rules=True, count=2)),
        (["--list-rules=false"], Example()),
        (["--list-rules", "false"], Example()),
        (["--name", "a=b"], Example(name="a=b")),
        (["--items=[a,b]"], Example(items=["a", "b"])),
        (["first"], Example(name="first")),
        (["first", "--count", "3"], Example(name="first", count=3)),
    ],
)
def test_flags_and_positionals_fill_the_dataclass(args, expected):
    assert parse_flags(Example, args, "depi example", positionals=("name",)) == expected


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--nmae=x"], "nmae"),
        (["--count=many"], "--count: Couldn't parse 'many'"),
        (["--count=-1"], "count must not be negative, not -1"),
        (["--list-rules=7"], "7"),
        (["--items=a"], "items"),
        (["--name"], "--name"),
        (["--root="], "--root is empty"),
        (["--root", ""], "--root is empty"),
        (["--config_path=absent.yaml"], "cannot read absent.yaml"),
        (["--config_path=/dev/null/x"], "/dev/null/x"),
        (["--items=[a"], "YAML"),
    ],
)
def test_wrong_flags_are_one_sentence(args, says):
    with pytest.raises(UserError) as caught:
        parse_flags(Example, args, "depi example")
    assert "\n" not in str(caught.value)
    assert says in str(caught.value)
    assert str(caught.value).startswith("depi example")
