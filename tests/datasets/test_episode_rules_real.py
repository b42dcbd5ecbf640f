"""The rules about episodes on tables of real arms: four long pauses, and nothing else."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import teleoperation
from recordings import REAL

from depi.datasets.judging.faults import find_faults
from depi.datasets.judging.rules import MOTION
from depi.datasets.recording.joints import to_degrees

# Each pause is 30 to 52% of its episode, both in action and state.
FOUND = [
    ("so101_pick_place_tape", "normalized", 30, {}),
    ("normalized_clean", "normalized", 30, {22: "head_not_idle", 42: "head_not_idle"}),
    ("degrees_so_follower", "degrees", 20, {2: "tail_not_idle", 6: "tail_not_idle"}),
    ("degrees_one_episode", "degrees", 30, {}),
]


@pytest.mark.skipif(not REAL.is_dir(), reason="real recordings are not part of the repository")
@pytest.mark.parametrize(("name", "convention", "fps", "faults"), FOUND)
def test_in_real_recordings_only_long_pauses_are_found(name, convention, fps, faults):
    tables = [pq.read_table(path) for path in sorted((REAL / name / "data").rglob("*.parquet"))]
    table = pa.concat_tables(tables, promote_options="permissive")
    ends = np.cumsum(np.bincount(table["episode_index"].to_numpy()))[:-1]

    def episodes(column):
        values = np.array(table[column].to_pylist(), np.float32)
        return np.split(to_degrees(values, convention), ends)

    time = np.split(table["timestamp"].to_numpy(), ends)
    recording = teleoperation.recording_of(episodes("action"), episodes("observation.state"), fps, time)
    found = find_faults(recording, MOTION)
    assert {fault.episode: fault.rule for fault in found} == faults
    assert not any(fault.leaves_out for fault in found)
