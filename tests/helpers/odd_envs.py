"""A tiny real gymnasium environment that can crash, hang and raise; `odd_envs:Odd-v0`."""

import os
import time

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class OddEnv(gym.Env):
    """A dot moves by its actions towards the right edge; some seeds go wrong in the third step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        render_mode="rgb_array",
        crash=(),
        hang=(),
        fail=(),
        endless=(),
        seconds=0.0,
        stuck=False,
        log=None,
    ):
        self.render_mode = render_mode
        self._wrong = {**dict.fromkeys(crash, "crash"), **dict.fromkeys(hang, "hang")}
        self._wrong |= dict.fromkeys(fail, "fail")
        self._seconds, self._stuck, self._endless, self._log = seconds, stuck, endless, log
        self._pixels = np.zeros((16, 24, 3), np.uint8)  # one for all observations, as some simulators have
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Box(0, 255, (16, 24, 3), np.uint8),
                "agent_pos": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            }
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        print("a simulator's greeting")
        if self._stuck:
            raise RuntimeError("the arm is stuck")
        self._seed, self._steps = seed, 0
        self._place = self.np_random.uniform(0, 1, 2)
        return self._observe(), {"is_success": False}

    def step(self, action):
        self._steps += 1
        if self._log:
            with open(self._log, "a") as file:
                file.write(f"{time.monotonic()}\n")
        time.sleep(self._seconds)
        trouble = self._wrong.get(self._seed) if self._steps == 3 else None
        if trouble == "crash":
            os._exit(7)
        if trouble == "hang":
            time.sleep(1000)
        if trouble == "fail":
            raise RuntimeError("the gripper is jammed")
        self._place = self._place + np.asarray(action, np.float64) / 10
        done = bool(self._place[0] > 1.5)
        reward = np.inf if self._seed in self._endless else float(self._place[0])
        return self._observe(), reward, done, False, {"is_success": done}

    def render(self):
        return self._observe()["pixels"]

    def _observe(self):
        pixels = self._pixels
        pixels[:] = 0
        pixels[:, : max(0, min(24, round(self._place[0] * 10)))] = 255
        return {"pixels": pixels, "agent_pos": self._place}


gym.register(id="Odd-v0", entry_point=OddEnv, max_episode_steps=20)
