"""How a check of a GPU is made, and how numbers are compared and timed."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from depi.errors import innermost_line
from depi.policies.gpus import Check

# Of vectors. bfloat16 rounds by 2^-9; a processor's own attention in it is off by up to 0.007 at pi0's sizes.
LARGEST_ERROR = 0.02

Figures = dict[str, float]


class NotHereError(Exception):
    """A check is not for this device; the message says why."""


class WrongError(Exception):
    """A check found something wrong, which the message says.

    Attributes:
        figures: what was measured until then.
    """

    def __init__(self, problem: str, figures: Figures):
        super().__init__(problem)
        self.figures = figures


def check(name: str, measure: Callable[[], tuple[str, Figures]]) -> Check:
    """Run a check: `measure` returns a clause and figures, or raises what is wrong, whatever it is."""
    try:
        detail, figures = measure()
    except torch.OutOfMemoryError:
        return Check(name, "skipped", "the GPU has too little free memory for it", final=False)
    except NotHereError as reason:
        return Check(name, "skipped", str(reason))
    except WrongError as problem:
        return Check(name, "fail", str(problem), finite(problem.figures))
    except Exception as error:  # any exception of a broken kernel or compiler is the finding
        return Check(name, "fail", innermost_line(error))
    return Check(name, "ok", detail, finite(figures))


def checks_of(
    measures: Mapping[str, Callable[[], tuple[str, Figures]]], wanted: Collection[str] | None
) -> Iterator[Check]:
    """The checks by name, of these the wanted ones, or all."""
    for name, measure in measures.items():
        if wanted is None or name in wanted:
            yield check(name, measure)


def finite(figures: Figures) -> Figures:
    """Without what JSON has no number for; the clause says what it is of."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference in norms of what is expected; infinite where a number is not finite."""
    there = found.detach().to("cpu", torch.float64)
    right = expected.detach().to("cpu", torch.float64)
    if not there.isfinite().all():
        return float("inf")
    return float((there - right).norm() / right.norm())


def judge(errors: Mapping[str, float], figures: Figures, largest: float = LARGEST_ERROR) -> str:
    """A clause for relative errors by what they are of.

    Raises:
        WrongError: one is too large.
    """
    name, worst = max(errors.items(), key=lambda item: item[1])
    if not worst <= largest:
        said = "not finite" if worst == float("inf") else f"off by {worst:.2g}"
        raise WrongError(f"the {name} is {said}", figures)
    return f"right to {worst:.1g}"


def milliseconds(call: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """Mean time of a call, after a first one."""
    call()
    wait_for(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    wait_for(device)
    return 1000 * (time.perf_counter() - started) / times


def wait_for(device: torch.device) -> None:
    """Wait until a GPU is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
