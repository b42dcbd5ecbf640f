"""Play one scripted episode and keep what a dataset needs of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from depi.sim.expert import Expert

if TYPE_CHECKING:
    from depi.sim.simulation import So101Env


@dataclass(frozen=True)
class Episode:
    """One episode of T steps; row t holds what was seen before the action of row t was taken.

    Attributes:
        seed: of the environment's reset. success: whether the task was done.
        states, actions: float32 (T, 6), canonical degrees, gripper 0..100.
        images: camera name -> uint8 (T, height, width, 3).
        seconds: simulated time.
    """

    seed: int
    success: bool
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    images: dict[str, NDArray[np.uint8]]
    seconds: float


def play(env: "So101Env", expert: Expert, seed: int, *, images: bool = True) -> Episode:
    """Reset the environment with `seed` and let the expert act until success or the time limit."""
    observation, _ = env.reset(seed=seed, options={"images": images})
    expert.reset()
    observations, actions = [], []
    done = success = False
    while not done:
        action = expert(observation)
        observations.append(observation)
        actions.append(action)
        observation, _, success, truncated, _ = env.step(action)
        done = success or truncated
    return Episode(
        seed=seed,
        success=success,
        states=np.stack([seen["state"] for seen in observations]),
        actions=np.stack(actions),
        images={
            name: np.stack([seen["images"][name] for seen in observations])
            for name in observations[0]["images"]
        },
        seconds=len(actions) / env.setup.fps,
    )
