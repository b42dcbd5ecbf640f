"""Rules about sign and zero of a joint: each finds its fault, and nothing where tasks and places differ."""

from functools import cache

import pytest
import spoilt_episodes
import teleoperation
from spoilt_episodes import found

from depi.datasets.judging.faults import Recording
from depi.datasets.judging.rules import MOTION

BAD = {rule.name for rule in MOTION if rule.leaves_out}


@cache
def clean(task: str = "pick_place", seed: int = 3) -> Recording:
    return teleoperation.clean_set(seed, task, 10)


CASES = [
    ("joint_signs_agree", {"joint": 1, "sign": -1}, {"joint": 1}),
    ("joint_signs_agree", {"joint": 2, "sign": -1}, {"joint": 2}),
    ("joint_signs_agree", {"joint": 3, "sign": -1}, {"joint": 3}),
    ("joint_zeros_agree", {"joint": 1, "zero": 60}, {"joint": 1, "zero": 4}),
    ("joint_zeros_agree", {"joint": 3, "zero": -40}, {"joint": 3, "zero": -4}),
    ("joint_zeros_near", {"joint": 4, "zero": 16}, {"joint": 4, "zero": 4}),
    ("joints_move_together", {"joint": 2, "sign": -1, "zero": 90}, {"joint": 2}),
]


@pytest.mark.parametrize(("rule", "fault", "harmless"), CASES)
def test_a_fault_is_found_in_the_episode_that_has_it(rule, fault, harmless):
    recording = spoilt_episodes.plant(clean(), 3, spoilt_episodes.turn, **fault)
    assert found(recording)[rule] == {3}
    assert rule not in found(spoilt_episodes.plant(clean(), 3, spoilt_episodes.turn, **harmless))


def test_a_sign_that_differs_in_half_of_the_episodes_is_a_remark_on_the_smaller_half():
    episodes = spoilt_episodes.episodes_of(clean())
    for position in (1, 2, 5, 8):
        episodes[position] = spoilt_episodes.turn(*episodes[position], joint=1, sign=-1)
    rules = found(spoilt_episodes.of_episodes(episodes, clean()))
    assert rules["joint_signs_even"] == {1, 2, 5, 8}
    assert not rules.keys() & BAD


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", ["sides", "reach", "mixed"])
def test_going_to_another_side_or_doing_another_task_is_no_other_sign(task, seed):
    assert found(clean(task, seed)) == {}


def test_a_place_that_is_further_to_the_side_is_no_other_zero():
    action, state, time = spoilt_episodes.episodes_of(clean())[3]
    turned = [side.copy() for side in (action, state)]
    for side in turned:
        side[:, 0] += 35 * teleoperation.np.sin(teleoperation.np.linspace(0, 3.14, len(side))) ** 0.5
    rules = found(spoilt_episodes.plant(clean(), 3, lambda *_: (*turned, time)))
    assert not rules.keys() & {"joint_zeros_agree", "joint_zeros_near"}


def test_few_episodes_are_not_compared():
    recording = teleoperation.clean_set(3, "pick_place", 4)
    assert found(spoilt_episodes.plant(recording, 1, spoilt_episodes.turn, joint=2, zero=40)) == {}
