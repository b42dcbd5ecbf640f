"""The benchmark that plants defects and asks who finds them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import doctor_tools
    import doctors
    from doctor_tools import Remark, Report

CLEAN = doctors.Planted("tape-clean", "tape", "clean", "")
SPOILT = doctors.Planted("tape-jitter-weak", "tape", "jitter", "weak", (3, 5))
FILES = doctors.Planted("tape-wrong_rate-weak", "tape", "wrong_rate", "weak", (), True)
ON_ALL = [Remark("joints", None, "joints: about 2%"), Remark("idle", 7, "idle: 3 s")]


@pytest.mark.parametrize(
    ("tool", "copy", "more", "found"),
    [
        ("rdq", SPOILT, [], False),
        ("rdq", SPOILT, [Remark("noise", None, "noise")], True),
        ("depi", SPOILT, [], False),
        ("depi", SPOILT, [Remark("noise", None, "noise: in some episode")], False),
        ("depi", SPOILT, [Remark("noise", 4, "noise: 5 degrees")], False),
        ("depi", SPOILT, [Remark("noise", 5, "noise: 5 degrees")], True),
        ("depi --deep", SPOILT, [Remark("idle", 7, "idle: 4 s")], False),
        ("depi", FILES, [Remark("fps", None, "fps: 15, not 30")], True),
        ("depi", FILES, [], False),
    ],
)
def test_found_is_what_is_said_of_the_copy_alone_and_of_the_right_episode(tool, copy, more, found):
    reports = {CLEAN.name: Report(list(ON_ALL)), copy.name: Report([*ON_ALL, *more])}
    assert doctors.is_found(tool, copy, reports) is found


def test_the_summary_counts_by_strength_and_names_copies_with_a_better_score():
    reports = {
        CLEAN.name: Report(list(ON_ALL), 1.0, 0.5),
        SPOILT.name: Report([*ON_ALL, *(Remark("noise", n, "noise: 5") for n in (3, 4))], 2.0, 0.6),
        FILES.name: Report(list(ON_ALL), 3.0, None),
    }
    summary = doctors.summarize([CLEAN, SPOILT, FILES], {"depi": reports})["depi"]
    assert summary["found"] == {"tape": {"weak": 1}}
    assert summary["clean_remarks"] == {"tape": 2}
    assert summary["cpu_s"] == 2.0
    assert summary["raised"] == [SPOILT.name]
    assert summary["wrong_episodes"] == 1


def test_a_tool_that_fails_is_reported_with_its_last_words(tmp_path, monkeypatch):
    script = tmp_path / "tools/broken/bin/broken"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\necho starting\necho no such file: table 3\nexit 1\n")
    script.chmod(0o755)
    tool = doctor_tools.Tool(("broken",), ("broken",), lambda report: ([], None))
    monkeypatch.setitem(doctor_tools.TOOLS, "broken", tool)
    (remark,) = doctor_tools.examine("broken", tmp_path / "tools", tmp_path).remarks
    assert remark == Remark("no report", None, "no such file: table 3")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_depi_is_asked_about_two_kinds_through_its_command(tmp_path):
    command = [sys.executable, doctors.__file__, f"--output={tmp_path}", "--tools=depi", "--bases=simulated"]
    command += ["--kinds=task_empty,video_missing", "--strengths=middle"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    summary = json.loads(lines[-1])
    assert summary["depi"]["found"] == {"simulated": {"middle": 2}}
    assert summary["depi --deep"]["clean_remarks"] == {"simulated": 0}
    assert not summary["depi"]["raised"]
    folder = tmp_path / "development"
    stored = doctor_tools.read_reports(folder / "depi.jsonl")
    assert any("junk_task_text" in r.text for r in stored["simulated-task_empty-middle"].remarks)
    copies = sorted((folder / "truth").iterdir())
    times = [path.stat().st_mtime_ns for path in copies]
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert json.loads(again[-1])["depi --deep"]["found"] == summary["depi --deep"]["found"]
    assert [path.stat().st_mtime_ns for path in copies] == times
