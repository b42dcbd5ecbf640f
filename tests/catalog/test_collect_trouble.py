"""What goes wrong around the inspections: the Hub, the disk, the flags, and bugs."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from depi.catalog import collect as collecting
from depi.catalog.catalogue import Row, read_rows, write_catalog
from depi.catalog.collect import CollectConfig, collect, main
from depi.errors import UserError
from depi.hub.client import api as client


def test_what_cannot_be_fetched_is_failed_and_not_bad(
    hub, tmp_path, make_dataset, publish, monkeypatch, capsys
):
    publish(make_dataset(tmp_path / "good", seed=1), "ann/so101_good")
    publish(make_dataset(tmp_path / "cut", seed=2), "bob/so101_cut")
    download = client.download_files

    def cut_off(repo_id, *args, **kwargs):
        if repo_id == "bob/so101_cut":
            raise client.HubUnreachable("the Hub broke off")
        return download(repo_id, *args, **kwargs)

    monkeypatch.setattr(client, "download_files", cut_off)
    out = tmp_path / "out"
    assert main([f"--data_ids={out}"]) == 3
    assert "not inspected: the Hub broke off" in capsys.readouterr().out
    assert json.loads((out / "bad_dataset_ids.json").read_text()) == {}
    assert json.loads((out / "dataset_list_valid.json").read_text()) == ["ann/so101_good"]
    assert [row.verdict for row in read_rows(out)] == ["accepted", "failed"]
    monkeypatch.setattr(client, "download_files", download)
    assert main([f"--data_ids={out}"]) == 0
    assert len(json.loads((out / "dataset_list_valid.json").read_text())) == 2


def test_what_cannot_be_fetched_is_failed_whatever_robot_is_wanted(
    hub, tmp_path, make_dataset, publish, monkeypatch
):
    publish(make_dataset(tmp_path / "good", seed=1, robot_type="so100_follower"), "ann/so100_good")
    publish(make_dataset(tmp_path / "other", seed=2), "ann/so101_other")
    publish(make_dataset(tmp_path / "cut", seed=3, robot_type="so100_follower"), "bob/so100_cut")
    ask = client.repo_info

    def cut_off(repo_id, **options):
        if repo_id == "bob/so100_cut":
            raise client.HubUnreachable("the Hub broke off")
        return ask(repo_id, **options)

    monkeypatch.setattr(client, "repo_info", cut_off)
    flags = [f"--data_ids={tmp_path / 'out'}", "--robot_types=[so100_follower]"]
    assert main(flags) == 3
    assert {row.repo_id: row.verdict for row in read_rows(tmp_path / "out")} == {
        "ann/so100_good": "accepted",
        "bob/so100_cut": "failed",
    }


def test_what_nobody_foresaw_refuses_one_dataset(hub, tmp_path, make_dataset, publish, monkeypatch):
    for number, name in enumerate(("one", "two")):
        publish(make_dataset(tmp_path / name, seed=number), f"ann/so101_{name}")
    judge = collecting.Inspector._judge

    def stumble(self, facts, files):
        if facts.repo_id == "ann/so101_two":
            raise KeyError("forgotten")
        return judge(self, facts, files)

    monkeypatch.setattr(collecting.Inspector, "_judge", stumble)
    assert main([f"--data_ids={tmp_path / 'out'}"]) == 0
    (refused,) = [row for row in read_rows(tmp_path / "out") if row.verdict == "rejected"]
    assert refused.reasons == ["reachable: unreadable: KeyError: \"'forgotten'\""]


def test_user_errors_leave_the_files_alone(hub, tmp_path, make_dataset, publish):
    publish(make_dataset(tmp_path / "one"), "ann/so101_one")
    out = tmp_path / "out"
    collect(CollectConfig(data_ids=out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    broken = tmp_path / "broken.json"
    broken.write_text('["a/b"')
    strange = tmp_path / "ids.txt"
    strange.write_text("# mine\nann/so101_one\n../../etc/passwd\n")
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    for flags, message in [
        ([f"--repo_ids={broken}"], "is not valid JSON"),
        ([f"--repo_ids={strange}"], "'../../etc/passwd', which is no dataset id"),
        ([f"--repo_ids={empty}"], "names no dataset"),
        ([f"--repo_ids={tmp_path / 'absent.json'}"], "does not exist"),
        (["--author=nobody"], "no dataset was found"),
        (["--disable_rules=[no_such]"], "no rule no_such"),
        (["--workers=0"], "at least 1"),
        (["--limit=0"], "at least 1"),
        (["--min_fps=nan"], "--min_fps is NaN"),
        (["--no_such_flag=1"], "no_such_flag"),
    ]:
        with pytest.raises(UserError, match=message.replace("[", r"\[")):
            main([f"--data_ids={out}", *flags])
    with pytest.raises(UserError, match="is a file"):
        main([f"--data_ids={broken}"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_refused_before_the_hub_is_asked(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(collecting, "find", lambda **_: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match="is a file"):
        main([f"--data_ids={tmp_path / 'file' / 'below'}"])
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="you may not write to"):
            main([f"--data_ids={tmp_path / 'out'}"])


def test_an_unreachable_hub_is_a_user_error(tmp_path, monkeypatch):
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"ann/so101_{number}\n" for number in range(20)))

    def no_answer(*args, **kwargs):
        raise client.HubUnreachable("no answer from the Hub")

    monkeypatch.setattr(client, "repo_info", no_answer)
    with pytest.raises(UserError, match="no answer"):
        main([f"--data_ids={tmp_path / 'out'}", f"--repo_ids={ids}"])
    assert not (tmp_path / "out").exists()


def test_a_damaged_catalogue_is_named(hub, tmp_path, make_dataset, publish):
    publish(make_dataset(tmp_path / "one"), "ann/so101_one")
    out = tmp_path / "out"
    out.mkdir()
    (out / "catalog.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="remove it, or run `depi collect-ids --refresh`"):
        collect(CollectConfig(data_ids=out))
    assert collect(CollectConfig(data_ids=out, refresh=True)).accepted == 1


def test_rules_are_listed_without_a_hub(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["--list-rules"]) == 0
    out = capsys.readouterr().out
    for name in ("has_info", "numbers_finite", "not_duplicate", "junk_task_text", "catalogue", "listing"):
        assert name in out
    assert "No NaN and no infinity in action and state." in out


def test_a_kill_while_writing_leaves_the_old_files(tmp_path):
    write_catalog(tmp_path, [Row("ann/old", "accepted")], {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from depi.catalog.catalogue import Row, write_catalog\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_catalog(Path(sys.argv[1]), [Row('ann/new', 'rejected', reasons=['x: y'])], {})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], env=os.environ, check=False)
    assert done.returncode == -9
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    write_catalog(tmp_path, [Row("ann/old", "accepted")], {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(UserError, match="No space left"):
        write_catalog(tmp_path, [Row("ann/new", "accepted")], {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
