"""Advantages and thresholds against slow references."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depi.datasets.samples.outcomes import episode_returns, episode_rewards, normalised
from depi.recap.advantage import episode_advantages, indicators, percentiles, threshold, thresholds

episodes = st.tuples(
    st.lists(st.floats(-1, 0, width=32) | st.just(math.nan), min_size=1, max_size=40), st.booleans()
)


def slow_advantage(values, rewards, t, look_ahead):
    total = sum(rewards[t : t + look_ahead])
    if t + look_ahead < len(values):
        total += values[t + look_ahead]
    return total - values[t]


@given(episodes, st.integers(1, 60), st.floats(0, 100), st.floats(1, 2000))
def test_advantages_are_what_the_formula_says(episode, look_ahead, c_fail, normalizer):
    values, success = episode
    rewards = (episode_rewards(len(values), success, c_fail) / normalizer).tolist()
    expected = [slow_advantage(values, rewards, t, look_ahead) for t in range(len(values))]
    found = episode_advantages(
        np.array(values, np.float32),
        success,
        look_ahead=look_ahead,
        c_fail=c_fail,
        reward_normalizer=normalizer,
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@given(st.integers(1, 50), st.booleans(), st.integers(1, 60))
def test_a_perfect_value_function_has_no_advantage_anywhere(length, success, look_ahead):
    values = normalised(episode_returns(length, success, 30), 100)
    found = episode_advantages(values, success, look_ahead=look_ahead, c_fail=30, reward_normalizer=100)
    np.testing.assert_allclose(found, 0, atol=1e-12)


def test_the_end_of_an_episode_is_not_bootstrapped():
    settings = {"look_ahead": 2, "c_fail": 8, "reward_normalizer": 10}
    values = np.array([-0.5, -0.4, -0.3])
    np.testing.assert_allclose(
        episode_advantages(values, True, **settings), [-0.2 - 0.3 + 0.5, -0.1 + 0.4, 0.3]
    )
    np.testing.assert_allclose(
        episode_advantages(values, False, **settings), [-0.2 - 0.3 + 0.5, -0.9 + 0.4, -0.8 + 0.3]
    )
    assert episode_advantages(np.array([-0.25]), True, **settings).tolist() == [0.25]
    with pytest.raises(ValueError, match="look_ahead 0"):
        episode_advantages(values, True, look_ahead=0, c_fail=1, reward_normalizer=1)


def slow_share(advantages, wanted):
    """The reachable number of positives that is nearest to the wanted one."""
    known = [value for value in advantages if not math.isnan(value)]
    reachable = {sum(value > epsilon for value in known) for epsilon in [*known, -math.inf]}
    return min(reachable, key=lambda count: (abs(count - wanted * len(known)), count))


# Few distinct numbers make ties; float32 is how advantages are stored.
numbers = st.lists(
    st.integers(-3, 3).map(lambda number: number / 7) | st.floats(-2, 2) | st.just(math.nan),
    min_size=1,
    max_size=60,
).filter(lambda values: not all(math.isnan(value) for value in values))


@given(numbers, st.floats(0, 1), st.sampled_from([np.float32, np.float64]))
def test_the_share_of_positives_is_the_nearest_that_can_be_reached(values, share, dtype):
    advantages = np.array(values, dtype)
    found = threshold(advantages, share)
    assert found.frames == (~np.isnan(advantages)).sum()
    assert found.positive == (advantages > found.epsilon).sum()
    assert found.positive == slow_share(advantages.tolist(), share)


def test_without_ties_the_share_is_exact():
    advantages = np.random.default_rng(0).permutation(1000).astype(np.float32)
    found = threshold(advantages, 0.3)
    assert (found.epsilon, found.positive) == (699.0, 300)
    assert threshold(advantages, 1).positive == 1000
    assert threshold(advantages, 0).positive == 0
    assert threshold(np.zeros(10, np.float32), 0.3).positive == 0
    assert threshold(np.zeros(10, np.float32), 0.7).positive == 10
    for wrong in ((np.array([np.nan]), 0.3), (advantages, 1.1), (advantages, math.nan)):
        with pytest.raises(ValueError, match="no threshold"):
            threshold(*wrong)


@given(numbers, st.data())
def test_thresholds_by_group_are_those_of_each_group_alone(values, data):
    groups = data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values)))
    advantages, groups = np.array(values), np.array(groups)
    found = thresholds(advantages, 0.3, groups, ["a", "b", "c", "d"])
    for number, name in enumerate("abcd"):
        inside = advantages[groups == number]
        if np.isnan(inside).all():
            assert name not in found
        else:
            assert found[name] == threshold(inside, 0.3)


def test_interventions_are_positive_and_what_is_unknown_is_masked():
    advantages = np.array([0.2, 0.1, np.nan, np.nan, -0.5])
    intervention = np.array([False, False, False, True, True])
    found = indicators(advantages, 0.1, intervention)
    assert found.tolist() == [True, False, None, True, True]
    assert indicators(advantages, np.array([0.3, 0, 0, 0, 0]), ~intervention & False).tolist() == [
        False,
        True,
        None,
        None,
        False,
    ]


def test_percentiles_pass_over_what_is_unknown():
    found = percentiles(np.array([np.nan, *range(101)], np.float32))
    assert (found["0"], found["50"], found["70"], found["100"]) == (0, 50, 70, 100)
