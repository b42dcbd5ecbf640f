"""Which flags make a training run fit a GPU's memory."""

import contextlib
import copy
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs.default import PeftConfig

from depi.errors import UserError
from depi.policies.families import family_of
from depi.training.config import TrainConfig
from depi.training.estimate import Estimate, estimate_run, model_to_train

logger = logging.getLogger(__name__)

ASKED = "as asked"
RECOMPUTE = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Plan:
    """A way to train: what is trained, the flags that differ from what was asked, and what it needs."""

    trained: str
    flags: Mapping[str, Any]
    estimate: Estimate

    def line(self) -> str:
        """The flags as they are typed."""
        texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in self.flags.items()}
        return " ".join(f"--{name}={text}" for name, text in texts.items())


def plans(
    config: TrainConfig, *, images: float = 3, processes: int = 1, local: int | None = None
) -> Iterator[Plan]:
    """Ways to train on GPUs, the one that was asked for first.

    All others compute in bfloat16. What is trained changes last: first smaller micro-batches with as many
    samples per step and recomputed layers, the fastest of these first; then sharding over the processes; then
    the action expert alone; then LoRA.

    Args:
        config: with its policy, whose network is DePi's own.
        images, processes, local: see `estimate_run`.
    """
    device: dict[str, Any] = {"images": images, "processes": processes, "local": local}
    yield Plan(ASKED, {}, estimate_run(config, model_to_train(config.policy, config.peft), **device))
    for trained, flags in _variants(config, processes):
        changed = _with_flags(config, flags)
        model = model_to_train(changed.policy, changed.peft)
        for steps in _steps(config):
            estimate = estimate_run(_with_flags(changed, steps), model, **device)
            yield Plan(trained, {**flags, **steps}, estimate)


def _variants(config: TrainConfig, processes: int) -> list[tuple[str, dict[str, Any]]]:
    """What is trained, and flags that change this or how it is sharded; all of them in bfloat16."""
    policy: Any = config.policy
    precision = {} if policy.dtype == "bfloat16" else {"policy.dtype": "bfloat16"}
    ways: list[tuple[str, dict[str, Any]]] = [(ASKED, precision)]
    if config.peft is not None:
        return ways
    if processes > 1 and config.sharding == "none":
        ways.append((ASKED, {**precision, "sharding": "full"}))
    if family_of(policy).acts and not policy.train_expert_only:
        ways.append(("the action expert", {**precision, "policy.train_expert_only": True}))
    if family_of(policy).acts and policy.pretrained_path is not None:
        without: dict[str, Any] = {} if config.sharding == "none" else {"sharding": "none"}
        without |= {} if config.ema.decay is None else {"ema.decay": None}
        ways.append(("adapters (LoRA)", {**precision, **without, "peft.r": 16}))
    return ways


def _with_flags(config: TrainConfig, flags: Mapping[str, Any]) -> TrainConfig:
    changed = copy.deepcopy(config)
    for name, value in flags.items():
        section, _, field = name.rpartition(".")
        if section == "peft" and changed.peft is None:
            changed.peft = PeftConfig()
        setattr(getattr(changed, section) if section else changed, field, value)
    return changed


def _steps(config: TrainConfig) -> list[dict[str, Any]]:
    """Flags for micro-batches that make up the same step, and for recomputed layers; the fast first."""
    sizes = [size for size in range(1, config.batch_size + 1) if config.batch_size % size == 0]
    shares = {config.recompute, *(share for share in RECOMPUTE if share > config.recompute)}
    steps: list[dict[str, Any]] = []
    for size, share in sorted(itertools.product(sizes, shares), key=lambda pair: (_seconds(*pair), -pair[0])):
        flags: dict[str, Any] = {}
        if size != config.batch_size:
            parts = config.gradient_accumulation_steps * config.batch_size // size
            flags |= {"batch_size": size, "gradient_accumulation_steps": parts}
        if share != config.recompute:
            flags["recompute"] = share
        steps.append(flags)
    return steps


def _seconds(batch_size: int, recompute: float) -> float:
    """Time per sample, relative to a large micro-batch without recomputing.

    The forward pass is a third of a step. Casting the weights and adding up gradients takes, once per
    micro-batch, about half the time of a sample with three cameras on an H200: an account, not measured.
    """
    return (1 + recompute / 3) * (1 + 0.5 / batch_size)


def first_that_fits(ways: Iterator[Plan], memory: float) -> Plan | None:
    """The first plan whose estimate is within `memory` bytes."""
    return next((plan for plan in ways if plan.estimate.total <= memory), None)


def warn_if_too_large(
    config: TrainConfig, device: torch.device, *, images: float, processes: int, local: int
) -> None:
    """Say, before anything is allocated, that a run will probably not fit the GPU, and what would."""
    if device.type != "cuda" or not family_of(config.policy).own:
        return
    ways = plans(config, images=images, processes=processes, local=local)
    asked = next(ways)
    memory = torch.cuda.mem_get_info(device)[1]
    if asked.estimate.total > memory:
        logger.warning(
            "%s: more than the %.1f GB of %s; %s",
            asked.estimate.line(),
            memory / 1e9,
            torch.cuda.get_device_name(device),
            remedy(first_that_fits(ways, memory)),
        )


def remedy(plan: Plan | None) -> str:
    """What to do where memory is short, as a clause."""
    if plan is None:
        return "no flags make it fit: `depi estimate` says what fits which card"
    return f"this fits ({plan.estimate.total / 1e9:.1f} GB): {plan.line()}"


@contextlib.contextmanager
def full_memory_named(config: TrainConfig, *, images: float, processes: int, local: int) -> Iterator[None]:
    """Turn the body's lack of GPU memory into a UserError that names flags which need less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        memory = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 0
        found = None
        if family_of(config.policy).own:
            ways = plans(config, images=images, processes=processes, local=local)
            # What was asked did not fit, whatever the estimate says.
            asked = next(ways).estimate.total
            found = first_that_fits(ways, min(memory, 0.95 * asked))
        raise UserError(
            f"the GPU's memory is full ({str(error).partition('.')[0]}); {remedy(found)}"
        ) from None
