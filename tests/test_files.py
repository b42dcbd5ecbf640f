import json
import os
import signal
import subprocess
import sys
import time

import pytest

from depi.errors import UserError
from depi.files import atomic_write, draft_folder, read_json, remove_drafts, write_json


def test_a_failing_writer_leaves_the_old_content_and_no_rubbish(tmp_path):
    path = tmp_path / "list.json"
    write_json(path, [1])

    def fail():
        with atomic_write(path) as temporary:
            temporary.write_text("[1, 2")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert read_json(path) == [1]
    assert os.listdir(tmp_path) == ["list.json"]


def test_files_are_readable_by_others_as_the_umask_says(tmp_path):
    path = tmp_path / "list.json"
    before = os.umask(0o022)
    try:
        write_json(path, [])
        with atomic_write(tmp_path / "x.safetensors") as temporary:
            temporary.unlink()
            temporary.touch(0o600)
    finally:
        os.umask(before)
    assert [file.stat().st_mode & 0o777 for file in tmp_path.iterdir()] == [0o644, 0o644]


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"[1,", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"1" * 5_000, "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_unreadable_json_is_a_users_error(tmp_path, content, says):
    path = tmp_path / "ids.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        read_json(path)
    assert "ids.json" in str(caught.value)


def test_a_killed_writer_never_leaves_a_part(tmp_path):
    path = tmp_path / "big.json"
    code = (
        "import sys; from pathlib import Path; from depi.files import write_json\n"
        "for n in range(10**6): write_json(Path(sys.argv[1]), [n] * 50_000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = []
        for _ in range(20):
            content = json.loads(path.read_text())
            assert len(content) == 50_000
            assert len(set(content)) == 1
            seen.append(content[0])
            time.sleep(0.01)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(set(json.loads(path.read_text()))) == 1
    assert seen == sorted(seen)


def test_drafts_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    kept = ["[a].json", ".a.json.0.tmp", ".[a].jsonl.0.tmp", "[a].json.0.tmp"]
    for name in [*kept, ".[a].json.tmp", ".[a].json.0123456789abcdef.tmp", ".[a].json.1.tmp"]:
        (tmp_path / name).write_text("")
    remove_drafts(tmp_path / "[a].json")
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_drafts(tmp_path / "absent/list.json")


def test_what_a_killed_writer_left_is_gone_when_its_file_is_written_again(tmp_path):
    file, folder = tmp_path / "list.json", tmp_path / "set"
    dying = (
        "import os, sys; from pathlib import Path; from depi.files import atomic_write, draft_folder\n"
        "with atomic_write(Path(sys.argv[1])) as draft, draft_folder(Path(sys.argv[2])) as work:\n"
        "    draft.write_text('half'); draft.chmod(0o600); (work / 'half').mkdir(); os._exit(9)"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", dying, file, folder], check=False).returncode == 9
        assert sorted(os.listdir(tmp_path)) == [".list.json.tmp", ".set.tmp"]
    with draft_folder(folder) as work:
        assert os.listdir(work) == []
        work.rename(folder)
    write_json(file, [1])
    assert sorted(os.listdir(tmp_path)) == ["list.json", "set"]
    assert file.stat().st_mode & 0o077


def test_writers_at_the_same_time_do_not_touch_each_others_drafts(tmp_path):
    path = tmp_path / "list.json"
    code = (
        "import sys; from pathlib import Path; from depi.files import atomic_write, draft_folder\n"
        "path, text = Path(sys.argv[1]), sys.argv[2] * 20_000\n"
        "for _ in range(400):\n"
        "    with atomic_write(path, sync=False) as draft, draft_folder(path.with_name('set')) as work:\n"
        "        draft.write_text(text[:10_000]); (work / 'x').write_text(text)\n"
        "        with draft.open('a') as file: file.write(text[10_000:])\n"
        "        assert draft.read_text() == (work / 'x').read_text() == text\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, path, letter]) for letter in "abcd"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            content = path.read_text()
            assert (len(content), len(set(content))) == (20_000, 1)
        time.sleep(0.002)
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert os.listdir(tmp_path) == ["list.json"]
