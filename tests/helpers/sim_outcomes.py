"""Simulated successes and failures of the touch task, recorded as LeRobot datasets with success flags."""

from pathlib import Path

import numpy as np

from depi.sim.env import make_env
from depi.sim.expert import Expert
from depi.sim.record import dataset_features, quiet_libraries
from depi.sim.setup import Camera, Setup
from depi.sim.v30 import V30Writer

SETUP = Setup(cameras=(Camera("wrist", "wrist"),), width=84, height=84, fps=10, codec="h264")
# Two ways of saying the same, of different length.
TASKS = ("Touch the red cube.", "Please move the arm down until it touches the small red cube.")


class AimsWrong(Expert):
    """Touches the table where no cube is: as far away as the cube, to its left or right."""

    def _plan_touch(self, cube, rng):
        turn = rng.choice([-1, 1]) * np.radians(rng.uniform(22, 35))
        cos, sin = np.cos(turn), np.sin(turn)
        there, base = cube.copy(), self._arm.base_position[:2]
        there[:2] = base + np.array([[cos, -sin], [sin, cos]]) @ (cube[:2] - base)
        super()._plan_touch(there, rng)


def play_touch(env, expert: Expert, seed: int, max_steps: int = 20) -> dict[str, np.ndarray]:
    """One episode: states, actions, images by camera, and whether it was a success."""
    observation, _ = env.reset(seed=seed)
    expert.reset()
    seen, actions, success = [], [], False
    while not success and len(actions) < max_steps:
        seen.append(observation)
        actions.append(expert())
        observation, _, success, _, _ = env.step(actions[-1])
    return {
        "observation.state": np.stack([each["state"] for each in seen]),
        "action": np.stack(actions),
        "observation.images.wrist": np.stack([each["images"]["wrist"] for each in seen]),
        "success": np.array(success),
    }


def record_outcomes(root: Path, repo_id: str, seeds: range) -> list[bool]:
    """Record an episode of each seed, right and wrong in turn; returns which succeeded."""
    quiet_libraries()
    features = dataset_features(SETUP)
    features["next.success"] = {"dtype": "bool", "shape": (1,), "names": None}
    writer = V30Writer(root, repo_id, features, SETUP.fps, SETUP.codec, SETUP.robot_type)
    env = make_env("touch", SETUP)
    experts = (Expert(env), AimsWrong(env))
    successes = []
    try:
        for number, seed in enumerate(seeds):
            episode = play_touch(env, experts[number % 2], seed)
            success = bool(episode.pop("success"))
            images = {key: episode.pop(key) for key in list(episode) if key.startswith("observation.images")}
            flags = np.zeros((len(episode["action"]), 1), bool)
            flags[-1] = success
            writer.add_episode({**episode, "next.success": flags}, images, TASKS[number // 2 % 2])
            successes.append(success)
        writer.finalize()
    finally:
        env.close()
    return successes
