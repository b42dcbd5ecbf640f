"""Episodes of one policy in many environments at once.

Each environment has a process of its own, which plays out a whole chunk of actions by itself. The policy is
called for the environments that wait for a chunk, while the others play theirs.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depi.errors import UserError
from depi.evaluation.actors import Actor, Observation
from depi.evaluation.config import EnvironmentConfig
from depi.evaluation.environments import EnvTable
from depi.evaluation.messages import Begin, Failed, Play, Played, Refused, Seen, Trajectory
from depi.evaluation.workers import Worker, wait_for
from depi.sim.gl import select_backend

# How long, in seconds, an environment waits for others to share a call of the policy.
PATIENCE = 0.05


@dataclass(frozen=True)
class Episode:
    """The result of one episode; an `error` is neither success nor failure."""

    index: int
    seed: int
    success: bool
    length: int
    reward: float
    error: str | None
    seconds: float


@dataclass
class Timing:
    """The time that an evaluation took, by part."""

    wall: float = 0.0
    calls: list[float] = field(default_factory=list)
    chunks: int = 0
    steps: int = 0

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON-able figures; latencies in milliseconds."""
        latencies = np.array(self.calls) * 1000
        return {
            "seconds": round(self.wall, 3),
            "policy_calls": len(self.calls),
            "chunks": self.chunks,
            "latency_ms_median": float(np.median(latencies)) if self.calls else None,
            "latency_ms_p95": float(np.percentile(latencies, 95)) if self.calls else None,
            "env_steps_per_s": self.steps / self.wall if self.wall else None,
            "inference_share": float(sum(self.calls) / self.wall) if self.wall else None,
        }


@dataclass
class Place:
    """An environment that plays one episode after another."""

    number: int
    worker: Worker
    request: Begin | None = None
    table: EnvTable | None = None
    seen: Seen | None = None
    opening: bool = True
    chunk: int = 0
    rewards: list[float] = field(default_factory=list)
    began: float = 0.0
    waits_since: float = 0.0


type OnEnd = Callable[[Episode, NDArray[np.uint8] | None, Trajectory | None], None]


