"""Environments in separate processes: start them, send requests, detect failures, restart them.

They are started as commands rather than by `multiprocessing`: such a process imports neither PyTorch nor the
caller's main module, and a user of the library needs no `if __name__ == "__main__"`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection, wait
from typing import Any

from depi.errors import UserError
from depi.evaluation.config import EnvironmentConfig
from depi.evaluation.environments import EnvTable
from depi.evaluation.messages import BEAT, Failed, Open, Refused

CLOSE_SECONDS = 2.0
# Importing a simulator on a busy machine may take longer than any of its steps.
OPEN_SECONDS = 300.0


class Worker:
    """One environment's process. At most one request is under way; `receive` gives its answer.

    Args:
        env: as `depi.evaluation.environments.resolve` gives it.
        seed: of the first episode.
        timeout: seconds after which a request without an answer has failed; a step of a chunk that is done
            counts as one.
    """

    def __init__(self, env: EnvironmentConfig, seed: int, timeout: float):
        self._env, self._seed, self._timeout = env, seed, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self.connection: Connection | None = None
        self.start()

    @property
    def alive(self) -> bool:
        """Whether it can take requests."""
        return self.connection is not None

    def start(self) -> None:
        """Start the process and ask it to make the environment; the answer is an EnvTable."""
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        environment.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores
        command = [sys.executable, "-m", "depi.evaluation.worker", str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=2,  # simulators print, and the output of this process may be JSON
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process only
            )
        self.connection = Connection(ours.detach())
        self.ask(Open(self._env, self._seed), max(self._timeout, OPEN_SECONDS))

    def ask(self, request: Any, timeout: float | None = None) -> None:
        """Send a request; `receive` reports a dead process."""
        assert self.connection is not None
        self._patience = timeout or self._timeout
        self._heard = time.monotonic()
        try:
            self.connection.send(request)
        except OSError:
            return

    @property
    def deadline(self) -> float:
        """The time, by `time.monotonic`, at which the present request fails."""
        return self._heard + self._patience

    def receive(self) -> Any:
        """The answer, or a Failed if the process is dead or too slow; None while there is no answer."""
        assert self.connection is not None
        try:
            while self.connection.poll():
                answer = self.connection.recv()
                if answer != BEAT:
                    return answer
                self._heard = time.monotonic()
        except (EOFError, OSError):
            return Failed(self._how_it_died())
        if time.monotonic() > self.deadline:
            return Failed(f"no answer within {self._patience:g} s")
        return None

    def _how_it_died(self) -> str:
        assert self._process is not None
        try:
            status = self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        if status < 0:
            return f"its process was killed by {signal.Signals(-status).name}"
        return f"its process ended with status {status}"

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._forget()

    def close(self) -> None:
        """Wait shortly for the process to end by itself, then kill it."""
        if self.connection is not None:
            self.connection.close()
        if self._process is not None:
            try:
                self._process.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._forget()

    def _forget(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self._process = self.connection = None

    def answer(self) -> Any:
        """Wait for the answer of the request under way."""
        while (answer := self.receive()) is None:
            wait_for([self])
        return answer

    def opened(self) -> EnvTable:
        """Wait until the environment is made and return its table.

        Raises:
            UserError: it cannot be made.
        """
        answer = self.answer()
        if isinstance(answer, Refused):
            raise UserError(answer.reason)
        if isinstance(answer, Failed):
            raise UserError(f"--env.type={self._env.type} cannot be made: {answer.reason}")
        assert isinstance(answer, EnvTable)
        return answer


def wait_for(workers: list[Worker], seconds: float | None = None) -> None:
    """Wait until one of them has an answer, or has failed, or `seconds` are over."""
    left = min((worker.deadline for worker in workers), default=0.0) - time.monotonic()
    timeout = max(0.0, left if seconds is None else min(left, seconds))
    wait([worker.connection for worker in workers if worker.connection is not None], timeout)
