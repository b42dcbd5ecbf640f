"""Rules about jumps, spikes, trembling and missing frames: each finds its fault, and nothing harmless."""

from functools import cache

import pytest
import spoilt_episodes
import teleoperation
from spoilt_episodes import found

from depi.datasets.judging.faults import Recording, find_faults
from depi.datasets.judging.rules import MOTION

BAD = {rule.name for rule in MOTION if rule.leaves_out}


@cache
def clean(seed: int = 3) -> Recording:
    return teleoperation.clean_set(seed, "pick_place", 8)


CASES = [
    ("no_spikes", spoilt_episodes.spike, {"degrees": 25}, {"degrees": 1.5}),
    ("no_spikes", spoilt_episodes.spike, {"degrees": -60, "count": 3}, {"degrees": -1.5, "count": 3}),
    ("rows_sound", spoilt_episodes.spike, {"degrees": 80, "both": True}, {"degrees": 80}),
    ("rows_sound", spoilt_episodes.spike, {"degrees": 30, "count": 40}, {"degrees": 30, "count": 2}),
    ("no_teleports", spoilt_episodes.teleport, {"degrees": 30}, {"degrees": 1}),
    ("no_jumps", spoilt_episodes.teleport, {"degrees": 16}, {"degrees": 2}),
    ("not_shaken", spoilt_episodes.shake, {"degrees": 2.5}, {"degrees": 0.03}),
    ("not_shaken", spoilt_episodes.shake, {"degrees": 2.5, "sides": "state"}, {"degrees": 0.03}),
    ("motion_smooth", spoilt_episodes.shake, {"degrees": 0.6}, {"degrees": 0.03}),
    ("motion_smooth", spoilt_episodes.stagger, {"frames": 4}, {"frames": 1}),
    ("no_frames_missing", spoilt_episodes.drop_untold, {"share": 0.15}, {"share": 0}),
]


@pytest.mark.parametrize(("rule", "change", "fault", "harmless"), CASES)
def test_a_fault_is_found_in_the_episode_that_has_it(rule, change, fault, harmless):
    recording = spoilt_episodes.plant(clean(), 3, change, **fault)
    assert found(recording)[rule] == {3}
    assert rule not in found(spoilt_episodes.plant(clean(), 3, change, **harmless))


def test_a_few_wrong_readings_do_not_cost_an_episode():
    recording = spoilt_episodes.plant(clean(), 3, spoilt_episodes.spike, degrees=80, count=2)
    assert found(recording) == {"no_spikes": {3}}
    assert "no_spikes" not in BAD


def test_a_jump_is_told_with_its_frame():
    recording = spoilt_episodes.plant(clean(), 3, spoilt_episodes.teleport, degrees=40)
    (fault,) = [fault for fault in find_faults(recording, MOTION) if fault.rule == "no_teleports"]
    middle = int(recording.length[3]) // 2
    assert (fault.begin, fault.end) == (middle, middle + 1)


def test_frames_that_are_told_to_be_missing_are_no_jump():
    def gap(action, state, time):
        kept = [*range(len(time) // 2), *range(len(time) // 2 + 8, len(time))]
        return action[kept], state[kept], time[kept]

    rules = found(spoilt_episodes.plant(clean(), 3, gap))
    assert not rules.keys() & {"no_teleports", "no_jumps", "no_frames_missing"}
