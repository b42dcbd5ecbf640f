"""Defects in what one joint or the whole arm does."""

import numpy as np
from planting import BODY, Copy, kind


@kind(
    "action state videos",
    (0.05, "one episode with 5% of its motion"),
    (0.01, "one episode with 1% of its motion"),
    (0, "one episode in which only the encoder flickers"),
)
def no_motion(copy: Copy, share: float) -> list[int]:
    """The arm is off or nobody moves the leader."""
    number, episode = copy.one()
    still = np.zeros(len(episode), int)
    action, state = (v[0] + share * (v - v[0]) for v in (episode.action, episode.state))
    copy.take(number, still)
    episode.action, episode.state = action, state + copy.jitter(state.shape)
    return [number]


@kind(
    "action state time videos",
    (2, "2 s before one episode's first move"),
    (5, "5 s before one episode's first move"),
    (10, "10 s before one episode's first move"),
)
def idle_head(copy: Copy, seconds: float) -> list[int]:
    """Recording begins long before the operator does."""
    number, episode = copy.one()
    copy.take(number, np.r_[np.zeros(round(seconds * copy.set.fps), int), np.arange(len(episode))])
    return [number]


@kind(
    "action state time videos",
    (2, "2 s after one episode's last move"),
    (5, "5 s after one episode's last move"),
    (10, "10 s after one episode's last move"),
)
def idle_tail(copy: Copy, seconds: float) -> list[int]:
    """Recording goes on long after the task is done."""
    number, episode = copy.one()
    last = np.full(round(seconds * copy.set.fps), len(episode) - 1)
    copy.take(number, np.r_[np.arange(len(episode)), last])
    return [number]


@kind(
    "state",
    (0.15, "15% of one episode"),
    (0.35, "35% of one episode"),
    (0.6, "60% of one episode"),
)
def state_frozen(copy: Copy, share: float) -> list[int]:
    """The follower's bus hangs: the state repeats one reading while commands go on."""
    number, episode = copy.one()
    length = round(share * len(episode))
    starts = np.arange(round(0.1 * len(episode)), len(episode) - length)
    travel = np.r_[0, np.abs(np.diff(episode.action, axis=0)).sum(axis=1)].cumsum()
    moved = travel[starts + length - 1] - travel[starts]
    start = int(copy.rng.choice(starts[moved >= 0.5 * moved.max()]))
    episode.state[start : start + length] = episode.state[start]
    return [number]


@kind(
    "state",
    (0.5, "one joint in the second half of one episode"),
    (1, "one joint in one episode"),
    (3, "one joint in three episodes"),
)
def joint_dead_in_episode(copy: Copy, amount: float) -> list[int]:
    """A motor loses power or its cable: its reading stays, its command moves."""
    numbers = copy.draw(max(1, int(amount)))
    joint = copy.joint(numbers)
    for number in numbers:
        state = copy.set.episodes[number].state
        begin = round((1 - min(amount, 1)) * len(state))
        state[begin:, joint] = state[begin, joint]
    return numbers


@kind(
    "action state",
    (1, "one joint's state flickers by a step in all episodes, its command moves"),
    (2, "one joint's state is one number in all episodes, its command moves"),
    (3, "one joint's state and command are one number in all episodes"),
)
def joint_dead_everywhere(copy: Copy, amount: float) -> list[int]:
    """A motor is not connected."""
    joint = copy.joint(range(len(copy.set.episodes)))
    value = copy.set.episodes[0].state[0, joint]
    for episode in copy.set.episodes:
        episode.state[:, joint] = value
        if amount == 1:
            episode.state[:, joint] += copy.jitter((len(episode),))
        if amount == 3:
            episode.action[:, joint] = value
    return []


@kind(
    "action state",
    (0.15, "one joint stops at a limit for 15% of the frames of four episodes"),
    (0.35, "one joint stops at a limit for 35% of the frames of four episodes"),
    (0.6, "one joint stops at a limit for 60% of the frames of four episodes"),
)
def saturated(copy: Copy, share: float) -> list[int]:
    """A session was calibrated over too small a range: beyond it one joint reads its end."""
    numbers = copy.draw(4)
    joint, upper = copy.joint(numbers), copy.rng.random() < 0.5
    values = np.concatenate([copy.set.episodes[number].state[:, joint] for number in numbers])
    limit = np.quantile(values, 1 - share if upper else share)
    for number in numbers:
        for values in (copy.set.episodes[number].action, copy.set.episodes[number].state):
            values[:, joint] = (np.minimum if upper else np.maximum)(values[:, joint], limit)
    return numbers


@kind(
    "state",
    (0.7, "noise of 0.7 units on two episodes' state"),
    (2, "noise of 2 units on two episodes' state"),
    (5, "noise of 5 units on two episodes' state"),
)
def jitter(copy: Copy, size: float) -> list[int]:
    """A poor supply or a loose magnet: readings scatter."""
    numbers = copy.draw(2)
    for number in numbers:
        state = copy.set.episodes[number].state
        state += copy.rng.normal(0, size, state.shape).astype(np.float32)
        copy.bound(number)
    return numbers


@kind(
    "state",
    (10, "one joint's reading jumps by 10 units and stays so"),
    (25, "one joint's reading jumps by 25 units and stays so"),
    (60, "one joint's reading jumps by 60 units and stays so"),
)
def teleport(copy: Copy, jump: float) -> list[int]:
    """A servo loses its zero in the middle of an episode."""
    number, episode = copy.one()
    begin = round(len(episode) * copy.rng.uniform(0.3, 0.7))
    joint = copy.joint([number])
    episode.state[begin:, joint] -= np.copysign(jump, episode.state[begin, joint])
    copy.bound(number)
    return [number]


@kind(
    "state",
    (1, "one wrong reading in one episode, 40 to 90 units off"),
    (3, "three wrong readings in one episode, 40 to 90 units off"),
    (8, "eight wrong readings in one episode, 40 to 90 units off"),
)
def spikes(copy: Copy, count: float) -> list[int]:
    """Broken packets on the bus: single readings far off."""
    number, episode = copy.one()
    for frame in copy.rng.choice(np.arange(2, len(episode) - 2), int(count), replace=False):
        joint = copy.rng.integers(BODY)
        episode.state[frame, joint] -= np.copysign(copy.rng.uniform(40, 90), episode.state[frame, joint])
    return [number]
