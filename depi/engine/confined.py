"""Run functions over strangers' files in processes that may use little memory and processor time.

A small file can unfold to any size, keep a reader busy for ever, or crash it. Here that ends a helper
process, with a reason, and not the command. The processes are new programs and no forks, because a fork
copies locks that other threads hold. They do not import the caller's script as those of `multiprocessing` do,
so that a script needs no `if __name__ == "__main__"`. There is at most one per CPU, for all calls; after some
seconds without work it ends.
"""

import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import Any

from depi.errors import DatasetError, UserError, machine_error

SECONDS = 30.0
MEGABYTES = 1_000
MAX_PROCESSES = 16
"""Together they may use as many times the memory of one."""
_IDLE_SECONDS = 10.0
# A process that holds this much more than at its start after its work gives it back by ending.
_KEPT_BYTES = 200_000_000
# Arrow's own allocator reserves 1 GB at once, which counts as used.
_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def confined[Result](
    function: Callable[..., Result], *args: Any, seconds: float = SECONDS, megabytes: float = MEGABYTES
) -> Result:
    """`function(*args)`, run in a process of its own; threads may call this at the same time.

    Args:
        function: it can be imported by name; it, its arguments and its result can be pickled.
        args: of the function.
        seconds: of processor time.
        megabytes: of memory beyond that of the process before.

    Raises:
        DatasetError: the limits were exceeded, the process crashed, or the function raised what is neither a
            DatasetError nor a UserError.
        UserError: the process was killed by the system or a user.
        Exception: a DatasetError or UserError of the function, as it is.
    """
    error, result = _pool().call((function, args, seconds, megabytes))
    if error is not None:
        raise error
    return result


type _Call = tuple[Callable[..., Any], tuple[Any, ...], float, float]
type _Outcome = tuple[Exception | None, Any]


@dataclass(frozen=True)
class _Helper:
    """A process that waits for calls."""

    process: "subprocess.Popen[bytes]"
    connection: Connection

    def call(self, call: _Call) -> _Outcome:
        self.connection.send(call)
        return self.connection.recv()

    def end(self) -> int:
        """Close the connection, upon which it ends by itself; its exit status."""
        self.connection.close()
        return self.process.wait()


class _Pool:
    """The processes of this process."""

    def __init__(self, size: int) -> None:
        self.owner = os.getpid()
        self._free = threading.Semaphore(size)
        self._idle: list[_Helper] = []

    def call(self, call: _Call) -> _Outcome:
        with self._free:
            while True:
                try:
                    helper, used_before = self._idle.pop(), True
                except IndexError:
                    helper, used_before = _start(), False
                try:
                    outcome = helper.call(call)
                except (EOFError, ConnectionError):
                    status = helper.end()
                    if status == 0 and used_before:  # it had waited for too long
                        continue
                    return _why(status, call), None
                except BaseException:
                    helper.process.kill()
                    helper.end()
                    raise
                self._idle.append(helper)
                return outcome


_pools: list[_Pool] = []
_making = threading.Lock()


def _pool() -> _Pool:
    with _making:
        # A forked process must not use the connections of its parent.
        if not _pools or _pools[0].owner != os.getpid():
            _pools[:] = [_Pool(min(os.cpu_count() or 1, MAX_PROCESSES))]
        return _pools[0]


def _start() -> _Helper:
    here, there = socketpair()
    with there:
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from depi.engine.confined import serve; "
            f"serve({there.fileno()})"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
            env=os.environ | _ENVIRONMENT,
        )
    return _Helper(process, Connection(here.detach()))


def _why(status: int, call: _Call) -> Exception:
    """What to raise where the process ended in the middle of its work."""
    _, _, seconds, _ = call
    if status == -signal.SIGXCPU:
        return DatasetError(f"reading it takes more than {seconds:g} s of processor time")
    if status in (-signal.SIGKILL, -signal.SIGTERM):
        return UserError(
            "the process that read it was killed, by a user or by the system for lack of memory: run the "
            "command again"
        )
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return DatasetError(f"unreadable: reading it crashes the reader ({how})")


class _WithoutPandas(MetaPathFinder):
    """Keeps pyarrow from loading pandas, which takes longer than all the rest and is not needed here."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(name=fullname)


def serve(connection_number: int) -> None:
    """The program of a helper process: answer calls until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides
    sys.meta_path.insert(0, _WithoutPandas())
    connection = Connection(connection_number)
    at_start = _private_bytes()
    try:
        while connection.poll(_IDLE_SECONDS):
            function, args, seconds, megabytes = connection.recv()
            _limit(seconds, megabytes)
            try:
                connection.send(_answer(function, args))
            except MemoryError:
                error = DatasetError(f"reading it takes more than {megabytes:g} MB of memory")
                connection.send((error, None))
            if _private_bytes() - at_start > _KEPT_BYTES:
                return
    except (EOFError, ConnectionError):
        return


def _answer(function: Callable[..., Any], args: tuple[Any, ...]) -> _Outcome:
    try:
        return None, function(*args)
    except (DatasetError, UserError) as error:
        return error, None
    except MemoryError:
        raise
    except Exception as error:  # nobody foresaw it, and only this dataset is lost by it
        if fault := machine_error(error):
            return fault, None
        return DatasetError(f"unreadable: {type(error).__name__}: {ascii(str(error))[1:-1][:200]}"), None


def _limit(seconds: float, megabytes: float) -> None:
    """Limit this process's further processor time and memory (Linux counts what it may write to)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    processor = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    _lower(resource.RLIMIT_CPU, processor)
    _lower(resource.RLIMIT_DATA, _private_bytes() + int(megabytes * 1e6))
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, soft: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _private_bytes() -> int:
    """The memory that this process may write to and shares with no other; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0