class Rollouts:
    """Plays episodes; use it as a context, which ends the environments' processes.

    Args:
        env: as `depi.evaluation.environments.resolve` gives it.
        seed: with which the first environment is made.
        places: how many environments.
        timeout: seconds after which an environment that does not answer is killed.
    """

    def __init__(self, env: EnvironmentConfig, seed: int, places: int, timeout: float):
        self.timing = Timing()
        if env.type != "pusht":
            select_backend()  # once, rather than in each process
        self._places = [Place(number, Worker(env, seed, timeout)) for number in range(places)]

    def __enter__(self) -> "Rollouts":
        return self

    def __exit__(self, *_: object) -> None:
        for place in self._places:
            place.worker.close()

    def table(self) -> EnvTable:
        """Wait until the first environment is made and return its table.

        Raises:
            UserError: it cannot be made.
        """
        table = self._places[0].worker.opened()
        self._places[0].opening = False
        return table

    def try_reset(self, request: Begin) -> None:
        """Begin an episode, to check whether the environment can.

        Raises:
            UserError: it cannot.
        """
        worker = self._places[0].worker
        worker.ask(request)
        answer = worker.answer()
        if isinstance(answer, Refused):
            raise UserError(answer.reason)
        if isinstance(answer, Failed):
            raise UserError(f"the environment cannot begin an episode: {answer.reason}")

    def play(self, requests: Sequence[Begin], actor: Actor, on_end: OnEnd) -> None:
        """Play all episodes; `on_end` is called as each of them ends, in any order.

        Raises:
            UserError: an environment refuses what it is asked for.
        """
        began = time.monotonic()
        pending = deque(requests)
        try:
            while pending or any(place.request for place in self._places):
                for place in self._places:
                    if place.request is None and pending:
                        self._begin(place, pending.popleft())
                self._collect(on_end)
                ready = self._ready(actor)
                if ready:
                    self._act(ready, actor, on_end)
        finally:
            self.timing.wall += time.monotonic() - began

    def _begin(self, place: Place, request: Begin) -> None:
        place.request, place.seen, place.chunk, place.rewards = request, None, 0, []
        place.began = time.monotonic()
        if not place.worker.alive:
            place.worker.start()
            place.opening = True
        if not place.opening:
            place.worker.ask(request)

    def _ready(self, actor: Actor) -> list[Place]:
        """The environments to act for now; empty while it is better to wait for others."""
        playing = [place for place in self._places if place.request is not None]
        ready = [place for place in playing if place.seen is not None]
        busy = [place for place in playing if place.seen is None]
        if not ready:
            return []
        waited = time.monotonic() - min(place.waits_since for place in ready)
        enough = len(ready) >= min(actor.batch, -(-len(playing) // 2))
        if busy and not enough and waited < PATIENCE:
            return []
        return ready

    def _collect(self, on_end: OnEnd) -> None:
        """Read the answers of the environments; wait where there is nothing else to do."""
        busy = [place for place in self._places if place.request is not None and place.seen is None]
        waiting = any(place.seen is not None for place in self._places)
        if busy:
            wait_for([place.worker for place in busy], 0.005 if waiting else None)
        for place in busy:
            answer = place.worker.receive()
            if answer is not None:
                self._take(place, answer, on_end)

    def _take(self, place: Place, answer: Any, on_end: OnEnd) -> None:
        assert place.request is not None
        if isinstance(answer, Refused):
            raise UserError(answer.reason)
        if isinstance(answer, Failed):
            self._fail(place, answer.reason, on_end)
        elif isinstance(answer, EnvTable):
            place.opening = False
            place.worker.ask(place.request)
        elif isinstance(answer, Seen):
            place.table = answer.table
            self._show(place, answer)
        else:
            assert isinstance(answer, Played)
            place.rewards += answer.rewards
            self.timing.steps += len(answer.rewards)
            if answer.seen is not None:
                self._show(place, answer.seen)
            else:
                self._end(place, answer.success, None, on_end, answer)

    def _show(self, place: Place, seen: Seen) -> None:
        place.seen, place.waits_since = seen, time.monotonic()

    def _fail(self, place: Place, reason: str, on_end: OnEnd) -> None:
        place.worker.kill()
        self._end(place, False, reason, on_end, None)

    def _end(
        self, place: Place, success: bool, error: str | None, on_end: OnEnd, played: Played | None
    ) -> None:
        request = place.request
        assert request is not None
        place.request = place.seen = None
        reward = float(sum(place.rewards))
        if not np.isfinite(reward):
            reward, success, played = 0.0, False, None
            error = error or "the environment's rewards are not finite"
        episode = Episode(
            request.index,
            request.seed,
            success,
            len(place.rewards),
            reward,
            error,
            round(time.monotonic() - place.began, 3),
        )
        frame = None if played is None else played.last_frame
        on_end(episode, frame, None if played is None else played.trajectory)

    def _act(self, ready: list[Place], actor: Actor, on_end: OnEnd) -> None:
        observations = []
        for place in ready:
            assert place.request is not None
            assert place.seen is not None
            assert place.table is not None
            observations.append(
                Observation(place.number, place.request.seed, place.chunk, place.seen, place.table)
            )
        began = time.monotonic()
        chunks = actor.act(observations)
        self.timing.calls.append(time.monotonic() - began)
        self.timing.chunks += len(chunks)
        for place, actions in zip(ready, chunks, strict=True):
            place.seen = None
            place.chunk += 1
            if np.isfinite(actions).all():
                place.worker.ask(Play(np.ascontiguousarray(actions, np.float32)))
            else:
                place.worker.kill()
                self._end(place, False, "the policy's actions are not finite", on_end, None)
