"""`depi collect-ids` as a process of its own, with a cache or a catalogue on a disk that is really full."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from depi.catalog.catalogue import CATALOG_FILES
from depi.catalog.collect import CollectConfig, collect, main
from depi.catalog.journal import JOURNAL_FILE
from depi.catalog.thumbnails import THUMBNAILS_FILE, read_thumbnails

COUNT = 6


@pytest.fixture
def published(hub, tmp_path, make_dataset, publish) -> None:
    for number in range(COUNT):
        publish(make_dataset(tmp_path / str(number), seed=number), f"ann/so101_{number}")


def collect_ids(out: Path, *flags: str, **environment: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "depi.cli", "collect-ids", f"--data_ids={out}", "--json", *flags],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
        check=False,
    )


def lists(out: Path) -> dict[str, bytes]:
    names = (*CATALOG_FILES, THUMBNAILS_FILE)
    return {name: (out / name).read_bytes() for name in names if (out / name).exists()}


def only_error(done: subprocess.CompletedProcess[str]) -> str:
    """The sentence of a call that ended at once: no result, no traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return sentence


def test_a_full_cache_disk_leaves_the_catalogue_as_it_was(published, tmp_path, small_disk):
    out = tmp_path / "out"
    first = collect_ids(out)
    assert (first.returncode, json.loads(first.stdout)["accepted"]) == (0, COUNT)
    before = lists(out)
    # Room for the files of some of the datasets: what was found out about those is kept.
    small_disk.fill(leave=64 * 1024)
    again = ("--refresh", "--workers=1")
    assert only_error(collect_ids(out, *again, HF_HOME=small_disk.path)) == (
        f"error: cannot write {small_disk.path / 'hub'}: the disk is full (No space left on device); "
        "make room there, or set HF_HOME to another folder"
    )
    assert lists(out) == before
    journalled = len((out / JOURNAL_FILE).read_bytes().splitlines()) - 1
    assert 0 < journalled < COUNT
    small_disk.make_room()
    last = collect_ids(out, *again, HF_HOME=small_disk.path)
    assert last.returncode == 0, last.stderr
    summary = json.loads(last.stdout)
    assert (summary["accepted"], summary["reused"]) == (COUNT, journalled)
    assert (out / "dataset_list_valid.json").read_bytes() == before["dataset_list_valid.json"]
    assert not (out / JOURNAL_FILE).exists()


def test_a_full_disk_below_the_catalogue_keeps_what_was_journalled(published, small_disk):
    out = small_disk.path / "out"
    assert main([f"--data_ids={out}"]) == 0
    before = lists(out)
    small_disk.fill(leave=8 * 1024)
    sentence = only_error(collect_ids(out, "--refresh", "--workers=1"))
    assert f"cannot write {out}: the disk is full (No space left on device)" in sentence
    assert lists(out) == before
    small_disk.make_room()
    last = collect_ids(out, "--refresh", "--workers=1")
    assert last.returncode == 0, last.stderr
    summary = json.loads(last.stdout)
    assert summary["accepted"] == COUNT
    assert 0 < summary["reused"] < COUNT


def test_a_full_disk_while_looking_at_videos_refuses_no_dataset(published, tmp_path, small_disk, monkeypatch):
    out = tmp_path / "out"
    assert main([f"--data_ids={out}"]) == 0
    before = lists(out)
    small_disk.fill()
    sentence = only_error(collect_ids(out, "--deep", "--deep_workers=2", DEPI_CACHE=small_disk.path))
    assert f"cannot write {small_disk.path}/" in sentence
    assert "the disk is full (No space left on device)" in sentence
    assert lists(out) == before
    small_disk.make_room()
    monkeypatch.setenv("DEPI_CACHE", str(small_disk.path))
    summary = collect(CollectConfig(data_ids=out, deep=True, deep_workers=1))
    assert (summary.found, summary.failed) == (COUNT, 0)
    assert len(read_thumbnails(out)) == COUNT
