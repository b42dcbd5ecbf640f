"""Environments of their own for other programs, with pinned versions from the package index."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def run_command(command: Sequence[str | Path], env: dict[str, str] | None = None) -> tuple[int, str, float]:
    """Exit status, output and processor time in seconds, its children's included."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return process.returncode, text, usage.ru_utime + usage.ru_stime


def make_environment(place: Path, packages: Sequence[str]) -> str | None:
    """Make an environment with packages unless it is there; the reason why that failed, or None."""
    mark = place / "ready"
    if mark.exists():
        return None
    uv = shutil.which("uv") or shutil.which("uv", path=Path(__file__).parents[1] / ".uv/bin")
    if uv is None:
        return "uv is not installed"
    shutil.rmtree(place, ignore_errors=True)
    base = getattr(sys, "_base_executable", sys.executable)
    for command in (
        [uv, "venv", "--quiet", "--python", base, str(place)],
        [uv, "pip", "install", "--quiet", "--python", str(place / "bin/python"), *packages],
    ):
        status, output, _ = run_command(command)
        if status:
            return output.strip().splitlines()[-1] if output.strip() else f"uv ended with status {status}"
    mark.touch()
    return None
