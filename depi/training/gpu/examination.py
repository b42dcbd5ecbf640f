"""The checks of a GPU, each group in a process of its own, and what a training does about what they found."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from depi.policies.choices import choices_of
from depi.policies.families import family_of
from depi.policies.gpus import GROUPS, Check, Verdict, is_checked, save, saved_verdict, switch_off
from depi.training.config import TrainConfig
from depi.training.gpu.child import READY

logger = logging.getLogger(__name__)

CHILD = (sys.executable, "-m", "depi.training.gpu.child")


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


def examine(
    device: torch.device,
    groups: Iterable[str],
    *,
    again: bool = False,
    tell: Callable[[Check, Verdict], None] = lambda check, verdict: None,
) -> Verdict:
    """The verdict with the checks of these groups, which is kept.

    Args:
        device: the GPU.
        groups: names in `GROUPS`.
        again: make checks that are known, too.
        tell: is told each check that was made, with the verdict so far.
    """
    verdict = saved_verdict(device)
    for group in groups:
        if again or verdict.lacks(group):
            checks = list(run_group(group, device))
            verdict = verdict.with_checks(checks)
            for check in checks:
                tell(check, verdict)
            save(verdict)
    return verdict


def first_contact(config: TrainConfig, accelerator: Accelerator) -> None:
    """Check a kind of GPU before the first training on it, and switch off in `config` what is wrong there.

    One process of a machine does it, the others read what it found. Nothing happens on other devices, with
    --gpu_check=false, and for policies that are not DePi's own.
    """
    policy: Any = config.policy
    device = accelerator.device
    if not (config.gpu_check and is_checked(device)):
        return
    if not family_of(policy).own or policy.dtype != "bfloat16":
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
    leave_out(config, known)


def leave_out(config: TrainConfig, verdict: Verdict) -> None:
    """Change `config` so that nothing is used that failed, and say so."""
    policy: Any = config.policy
    choices = choices_of(policy)
    optional = {
        "compile": config.compile or policy.compile_model,
        "float8": choices.float8,
        "CUDA graph": choices.cuda_graphs,
        "compiled chunk": choices.compile_chunks,
    }
    names = {name for names, _ in GROUPS.values() for name in names if not name.startswith("attention ")}
    switch_off(policy, verdict, {name for name in names if optional.get(name, True)})
    if "compile" in verdict.failed:
        config.compile = False
