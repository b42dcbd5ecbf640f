"""The whole verdict on recordings that strangers published, as their README justifies it."""

import re
import shutil
from pathlib import Path

import pytest
from recordings import REAL, numbered_image, write_video

from depi.catalog.facts import Thresholds
from depi.catalog.find import Candidate
from depi.catalog.inspect import Inspector
from depi.datasets.recording.formats import video_files
from depi.datasets.recording.metadata import load_meta
from depi.errors import DatasetError

ACCEPTED = {
    "degrees_so_follower": "degrees",
    "degrees_one_episode": "degrees",
    "normalized_clean": "normalized",
}
REFUSED = {
    "radians_other_zero": "joints_known: .* radians of another zero or sign, since shoulder_lift",
    "piper_with_so_names": r"single_arm: observation.state has shape \[7\]",
    "reachy_wrong_counts": r"single_arm: action has shape \[19\]",
    "ticks_bimanual": "info_readable: .* placeholder that is not known",
    # Published without their tables, or without all of their metadata.
    "old_degrees_with_video": "files_present: 5 of 5 data files missing",
    "normalized_four_tasks": "files_present: 80 of 80 data files missing",
    "so101_pick_tiger": "files_present: 1 of 1 data files missing",
    "so100_name_so101": "metadata_readable: meta/tasks.parquet is missing",
    "so101_pick_place_tape": "has_info: no meta/info.json",
}


def add_videos(folder: Path) -> None:
    """Write stand-ins for the videos that a recording names and lacks."""
    try:
        wanted = video_files(load_meta(folder, "real/recording"))
    except DatasetError:
        return
    for name in wanted:
        if not (folder / name).exists():
            write_video(folder / name, [numbered_image(number) for number in range(3)], 30)


@pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not here")
@pytest.mark.parametrize("name", [*ACCEPTED, *REFUSED])
def test_real_recordings_get_their_verdict(hub, publish, tmp_path, name):
    folder = shutil.copytree(REAL / name, tmp_path / name)
    add_videos(folder)
    publish(folder, f"real/{name}")
    row = Inspector(Thresholds())(Candidate(f"real/{name}"))
    if name in ACCEPTED:
        assert (row.verdict, row.reasons, row.joint_convention) == ("accepted", [], ACCEPTED[name])
    else:
        assert row.verdict == "rejected"
        assert re.match(REFUSED[name], row.reasons[0]), row.reasons


@pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not here")
def test_every_real_recording_has_an_expected_verdict():
    assert {path.name for path in REAL.iterdir() if path.is_dir()} == {*ACCEPTED, *REFUSED}
