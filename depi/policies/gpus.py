"""What is known of a kind of GPU: what was checked there, what failed, and what switches that off.

A verdict is of one kind of GPU with one driver, one version of PyTorch, CUDA, cuDNN and DePi, and of the code
that is checked; with others it is made anew. It is a JSON file in DePi's cache, which can be attached to an
issue as it is. `depi.training.gpu` makes the checks; whatever loads a policy follows what they found.
"""

import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from depi import __version__
from depi.errors import UserError
from depi.files import cache_folder, read_json, write_json
from depi.fingerprint import code, fingerprint
from depi.models.attention import BACKENDS
from depi.policies.choices import attention_backends, choices_of
from depi.policies.families import family_of

logger = logging.getLogger(__name__)

# A group is run in one process: the names of its checks in order, and the seconds that it may take.
GROUPS: dict[str, tuple[tuple[str, ...], float]] = {
    "kernels": ((*(f"attention {kernel}" for kernel in BACKENDS), "fused optimizer", "float8"), 180),
    "compile": (("compile",), 600),
    "graph": (("CUDA graph", "compiled chunk"), 600),
    "whole": (("training steps", "memory", "chunk"), 300),
}
# The modules that make them: what these import is what the checks exercise.
MADE_BY = ("depi.training.gpu.kernels", "depi.training.gpu.networks")
# The flag that switches off what failed, besides the attention kernels, which are one flag.
SWITCHES = {
    "float8": "--policy.float8=false",
    "compile": "--compile=false",
    "CUDA graph": "--policy.cuda_graphs=false",
    "compiled chunk": "--policy.compile_chunks=false",
}
DRIVER = Path("/proc/driver/nvidia/version")
# Where Inductor and Triton keep what they have compiled.
COMPILED = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class Check:
    """One check.

    name: of what was checked.
    status: `skipped` where it could not be done.
    detail: a clause.
    figures: errors, times and sizes, by names that tell their units.
    final: False where another try may end otherwise, as where memory was taken by others.
    """

    name: str
    status: Literal["ok", "fail", "skipped"]
    detail: str
    figures: Mapping[str, float] = field(default_factory=dict)
    final: bool = True


def identity(device: torch.device) -> dict[str, str]:
    """What a verdict is of."""
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "gpu": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "driver": driver_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "depi": __version__,
        "code": code(*MADE_BY),
    }


def driver_version() -> str:
    """Of NVIDIA's driver on Linux."""
    text = DRIVER.read_text() if DRIVER.is_file() else ""
    found = re.search(r"  (\d+(?:\.\d+)+)  ", text)
    return found.group(1) if found else "unknown"


