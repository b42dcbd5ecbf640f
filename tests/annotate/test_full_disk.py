"""`depi annotate` with a cache or sidecars on a disk that is really full: no dataset is blamed for it."""

import pytest
from huggingface_hub import constants

from depi import cli
from depi.annotate.episode_journal import read_results
from depi.datasets.samples.annotations import read_annotations
from depi.hub.client import api as client


@pytest.fixture
def sentence(capsys):
    """The sentence of a call that stops: sentence(flag, ...) -> str."""

    def call(*flags: str) -> str:
        assert cli.main(["annotate", "--backend=rules", *flags]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        return line

    return call


def test_a_full_cache_disk_stops_the_call(hub, videos, tmp_path, small_disk, monkeypatch, sentence):
    cache = small_disk.path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "depi"))
    client.upload_folder(videos, "ann/box", repo_type="dataset", commit_message="Record")
    flags = ["--repo_id=ann/box", f"--annotations={tmp_path / 'out'}"]
    small_disk.fill()
    assert f"cannot write {cache}: the disk is full (No space left on device)" in sentence(*flags)
    small_disk.make_room()
    assert cli.main(["annotate", "--backend=rules", *flags]) == 0
    rows, _ = read_annotations(tmp_path / "out", "ann/box")
    assert len(rows) == 4


def test_a_full_disk_of_sidecars_stops_the_call(videos, small_disk, sentence):
    out = small_disk.path / "out"
    flags = ["--repo_id=ann/box", f"--root={videos}", f"--annotations={out}"]
    small_disk.fill()
    assert f"cannot write {out / 'ann'}: the disk is full (No space left on device)" in sentence(*flags)
    small_disk.make_room()
    assert cli.main(["annotate", "--backend=rules", *flags]) == 0
    journal = read_results(out, "ann/box")
    assert (len(journal.results), len(journal.everything)) == (4, 4)
