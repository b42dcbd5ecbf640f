"""Rules about stillness, stuck joints, time and length: each finds its fault, and nothing in clean ones."""

import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import spoilt_episodes
import teleoperation
from spoilt_episodes import found

from depi.datasets.judging.faults import Recording, find_faults
from depi.datasets.judging.rules import MOTION

REMARKS = {rule.name for rule in MOTION if not rule.leaves_out}


@cache
def clean(seed: int = 4, task: str = "pick_place", episodes: int = 8) -> Recording:
    return teleoperation.clean_set(seed, task, episodes)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_found_in_a_clean_recording(seed):
    assert found(teleoperation.clean_set(1000 + seed)) == {}


FROZEN_JOINT = {"joints": 1, "begin": 0.2, "end": 0.6}
SATURATED = {"joint": 2, "share": 0.7, "end": 100}
CASES = [
    ("long_enough", spoilt_episodes.shorten, {"frames": 4}, {"frames": 60}),
    ("length_usual", spoilt_episodes.shorten, {"frames": 20}, {"frames": 60}),
    ("rate_as_declared", spoilt_episodes.clock, {"factor": 2.0}, {"factor": 1.05}),
    ("rate_as_declared", spoilt_episodes.clock, {"factor": 0.6}, {"factor": 0.95}),
    ("rate_near_declared", spoilt_episodes.clock, {"factor": 1.2}, {"factor": 1.05}),
    ("clock_steady", spoilt_episodes.drop, {"share": 0.15}, {"share": 0.0}),
    ("clock_steady", spoilt_episodes.jolt_clock, {"share": 0.15}, {"share": 0.002}),
    ("no_frames_dropped", spoilt_episodes.drop, {"share": 0.04}, {"share": 0.0}),
    ("arm_moves", spoilt_episodes.stand, {}, {"tremble": 40.0}),
    ("arm_moves", spoilt_episodes.stand, {"tremble": 0.5}, {"tremble": 40.0}),
    ("mostly_moving", spoilt_episodes.hold, {"at": 0.5, "frames": 4000}, {"at": 0.5, "frames": 400}),
    ("idle_share_usual", spoilt_episodes.hold, {"at": 0.5, "frames": 600}, {"at": 0.5, "frames": 60}),
    ("head_not_idle", spoilt_episodes.hold, {"at": 0.0, "frames": 200}, {"at": 0.0, "frames": 10}),
    ("state_not_frozen", spoilt_episodes.freeze, {"begin": 0.3, "end": 0.6}, {"begin": 0.4, "end": 0.41}),
    ("state_not_frozen", spoilt_episodes.freeze, {"begin": 0.3, "end": 1}, {"begin": 0.99, "end": 1}),
    ("joints_not_frozen", spoilt_episodes.freeze, FROZEN_JOINT, FROZEN_JOINT | {"begin": 0.59}),
    (
        "joints_follow",
        spoilt_episodes.still_joint,
        {"joint": 1, "sides": "state"},
        {"joint": 1, "sides": "none"},
    ),
    (
        "joints_follow",
        spoilt_episodes.still_joint,
        {"joint": 2, "sides": "action"},
        {"joint": 1, "sides": "none"},
    ),
    ("joints_alive", spoilt_episodes.still_joint, {"joint": 3}, {"joint": 3, "tremble": 0.5}),
    ("joints_alive", spoilt_episodes.still_joint, {"joint": 5}, {"joint": 5, "tremble": 0.5}),
    (
        "gripper_moves",
        spoilt_episodes.still_joint,
        {"joint": 5, "tremble": 0.5},
        {"joint": 4, "tremble": 0.5},
    ),
    ("joints_within_range", spoilt_episodes.saturate, SATURATED, SATURATED | {"share": 0.05}),
    ("tail_not_idle", spoilt_episodes.hold, {"at": 1.0, "frames": 200}, {"at": 1.0, "frames": 10}),
]


@pytest.mark.parametrize(("rule", "change", "fault", "harmless"), CASES)
def test_a_fault_is_found_in_the_episode_that_has_it(rule, change, fault, harmless):
    recording = spoilt_episodes.plant(clean(), 3, change, **fault)
    assert found(recording)[rule] == {3}
    assert rule not in found(spoilt_episodes.plant(clean(), 3, change, **harmless))


def test_a_rate_that_is_wrong_in_all_episodes_is_a_fault_of_the_dataset():
    episodes = [
        spoilt_episodes.clock(*episode, factor=2.0) for episode in spoilt_episodes.episodes_of(clean())
    ]
    assert found(spoilt_episodes.of_episodes(episodes, clean())) == {}


def test_an_idle_end_is_told_with_its_frames():
    recording = spoilt_episodes.plant(clean(), 3, spoilt_episodes.hold, at=0.0, frames=200)
    (fault,) = [fault for fault in find_faults(recording, MOTION) if fault.rule == "head_not_idle"]
    assert fault.begin == 0
    assert 195 <= fault.end <= 200 + 2 * recording.fps
    assert not fault.leaves_out


def test_one_frame_is_too_short_even_alone():
    recording = clean(4, "push", 1)
    assert found(spoilt_episodes.plant(recording, 0, spoilt_episodes.shorten, frames=1)).keys() == {
        "long_enough",
        "arm_moves",
    }
    assert found(spoilt_episodes.plant(recording, 0, spoilt_episodes.shorten, frames=3)).keys() == {
        "arm_moves"
    }


def test_a_joint_that_never_moves_is_told_in_each_episode_but_not_the_gripper():
    for joint, rules in ((4, {"joints_used"}), (5, set())):
        episodes = [
            spoilt_episodes.still_joint(*episode, joint=joint)
            for episode in spoilt_episodes.episodes_of(clean())
        ]
        assert found(spoilt_episodes.of_episodes(episodes, clean())).keys() == rules


def test_an_idle_gripper_is_no_fault_where_the_task_is_another():
    recording = spoilt_episodes.plant(clean(), 3, spoilt_episodes.still_joint, joint=5, tremble=0.5)
    tasks = tuple(("push",) if position == 3 else ("pick",) for position in range(8))
    episodes = replace(recording.meta.episodes, tasks=tasks)
    assert found(replace(recording, meta=replace(recording.meta, episodes=episodes))) == {}


def test_where_one_joint_moves_at_a_time_another_may_stand_still():
    assert found(teleoperation.clean_set(93, "jog", 12)) == {}


def test_the_time_grows_with_the_episodes_and_not_with_their_square():
    """Thousands of faults of every kind: strangers' recordings may have as many episodes as they like."""

    def seconds(episodes: int) -> float:
        rng = np.random.default_rng(0)
        actions = [rng.normal(0, 30, (12, 6)).astype(np.float32) for _ in range(episodes)]
        for action in actions:
            action[:, 3] = 1.0
        recording = teleoperation.recording_of(
            actions, [np.roll(action, 1, axis=0) for action in actions], 30, tasks=["pick"] * episodes
        )
        begun = time.process_time()
        assert find_faults(recording, MOTION)
        return time.process_time() - begun

    seconds(100)
    assert seconds(8_000) < 10 * seconds(2_000)
