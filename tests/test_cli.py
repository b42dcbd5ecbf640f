import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from starlette.responses import PlainTextResponse

from depi import cli
from depi.errors import UserError
from depi.hub.server.serve import serve
from depi.log import never_silent, start_logging


def depi(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "depi.cli", *args], capture_output=True, text=True, check=False
    )


def test_help_names_every_verb_in_under_a_second():
    started = time.perf_counter()
    result = depi("--help")
    assert time.perf_counter() - started < 1.0
    assert result.returncode == 0
    assert all(verb in result.stdout for verb in cli.VERBS)


def test_importing_depi_imports_nothing_heavy():
    code = (
        "import sys, depi, depi.cli; print([m for m in ('torch', 'lerobot', 'mujoco') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


HEAVY = ("torch", "lerobot", "transformers", "datasets", "gymnasium", "mujoco")
HELP_AND_MISTAKES = f"""
import contextlib, sys
from depi import cli

for verb in cli.VERBS:
    args = {{"catalog": ["stats"], "hub": ["serve"], "sim": ["record"], "value": ["plot"]}}.get(verb, [])
    with contextlib.suppress(SystemExit):
        cli.main([verb, *args, "--help"])
    assert cli.main([verb, *args, "--no_such_flag=1"]) == 2
    print("loaded:", verb, [name for name in {HEAVY} if name in sys.modules])
"""


def test_help_and_wrong_flags_need_nothing_heavy():
    result = subprocess.run(
        [sys.executable, "-c", HELP_AND_MISTAKES], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    loaded = [line for line in result.stdout.splitlines() if line.startswith("loaded:")]
    assert loaded == [f"loaded: {verb} []" for verb in cli.VERBS]


def log_to_stderr(monkeypatch):
    """Log as in a process of its own, without pytest's handlers."""
    monkeypatch.setattr(logging.root, "handlers", [])
    start_logging()


def test_a_command_that_has_said_nothing_for_a_second_says_what_it_does(monkeypatch, capsys):
    log_to_stderr(monkeypatch)
    monkeypatch.setattr("depi.evaluation.evaluate.main", lambda args: time.sleep(1.5) or 0)
    assert cli.main(["eval"]) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(f" depi eval: {cli.VERBS['eval'][1]}")


@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_nothing_is_added_to_what_a_command_says_itself(monkeypatch, capsys, seconds):
    log_to_stderr(monkeypatch)
    with never_silent("waiting", seconds=0.2):
        logging.getLogger("depi.x").info("here")
        time.sleep(seconds)
    time.sleep(0.4 - seconds)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(" here")


def test_unknown_verb_is_one_sentence_and_status_2():
    result = depi("colect-ids")
    assert result.returncode == 2
    assert result.stderr.strip().count("\n") == 0
    assert "colect-ids" in result.stderr
    assert "collect-ids" in result.stderr


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("visualize_dataset", "`depi view USER/NAME --episode=0`"),
        ("lerobot-dataset-viz", "`depi view USER/NAME --episode=0`"),
        ("opentau-train", "it is `depi train` here"),
        ("lerobot/scripts/accelerate_train.py", "`depi train`"),
        ("control_robot.py", "lerobot-record"),
        ("trian", "did you mean train?"),
    ],
)
def test_commands_of_other_programs_are_answered_with_what_to_type(word, says, capsys):
    assert cli.main([word]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb not in ("sim", "hub")])
def test_wrong_flag_is_one_sentence_and_status_2(verb, capsys):
    assert cli.main([verb, "--no_such_flag=1"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "no_such_flag" in error


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_help(verb, capsys):
    try:
        status = cli.main([verb, "--help"])
    except SystemExit as stop:
        status = stop.code or 0
    assert status == 0
    assert "usage" in capsys.readouterr().out.lower()


def test_a_full_disk_is_one_sentence_and_status_2(monkeypatch, capsys):
    def fail(args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")

    monkeypatch.setattr("depi.catalog.collect.main", fail)
    assert cli.main(["collect-ids"]) == 2
    assert capsys.readouterr().err == (
        "error: cannot write /data: the disk is full (No space left on device); make room there, or choose "
        "another folder\n"
    )


def test_a_message_with_a_strangers_text_is_short_and_controls_no_terminal(capsys):
    def fail(flags):
        raise UserError("the task \x1b]0;owned\x07 \u202e is too long\n" + "x" * 1_000_000)

    assert cli.run(fail, []) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: the task  ]0;owned    is too long\nxxx")
    assert len(printed) < 5000


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_file_where_a_folder_should_be_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("depi.evaluation.evaluate.main", lambda args: (tmp_path / path).mkdir())
    assert cli.main(["eval"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / path}: ")
    assert said.count("\n") == 1
    monkeypatch.setattr("depi.evaluation.evaluate.main", lambda args: tmp_path.read_text())
    assert cli.main(["eval"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"


def test_a_missing_file_that_nobody_expected_is_a_bug(monkeypatch):
    def fail(args):
        raise FileNotFoundError(errno.ENOENT, "gone", "/data/x")

    monkeypatch.setattr("depi.catalog.collect.main", fail)
    with pytest.raises(FileNotFoundError):
        cli.main(["collect-ids"])


@pytest.mark.parametrize(("end", "status"), [("Ctrl-C", 130), ("an error", 2)])
def test_a_failing_command_does_not_wait_for_its_downloads(tmp_path, end, status):
    hanging, stopped = threading.Event(), threading.Event()

    def answer(request):
        if end == "an error" and hanging.is_set():
            return PlainTextResponse("no Hub's answer", 200)
        hanging.set()
        stopped.wait(60)
        return None

    (tmp_path / "ids.txt").write_text("".join(f"ann/pick{number}\n" for number in range(30)))
    flags = [f"--repo_ids={tmp_path / 'ids.txt'}", f"--data_ids={tmp_path / 'out'}"]
    with serve(tmp_path / "hub", faults=answer) as hub:
        command = subprocess.Popen(
            [sys.executable, "-m", "depi.cli", "collect-ids", *flags],
            env=os.environ | hub.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert hanging.wait(30)
            if end == "Ctrl-C":
                command.send_signal(signal.SIGINT)
            try:
                _, error = command.communicate(timeout=30)
            except subprocess.TimeoutExpired:  # a machine under load: press it once more, as people do
                command.send_signal(signal.SIGINT)
                _, error = command.communicate(timeout=30)
        finally:
            command.kill()
            stopped.set()
    assert command.returncode == status
    assert "Traceback" not in error
    assert ("error: " in error) == (status == 2)
    assert not (tmp_path / "out").exists()
