"""What the checks of a GPU found, kept for its kind, and what a run does about it.

A verdict is of one kind of GPU with one driver, one version of PyTorch, CUDA, cuDNN and DePi, and of the code
that is checked; with others it is made anew. It is a JSON file in DePi's cache, which can be attached to an
issue as it is.
"""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from depi import __version__
from depi.errors import UserError
from depi.files import cache_folder, read_json, write_json
from depi.fingerprint import code, fingerprint
from depi.models.attention import BACKENDS
from depi.policies.choices import attention_backends
from depi.policies.families import family_of
from depi.training.config import TrainConfig
from depi.training.gpu.checking import Check
from depi.training.gpu.child import READY

logger = logging.getLogger(__name__)

# A group is run in one process: the names of its checks in order, and the seconds that it may take.
GROUPS: dict[str, tuple[tuple[str, ...], float]] = {
    "kernels": ((*(f"attention {kernel}" for kernel in BACKENDS), "fused optimizer"), 180),
    "compile": (("compile",), 600),
    "graph": (("CUDA graph",), 180),
    "whole": (("training steps", "memory", "chunk"), 300),
}
# Which flag switches off what failed, besides the attention kernels, which are one flag.
SWITCHES = {"compile": ("compile", "false"), "CUDA graph": ("policy.cuda_graphs", "false")}
CHILD = (sys.executable, "-m", "depi.training.gpu.child")
DRIVER = Path("/proc/driver/nvidia/version")


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
        "code": code("depi.models.attention", "depi.models.capture", "depi.training.gpu.kernels"),
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
        flag, value = SWITCHES[name]
        return f"--{flag}={value}"
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


def run_group(group: str, device: torch.device, command: Sequence[str] | None = None) -> Iterator[Check]:
    """Make the checks of a group in a process of its own.

    What ends or stops the process has failed, and another process makes those that would have come after it.
    Where not even the device answers, they are skipped.
    """
    names, seconds = GROUPS[group]
    left = list(names)
    while left:
        lines, reason = _lines([*(command or CHILD), group, str(device), *left], seconds)
        if not lines:
            said = f"the checks did not begin: {reason}"
            yield from (Check(name, "skipped", said, final=False) for name in left)
            return
        found = {content["name"]: Check(**content) for content in lines[1:]}
        while left and left[0] in found:
            yield found[left.pop(0)]
        if left:
            yield Check(left.pop(0), "fail", reason)


def _lines(command: Sequence[str], seconds: float) -> tuple[list[Any], str]:
    """What a child printed from `READY` on, and why it went no further."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        said, wrong = done.stdout, done.stderr.decode(errors="replace").strip().splitlines()
        reason = f"the process ended with status {done.returncode}"
        reason = f"{reason}: {wrong[-1]}" if wrong else reason
    except subprocess.TimeoutExpired as error:
        said, reason = error.stdout or b"", f"no answer within {seconds:g} s"
    contents = []
    for line in said.decode(errors="replace").splitlines():
        try:
            contents.append(json.loads(line))
        except ValueError:  # libraries print what they like
            continue
    if READY not in contents:
        return [], reason
    checks = [each for each in contents[contents.index(READY) + 1 :] if isinstance(each, dict)]
    return [READY, *checks], reason


def examine(device: torch.device, groups: Iterable[str]) -> Verdict:
    """The verdict with the checks of these groups, made where they are not known."""
    verdict = saved_verdict(device)
    for group in groups:
        if verdict.lacks(group):
            verdict = verdict.with_checks(run_group(group, device))
            save(verdict)
    return verdict


def first_contact(config: TrainConfig, accelerator: Accelerator) -> None:
    """Check a kind of GPU before the first training on it, and switch off in `config` what is wrong there.

    One process of a machine does it, the others read what it found. Nothing happens on other devices, with
    --gpu_check=false, and for policies that are not DePi's own.
    """
    policy: Any = config.policy
    device = accelerator.device
    checked = config.gpu_check and device.type == "cuda" and torch.version.hip is None
    if not checked or not family_of(policy).own or policy.dtype != "bfloat16":
        return
    groups = ["kernels", *(["compile"] if config.compile or policy.compile_model else [])]
    with accelerator.local_main_process_first():
        known = saved_verdict(device)
        if accelerator.is_local_main_process and any(map(known.lacks, groups)):
            logger.info(
                "first training on %s with this driver and PyTorch: checking it, which may take a minute "
                "(--gpu_check=false leaves it out)",
                known.of["gpu"],
            )
            known = examine(device, groups)
    switch_off(config, known)


def switch_off(config: TrainConfig, verdict: Verdict) -> None:
    """Change `config` so that nothing is used that failed, and say so."""
    policy: Any = config.policy
    backends, failed = attention_backends(policy), verdict.failed
    left = allowed_by(backends, [name.removeprefix("attention ") for name in failed])
    used = {
        **{f"attention {kernel}": kernel in backends for kernel in BACKENDS},
        "attention math": "efficient" not in left,  # which otherwise takes what is left
        "compile": config.compile or policy.compile_model,
    }
    for name, check in failed.items():
        said = f"{name} fails on {verdict.of['gpu']} ({check.detail})"
        if not used.get(name, True):
            continue
        if flag := switch(name, failed):
            logger.warning("%s: switched off, as by %s; `depi doctor --gpu` tells more", said, flag)
        else:
            logger.warning("%s, and nothing replaces it: see `depi doctor --gpu` before you train", said)
    if len(left) < len(backends):
        policy.attention_backends = ",".join(left)
    if "compile" in failed:
        config.compile = policy.compile_model = False
    if "CUDA graph" in failed:
        policy.cuda_graphs = False
