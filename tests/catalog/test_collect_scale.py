"""Interruptions, faults, hostile sizes and finding widely, over the whole command."""

import dataclasses
import fcntl
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub import constants

from depi.catalog import collect as collecting
from depi.catalog.catalogue import CATALOG_FILES, Row, read_rows
from depi.catalog.collect import CollectConfig, collect, main
from depi.catalog.find import DEFAULT_SEARCH, DEFAULT_TAGS, RECORDER_TAGS
from depi.catalog.journal import JOURNAL_FILE, Journal
from depi.datasets.recording.hub_files import HubFiles
from depi.errors import UserError
from depi.hub.server.serve import serve

BENCHMARK = Path(__file__).parents[2] / "benchmarks/collect.py"
LISTS = ("dataset_list.json", "dataset_list_valid.json", "bad_dataset_ids.json")


def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_collect", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_benchmark_runs_and_every_verdict_is_right():
    command = [sys.executable, BENCHMARK, "--smoke", "--repos=40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    keys = {"repos", "first_s", "unchanged_s", "changed_requests", "floor_s", "rss_mb"}
    assert keys <= set(figures)
    assert figures["repos"] == 40
    assert figures["failed"] == 0
    listings = len(DEFAULT_TAGS) + len(RECORDER_TAGS) + len(DEFAULT_SEARCH)
    assert figures["requests"] <= 40 * 5.5 + listings
    assert figures["unchanged_requests"] <= listings + 6  # each a page, and what was spoiled of them
    assert figures["changed_inspected"] == 1
    assert figures["changed_requests"] <= figures["unchanged_requests"] + 10
    assert figures["rss_mb"] < 500


@pytest.fixture
def slow_hub(tmp_path, monkeypatch):
    """24 repositories behind a Hub that takes its time."""
    module = benchmark()
    monkeypatch.setattr(os, "fsync", lambda file: None)
    module.build(tmp_path / "root", 24)
    with serve(tmp_path / "root", latency=0.02) as hub:
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "depi"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
        yield module


def journal_lines(out: Path) -> int:
    try:
        return (out / JOURNAL_FILE).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def differing(one: Row, other: Row) -> dict[str, tuple]:
    pairs = {
        item.name: (getattr(one, item.name), getattr(other, item.name)) for item in dataclasses.fields(Row)
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name != "checked_at"}


def test_killed_at_any_moment_and_started_again_it_ends_the_same(slow_hub, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "depi.cli", "collect-ids", f"--data_ids={out}", "--workers=2"]
    draw = random.Random()
    kept = 0
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        goal, end = kept + draw.randint(1, 7), time.monotonic() + 60
        while journal_lines(out) < goal and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert journal_lines(out) >= kept
        kept = journal_lines(out)
        assert not [path.name for path in out.iterdir() if not path.name.startswith(".")]
    with (out / JOURNAL_FILE).open("ab") as file:
        file.write(b'{"repo_id": "user00/so10')  # as a kill in the middle of a write leaves it
    (out / ".catalog.parquet.0123456789abcdef.tmp").write_bytes(b"PAR1")
    summary = collect(CollectConfig(data_ids=out, workers=2))
    assert summary.reused == kept - 1
    assert sorted(path.name for path in out.iterdir()) == sorted(CATALOG_FILES)
    slow_hub.check(out, 24)

    collect(CollectConfig(data_ids=whole, workers=4))
    for name in LISTS:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    for found, expected in zip(read_rows(out), read_rows(whole), strict=True):
        assert differing(found, expected) == {}


def rows(*names: str) -> list[Row]:
    return [Row(f"ann/{name}", "rejected", revision="1" * 40, reasons=["x: y"]) for name in names]


def test_a_journal_gives_back_what_was_judged_by_the_same_rules(tmp_path):
    full = Row("ann/full", "accepted", fps=30.0, cameras=["a"], tasks=["Pick \u00e9."])
    full.episode_hashes, full.checked_at = b"\0\xff", datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    first = Journal(tmp_path, {"rules": 1})
    assert not (tmp_path / JOURNAL_FILE).exists()
    for row in [*rows("a"), full, Row("ann/failed", "failed")]:
        first.add(row)
    first.close()
    second = Journal(tmp_path, {"rules": 1})
    assert second.rows == [*rows("a"), full]
    with pytest.raises(UserError, match="another depi collect-ids writes into"):
        Journal(tmp_path, {"rules": 1})
    second.close()
    other = Journal(tmp_path, {"rules": 2})
    assert other.rows == []
    other.add(rows("b")[0])
    other.close()
    assert [row.repo_id for row in Journal(tmp_path, {"rules": 2}).rows] == ["ann/b"]


def test_one_call_at_a_time_writes_into_a_folder(slow_hub, tmp_path):
    out = tmp_path / "out"
    config = CollectConfig(data_ids=out)
    with closing(Journal(out, {})) as other:
        other.open()
        with pytest.raises(UserError, match="another depi collect-ids writes into"):
            collect(config)
    assert not out.exists(), "a call that found out nothing leaves nothing"
    collect(config)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with closing(Journal(out, {})) as other:
        other.open()
        with pytest.raises(UserError, match="another depi collect-ids writes into"):
            collect(config)  # nothing has changed to be inspected, and still the lists would be written
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_journal_that_is_removed_while_another_call_opens_it_is_made_anew(tmp_path, monkeypatch):
    first = Journal(tmp_path, {})
    first.open()
    lock = fcntl.flock

    def after_the_first_has_finished(file, flags):
        monkeypatch.setattr(fcntl, "flock", lock)
        first.finish()
        lock(file, flags)

    monkeypatch.setattr(fcntl, "flock", after_the_first_has_finished)
    second = Journal(tmp_path, {})
    second.open()
    with pytest.raises(UserError, match="another depi collect-ids"):
        Journal(tmp_path, {})
    second.add(rows("a")[0])
    second.close()
    assert Journal(tmp_path, {}).rows == rows("a")


def test_half_a_line_costs_only_itself(tmp_path):
    journal = Journal(tmp_path, {})
    journal.add(rows("a")[0])
    journal.close()
    with (tmp_path / JOURNAL_FILE).open("ab") as file:
        file.write(b'{"repo_id": "a/b"')
    again = Journal(tmp_path, {})
    assert again.rows == rows("a")
    again.add(rows("b")[0])
    again.finish()
    assert not (tmp_path / JOURNAL_FILE).exists()


def test_rows_with_other_columns_are_forgotten(tmp_path):
    journal = Journal(tmp_path, {})
    journal.add(rows("a")[0])
    journal.close()
    path = tmp_path / JOURNAL_FILE
    path.write_text(path.read_text().replace('"repo_id"', '"dataset_id"'))
    assert Journal(tmp_path, {}).rows == []


def test_wide_finds_arms_that_call_themselves_something_else(hub, tmp_path, make_dataset, publish):
    publish(make_dataset(tmp_path / "a", seed=1, robot_type="my_arm"), "ann/kitchen", tags=("LeRobot",))
    publish(make_dataset(tmp_path / "b", seed=2, robot_type="koch"), "ann/koch_box", tags=("LeRobot",))
    publish(make_dataset(tmp_path / "c", seed=3), "ann/so101_box")
    out = tmp_path / "out"
    assert collect(CollectConfig(data_ids=out)).found == 1
    assert collect(CollectConfig(data_ids=out, wide=True)).found == 3
    valid = json.loads((out / "dataset_list_valid.json").read_text())
    assert sorted(valid) == ["ann/kitchen", "ann/so101_box"]

    assert collect(CollectConfig(data_ids=tmp_path / "koch", robot_types=["koch"])).found == 1
    with pytest.raises(UserError, match="no dataset names one of these robots: ur5"):
        collect(CollectConfig(data_ids=tmp_path / "none", robot_types=["ur5"]))


def test_two_arms_are_found_and_their_robot_recorded(hub, tmp_path, make_dataset, publish):
    folder = make_dataset(tmp_path / "a", width=12, robot_type="bi_so100_follower")
    publish(folder, "ann/two_hands", tags=("LeRobot", "bi_so100_follower"))
    out = tmp_path / "out"
    collect(CollectConfig(data_ids=out))
    (row,) = read_rows(out)
    assert (row.verdict, row.robot_type, row.bimanual) == ("rejected", "bi_so100_follower", True)


def test_one_repository_that_takes_for_ever_costs_no_other(slow_hub, tmp_path, monkeypatch):
    fetch = HubFiles.fetch

    def linger(files, names):
        if files.repo_id == slow_hub.repo_id_of(0):
            time.sleep(8.5)
        return fetch(files, names)

    monkeypatch.setattr(HubFiles, "fetch", linger)
    out = tmp_path / "out"
    assert main([f"--data_ids={out}", "--max_seconds=8"]) == 3
    (failed,) = [row for row in read_rows(out) if row.verdict == "failed"]
    assert failed.repo_id == slow_hub.repo_id_of(0)
    assert failed.reasons == ["not inspected: it takes longer than the time allowed for one repository"]


def test_who_looks_at_videos_shares_the_request_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "count_cpus", lambda address: 16)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    config = CollectConfig(data_ids=tmp_path, max_requests_per_second=8)
    for changes, rate in (
        ({}, 4.0),
        ({"deep_workers": 4}, 2.0),
        ({"engine": "ray"}, 0.5),
        ({"engine": "ray", "deep_workers": 4}, 2.0),
        ({"engine": "ray", "max_requests_per_second": None}, None),
    ):
        share = collecting._share(dataclasses.replace(config, **changes))
        assert share.max_requests_per_second == rate


def test_flags_that_make_no_sense(tmp_path):
    for flag in ("--max_requests_per_second=0", "--max_seconds=-1", "--engine=abacus", "--deep_workers=-1"):
        with pytest.raises(UserError, match=flag.partition("=")[0]):
            main([f"--data_ids={tmp_path}", flag])
