"""Play scripted episodes: keep what a dataset needs of them, or measure how often the expert succeeds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depi.errors import UserError
from depi.sim.expert import Expert
from depi.sim.setup import Setup

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


@dataclass
class ExpertConfig:
    """Measure how often a task's scripted expert succeeds, without rendering.

    Attributes:
        task: touch or pick_lift.
        episodes: with the seeds from `seed` on.
        json: print one JSON line instead of a sentence.
    """

    task: str = ""
    episodes: int = 50
    seed: int = 0
    fps: int = 30
    json: bool = False


def measure_expert(config: ExpertConfig) -> dict[str, Any]:
    """Play the episodes and return a JSON-able report: successes, success_rate, failed_seeds, ..."""
    from depi.sim.env import make_env

    if config.episodes < 1:
        raise UserError(f"--episodes must be positive, got {config.episodes}")
    if config.seed < 0:
        raise UserError(f"--seed must not be negative, got {config.seed}")
    env = make_env(config.task, Setup(cameras=(), fps=config.fps))
    expert = Expert(env)
    played = [play(env, expert, seed) for seed in range(config.seed, config.seed + config.episodes)]
    env.close()
    failed = [episode.seed for episode in played if not episode.success]
    return {
        "task": config.task,
        "fps": config.fps,
        "episodes": config.episodes,
        "seed": config.seed,
        "successes": config.episodes - len(failed),
        "success_rate": 1 - len(failed) / config.episodes,
        "median_seconds": float(np.median([episode.seconds for episode in played])),
        "failed_seeds": failed,
    }