@dataclass(frozen=True)
class Verdict:
    """The checks of a kind of GPU, in the order in which they were made."""

    of: dict[str, str]
    checks: tuple[Check, ...] = ()

    @property
    def path(self) -> Path:
        """Where it is kept."""
        name = re.sub(r"\W+", "_", self.of["gpu"])
        return cache_folder() / "gpus" / f"{name}_{fingerprint(self.of)[:12]}.json"

    @property
    def failed(self) -> dict[str, Check]:
        """What failed, by name."""
        return {check.name: check for check in self.checks if check.status == "fail"}

    def lacks(self, group: str) -> bool:
        """Whether a check of a group has not been made, or must be tried again."""
        made = {check.name for check in self.checks if check.final}
        return not made.issuperset(GROUPS[group][0])

    def with_checks(self, checks: Iterable[Check]) -> "Verdict":
        """The verdict with these checks in place of older ones of the same name, if they came to an end."""
        known = {check.name for check in self.checks if check.final}
        new = {check.name: check for check in checks if check.final or check.name not in known}
        kept = [new.pop(check.name, check) for check in self.checks]
        return Verdict(self.of, (*kept, *new.values()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, with the flags that switch off what failed."""
        checks = [
            {
                **asdict(check),
                "switched_off_by": switch(check.name, self.failed) if check.status == "fail" else "",
            }
            for check in self.checks
        ]
        return {**self.of, "checks": checks}


def switch(name: str, failed: Collection[str]) -> str:
    """The flag that switches off one of the checks that failed, as it is typed; empty where there is none."""
    if name in SWITCHES:
        return SWITCHES[name]
    wrong = [kernel for kernel in BACKENDS if f"attention {kernel}" in failed]
    if name.removeprefix("attention ") not in wrong or name == "attention math":
        return ""
    return f"--policy.attention_backends={','.join(allowed_by(BACKENDS, wrong))}"


def allowed_by(backends: Iterable[str], wrong: Collection[str]) -> list[str]:
    """The attention kernels that are left; `math` stays, whatever is said of it."""
    return [kernel for kernel in backends if kernel not in wrong or kernel == "math"]


def saved_verdict(device: torch.device) -> Verdict:
    """What is kept for a GPU; without checks where nothing is, or what is there cannot be read."""
    verdict = Verdict(identity(device))
    try:
        saved = read_json(verdict.path)["checks"]
        names = Check.__dataclass_fields__
        checks = [Check(**{key: value for key, value in each.items() if key in names}) for each in saved]
    except (UserError, KeyError, TypeError, AttributeError):
        return verdict
    return verdict.with_checks(checks)


def save(verdict: Verdict) -> None:
    """Keep a verdict; where the cache cannot be written, the checks are made again another time."""
    try:
        verdict.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(verdict.path, verdict.to_dict())
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): the GPU will be checked again", verdict.path, error.strerror
        )


def is_checked(device: torch.device) -> bool:
    """Whether there are checks for such devices."""
    return device.type == "cuda" and torch.version.hip is None


def switch_off(policy: Any, verdict: Verdict, used: Collection[str], **flags: str) -> None:
    """Change the configuration of a policy so that nothing is used that failed, and say so.

    Args:
        policy: its configuration.
        verdict: of its GPU.
        used: the checks, besides those of attention, of what is used.
        flags: those that switch off a check's object here, where they are not those of `SWITCHES`.
    """
    backends, failed = attention_backends(policy), verdict.failed
    left = allowed_by(backends, [name.removeprefix("attention ") for name in failed])
    attention = {f"attention {kernel}" for kernel in backends}
    if "efficient" in left:  # which otherwise math takes the place of
        attention -= {"attention math"}
    for name, check in failed.items():
        if name not in attention and name not in used:
            continue
        said = f"{name} fails on {verdict.of['gpu']} ({check.detail})"
        if flag := flags.get(name) or switch(name, failed):
            logger.warning("%s: switched off, as by %s; `depi doctor --gpu` tells more", said, flag)
        else:
            logger.warning("%s, and nothing replaces it: see `depi doctor --gpu`", said)
    if len(left) < len(backends):
        policy.attention_backends = ",".join(left)
    if "float8" in failed:
        policy.float8 = False
    if "compile" in failed:
        policy.compile_model = policy.compile_chunks = False
    if "compiled chunk" in failed:
        policy.compile_chunks = False
    if "CUDA graph" in failed:
        policy.cuda_graphs = False


def follow_verdict(policy: Any, device: torch.device) -> None:
    """Let a policy that is to be used on a GPU, not trained, use nothing that failed there.

    Nothing is checked for it: a robot would wait. Where nothing has been, a line says how to do so.

    Args:
        policy: its configuration, of one of DePi's own networks; it is changed.
        device: where it will act.
    """
    if not is_checked(device):
        return
    verdict, choices, acts = saved_verdict(device), choices_of(policy), family_of(policy).acts
    if any(map(verdict.lacks, ("kernels", "graph") if acts else ("kernels",))):
        _say_unchecked(verdict.of["gpu"])
    used = {"CUDA graph"} if acts and choices.cuda_graphs else set()
    if policy.compile_model or (acts and choices.compile_chunks):
        used |= {"compile", "compiled chunk"}
    switch_off(policy, verdict, used, compile=SWITCHES["compiled chunk"])


@cache
def _say_unchecked(gpu: str) -> None:
    """Once is enough: a loop evaluates many checkpoints."""
    logger.info(
        "nothing has checked yet what %s with this driver and PyTorch computes: `depi doctor --gpu` does so "
        "in about two minutes",
        gpu,
    )


def keep_compiled() -> str:
    """The folder that keeps what is compiled from now on: in DePi's cache, unless the environment says."""
    return os.environ.setdefault(COMPILED, str(cache_folder() / "compiled"))
