"""The process of one environment: `python -m depi.evaluation.worker SOCKET PARENT`; `workers` starts it.

It answers one request at a time over a socket that it inherits. While it works it sends heartbeats, so that a
long chunk of actions is not taken for a hanging environment.
"""

import logging
import os
import random
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from depi.errors import UserError, machine_error
from depi.evaluation.environments import EnvTable, images_of, state_of
from depi.evaluation.messages import BEAT, Begin, Failed, Open, Play, Played, Refused, Seen, Trajectory
from depi.evaluation.simulators import Simulator

BEAT_SECONDS = 0.25
PARENT_SECONDS = 1.0


class Stage:
    """An environment, its current episode, and the recorded data of that."""

    def __init__(self, request: Open, beat: Any):
        self.simulator = Simulator(request.env)
        self._beat = beat
        self._request = Begin(0, request.seed)
        self._expert: Any = None
        self._last: dict[str, np.ndarray] = {}

    def begin(self, request: Begin) -> Seen:
        """Begin an episode."""
        # So that environments that use the global random generators repeat too.
        random.seed(request.seed)
        np.random.seed(request.seed % 2**32)
        self._request, self._steps = request, 0
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._images: dict[str, list[np.ndarray]] = {}
        self._frames: list[np.ndarray] = []
        self._success = False
        table = self.simulator.open(request.seed)
        self.simulator.look(True)
        self._observation = self.simulator.reset(request.index, request.seed)
        self._task = self.simulator.instruction()
        if request.expert:
            from depi.sim.expert import Expert

            if self.simulator.config.type != "so101":
                raise UserError(f"there is no scripted expert for --env.type={self.simulator.config.type}")
            env: Any = self.simulator.env
            self._expert = Expert(env)
            self._expert.reset()
        return self._seen(table)

    def play(self, request: Play) -> Played:
        """Carry out actions until they or the episode end."""
        table = self.simulator.table
        assert table is not None
        rewards: list[float] = []
        every = self._request.keep or self._request.video is not None
        for number, action in enumerate(request.actions, 1):
            self._keep(table)
            self._steps += 1
            self.simulator.look(every or number == len(request.actions))
            self._observation, reward, terminated, truncated, info = self.simulator.env.step(action)
            self._actions.append(np.asarray(info.get("sent_action", action), np.float32))
            self._beat()
            rewards.append(float(reward))
            self._rewards.append(float(reward))
            if table.success not in info:
                raise KeyError(f"the environment's info has no {table.success!r}")
            self._success = self._success or bool(np.all(info[table.success]))
            terminated = bool(terminated) or self._success
            if terminated or truncated or self._steps >= table.max_steps:
                return self._ended(table, rewards, terminated)
        return Played(rewards, self._seen(None), self._success)

    def _seen(self, table: EnvTable | None) -> Seen:
        known = self.simulator.table
        assert known is not None
        planned = None
        if self._request.expert:
            planned = np.stack([self._expert() for _ in range(self._request.expert)])
        images = images_of(known, self._observation)
        self._last = images or self._last
        return Seen(images, state_of(known, self._observation), self._task, planned, table)

    def _keep(self, table: EnvTable) -> None:
        if not self._request.keep and self._request.video is None:
            return
        images = images_of(table, self._observation)
        if self._request.video is not None:
            self._frames.append(side_by_side(list(images.values())))
        if self._request.keep:
            self._states.append(state_of(table, self._observation))
            for key, image in images.items():
                # Some simulators draw every image into the same array.
                self._images.setdefault(key, []).append(image.copy())

    def _ended(self, table: EnvTable, rewards: list[float], terminated: bool) -> Played:
        from depi.evaluation.films import write_video

        if (video := self._request.video) is not None:
            try:
                write_video(video, self._frames, table.fps)
            except OSError as error:  # of this machine, not of the simulator
                raise machine_error(error, video.parent, "choose another --output_dir") or error from None
        frame = self.simulator.frame()
        if frame is None:
            frame = side_by_side(list(self._last.values()))
        trajectory = None
        if self._request.keep:
            trajectory = Trajectory(
                self._request.index,
                self._request.seed,
                self._success,
                self._task,
                table.fps,
                np.stack(self._states),
                np.stack(self._actions),
                np.asarray(self._rewards, np.float32),
                {key: np.stack(images) for key, images in self._images.items()},
                table,
                terminated,
            )
        return Played(rewards, None, self._success, frame, trajectory)


def side_by_side(images: list[np.ndarray]) -> np.ndarray:
    """Pictures in a row, uint8 (H, W, 3), lower ones with black below."""
    height = max(len(image) for image in images)
    padded = [np.pad(image, ((0, height - len(image)), (0, 0), (0, 0))) for image in images]
    return np.concatenate(padded, axis=1)


def serve(connection: Connection) -> None:
    """Answer requests until the other side closes the connection."""
    sent = time.monotonic()

    def beat() -> None:
        nonlocal sent
        now = time.monotonic()
        if now - sent > BEAT_SECONDS:
            sent = now
            connection.send(BEAT)

    stage: Stage | None = None
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            break
        try:
            if isinstance(request, Open):
                stage = Stage(request, beat)
                answer: Any = stage.simulator.open(request.seed)
            elif isinstance(request, Begin):
                assert stage is not None
                answer = stage.begin(request)
            else:
                assert stage is not None
                answer = stage.play(request)
        except UserError as error:
            answer = Refused(str(error))
        except Exception as error:  # an error of any kind in a simulator is this episode's error
            answer = Failed(" ".join(f"{type(error).__name__}: {error}".split())[:500])
        connection.send(answer)
    if stage is not None:
        stage.simulator.close()


def _end_with(parent: int) -> None:
    """End this process when the one that started it has ended, whatever the environment is doing."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def main() -> None:
    """Serve the socket whose number is the first argument; the second is the parent's process id."""
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    logging.getLogger("OpenGL").setLevel(logging.WARNING)
    connection = Connection(int(sys.argv[1]))
    serve(connection)
    connection.close()


if __name__ == "__main__":
    main()
