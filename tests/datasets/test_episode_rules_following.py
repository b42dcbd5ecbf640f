"""Rules about action and state, and about copies: each finds its fault, and nothing harmless."""

from functools import cache

import numpy as np
import pytest
import spoilt_episodes
import teleoperation
from spoilt_episodes import found

from depi.datasets.judging.faults import Recording, find_faults
from depi.datasets.judging.rules import MOTION


@cache
def clean(seed: int = 3) -> Recording:
    return teleoperation.clean_set(seed, "pick_place", 8)


CASES = [
    ("state_moves_along", spoilt_episodes.mismatch, {}, {"joints": 4}),
    ("state_not_early", spoilt_episodes.late, {"frames": -10}, {"frames": -1}),
    ("state_not_late", spoilt_episodes.late, {"frames": 27}, {"frames": 1}),
    ("lag_usual", spoilt_episodes.late, {"frames": 6}, {"frames": 1}),
    ("joints_not_reversed", spoilt_episodes.turn, {"joint": 1, "sign": -1, "sides": "state"}, {"joint": 1}),
    ("joints_not_reversed", spoilt_episodes.turn, {"joint": 5, "sign": -1, "sides": "action"}, {"joint": 5}),
    ("joints_obey", spoilt_episodes.mismatch, {"joints": 2}, {"joints": slice(0, 0)}),
    (
        "offset_usual",
        spoilt_episodes.turn,
        {"joint": 3, "zero": 12, "sides": "state"},
        {"joint": 3, "zero": 2},
    ),
]


@pytest.mark.parametrize(("rule", "change", "fault", "harmless"), CASES)
def test_a_fault_is_found_in_the_episode_that_has_it(rule, change, fault, harmless):
    recording = spoilt_episodes.plant(clean(), 3, change, **fault)
    assert found(recording)[rule] == {3}
    assert rule not in found(spoilt_episodes.plant(clean(), 3, change, **harmless))


@pytest.mark.parametrize(("cut", "noise"), [(0, 0.0), (40, 0.0), (25, 0.3)])
def test_the_later_of_two_equal_episodes_is_a_copy(cut, noise):
    original = spoilt_episodes.episodes_of(clean())[2]
    recording = spoilt_episodes.plant(clean(), 5, spoilt_episodes.copied, of=original, cut=cut, noise=noise)
    (fault,) = [fault for fault in find_faults(recording, MOTION) if fault.rule == "not_a_copy"]
    assert (fault.episode, fault.leaves_out) == (5, True)
    assert fault.text.startswith("a copy of episode 2")


def test_all_but_the_first_of_many_copies_are_copies():
    episodes = spoilt_episodes.episodes_of(clean())[:2] * 4
    episodes = [spoilt_episodes.shake(*episode, degrees=0.05) for episode in episodes]
    assert found(spoilt_episodes.of_episodes(episodes, clean()))["not_a_copy"] == set(range(2, 8))


def test_a_second_execution_of_the_same_commands_is_no_copy():
    action, state, _ = spoilt_episodes.episodes_of(clean())[2]
    pushed = state + 6 * np.sin(np.arange(len(state)) / 40)[:, None]
    recording = spoilt_episodes.plant(
        clean(), 5, lambda *_: (action, pushed, spoilt_episodes.episodes_of(clean())[2][2])
    )
    assert "not_a_copy" not in found(recording)


@pytest.mark.parametrize(("count", "found_in"), [(0, set()), (3, {0, 1, 2})])
def test_an_offset_in_many_episodes_is_a_remark_on_each(count, found_in):
    recording = clean()
    for position in range(count):
        recording = spoilt_episodes.plant(
            recording, position, spoilt_episodes.turn, joint=3, zero=12, sides="state"
        )
    assert found(recording).get("offset_even", set()) == found_in
    assert "offset_usual" not in found(recording)


def test_the_beginnings_of_two_moves_from_the_same_place_are_no_copies():
    rng = np.random.default_rng(0)
    episodes = spoilt_episodes.episodes_of(clean())
    rest, time = np.zeros((60, 6)), episodes[0][2][:60]
    rest[:, :5] = -3.3 + 3 * np.sin(np.arange(60)[:, None] / 8 + np.arange(5))
    for position in (3, 5):
        side = rest + rng.normal(0, 0.6, (60, 6))
        episodes[position] = (side.astype("float32"), side.astype("float32"), time)
    assert "not_a_copy" not in found(spoilt_episodes.of_episodes(episodes, clean()))
