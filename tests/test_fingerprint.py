"""The digest of code follows imports, and leaves out what only carries data."""

from pathlib import Path

import pytest

from depi import fingerprint

SOURCES = {
    "entry.py": "from depi.room import near\n",
    "room/__init__.py": "",
    "room/near.py": "def late():\n    from depi.far import (\n        value,\n    )\n",
    "far.py": "from depi.errors import UserError\nvalue = 1\n",
    "errors.py": "",
    "beside.py": "",
}


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    for name, source in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.setattr(fingerprint, "__file__", str(tmp_path / "fingerprint.py"))
    fingerprint.code.cache_clear()
    yield tmp_path
    fingerprint.code.cache_clear()


@pytest.mark.parametrize("name", SOURCES)
def test_what_an_entry_imports_counts_and_nothing_else(tree, name):
    before = fingerprint.code("depi.entry")
    with (tree / name).open("a") as file:
        file.write("x = 2\n")
    fingerprint.code.cache_clear()
    assert (fingerprint.code("depi.entry") != before) == (name not in ("errors.py", "beside.py"))


def test_a_function_counts_by_itself():
    def one():
        return 1

    def two():
        return 2

    assert len({fingerprint.code(one), fingerprint.code(two), fingerprint.code("depi.priority", one)}) == 3
    with pytest.raises(ValueError, match="no module of DePi"):
        fingerprint.code("depi.nowhere")
