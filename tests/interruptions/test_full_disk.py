"""Long commands on a file system of 50 MB that becomes full while they write, and later has room again."""

import shutil
from pathlib import Path

import pytest
from interruptible import TASKS, drafts, environment, finish, start

# `upload` writes nothing on this machine, `push` only beside the annotations.
WRITING = [name for name in TASKS if name not in ("upload", "push")]
SHARES = (0.1, 0.5, 0.9)
CASES = [
    *(pytest.param(name, SHARES, id=name, marks=pytest.mark.slow) for name in WRITING),
]


def size(folder: Path) -> int:
    """Bytes of the blocks that the files below a folder take."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def problem(status: int, said: str, disk: Path) -> str:
    """What is wrong with how a command ended on a full disk; nothing where it did not notice."""
    sentences = [line for line in said.splitlines() if line.startswith("error: ")]
    if status == 0 and "Traceback" not in said:
        return ""
    good = status == 2 and len(sentences) == 1 and "Traceback" not in said
    if good and str(disk) in sentences[0] and "the disk is full" in sentences[0]:
        return ""
    return f"status {status}: {said[-3000:]}"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "shares"), CASES)
def test_a_disk_that_becomes_full(work, expected, small_disk, name, shares):
    task, disk = TASKS[name], small_disk.path
    out, variables = disk / "out", environment(disk)
    status, said = finish(start(task.command(work, out), variables))
    assert status == 0, said
    needed = size(disk)
    problems = {}
    for share in shares:
        for path in disk.iterdir():
            shutil.rmtree(path)
        small_disk.fill(leave=int(share * needed))
        status, said = finish(start(task.command(work, out), variables))
        small_disk.make_room()
        problems[share] = problem(status, said, disk)
        status, said = finish(start(task.command(work, out), variables))
        assert status == 0, said
        assert task.result(work, out) == expected(name)
        assert drafts(disk) == []
    assert not any(problems.values()), "\n\n".join(map(str, problems.items()))
