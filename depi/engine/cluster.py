"""The pool's `run`, on a Ray cluster."""

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from depi.addresses import credentials
from depi.engine.pool import IN_FLIGHT_PER_WORKER
from depi.errors import UserError

logger = logging.getLogger(__name__)

# How often Ray restarts the items of a lost node on another one.
RESTARTS = 3
CONNECT_SECONDS = 10.0
# The caller's values of these variables are used, not those of the shell that started the node.
FORWARDED = (
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "DEPI_CACHE",
    "HF_HUB_DISABLE_XET",
    "NO_PROXY",
    "no_proxy",
)


def run[Item, Result](
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int = 0,
    address: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Item, Result | Exception]]:
    """Yield `(item, result)` for every item in the order of completion; see `depi.engine.pool.run`.

    The nodes need DePi installed, and a file system in common for whatever `function` reads and writes.
    They get the variables FORWARDED, which name the Hub and its cache, from this process, except those that
    hold a password; each needs a token of its own (`hf auth login`).

    Args:
        workers: items at a time, each on one CPU; 0 for as many as the cluster has CPUs.
        address: of the cluster; by default that of RAY_ADDRESS, else a cluster of this machine alone.

    Raises:
        UserError: Ray is not installed, or no cluster answers at the address.
    """
    # Ray starts everything that it is given while there are CPUs: items for later are held back here.
    room = workers or IN_FLIGHT_PER_WORKER * count_cpus(address)
    return _run(_connect(address), function, iter(items), room, progress)


def count_cpus(address: str | None = None) -> int:
    """CPUs of the cluster, at least 1: the number of items at a time where `workers` is 0.

    Raises:
        UserError: Ray is not installed, or no cluster answers at the address.
    """
    return max(1, int(_connect(address).cluster_resources().get("CPU", 1)))


def _connect(address: str | None) -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--engine=ray needs the package ray: install depi[ray]") from None
    if not ray.is_initialized():
        address = address or os.environ.get("RAY_ADDRESS")
        try:
            if address and address.count(":") == 1:
                # Without this, Ray waits for minutes where no cluster listens.
                host, port = address.split(":")
                socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
            ray.init(address=address, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"no Ray cluster answers at {address}: {error}") from None
    return ray


def _run[Item, Result](
    ray: Any,
    function: Callable[[Item], Result],
    items: Iterator[Item],
    room: int,
    progress: Callable[[int], None] | None,
) -> Iterator[tuple[Item, Result | Exception]]:
    environment = _forwarded()

    @ray.remote(num_cpus=1, max_retries=RESTARTS, runtime_env={"env_vars": environment})
    def call(item: Item) -> Result:
        return function(item)

    in_flight: dict[Any, Item] = {}
    finished = 0
    try:
        while True:
            for item in islice(items, room - len(in_flight)):
                in_flight[call.remote(item)] = item
            if not in_flight:
                return
            done, _ = ray.wait(list(in_flight), num_returns=1)
            item = in_flight.pop(done[0])
            finished += 1
            if progress is not None:
                progress(finished)
            yield item, _outcome(ray, done[0])
    finally:
        for reference in in_flight:
            ray.cancel(reference)


def _forwarded() -> dict[str, str]:
    """The variables for the nodes; none with a password, because Ray writes them into its logs."""
    found = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    secret = [name for name, value in found.items() if credentials(value)]
    for name in secret:
        logger.warning("%s holds a password and is not sent to the nodes: set it on each of them", name)
    return {name: value for name, value in found.items() if name not in secret}


def _outcome(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except ray.exceptions.RayError as error:
        return error
