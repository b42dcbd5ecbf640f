"""Optimizer and schedule: LeRobot's presets, the former computed in one pass over the parameters."""

from dataclasses import asdict
from typing import Any

import torch
from lerobot.optim import AdamConfig, AdamWConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from depi.errors import UserError
from depi.policies.factory import AnyPolicy
from depi.training.sharding import part_of

# Where PyTorch has Adam and AdamW as one kernel.
FUSED_DEVICES = ("cuda", "cpu", "mps", "xpu")
# Of these, where that kernel divides gradients, and leaves out a bad step; that of MPS takes a divisor and
# what tells a bad step, and ignores both.
HEEDING_DEVICES = ("cuda", "cpu", "xpu")


class _OfParts:
    """Lets the kernel of an optimizer of sharded parameters have this process's parts of them.

    Their state stays sharded. What the kernel computes is elementwise, and through DTensors it takes 20 ms of
    the host's time more for pi0's.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex: bool = super()._init_group(group, *lists)  # type: ignore[misc]
        for tensors in lists:
            tensors[:] = [part_of(tensor) for tensor in tensors]
        return has_complex


class Adam(_OfParts, torch.optim.Adam):
    """PyTorch's."""


class AdamW(_OfParts, torch.optim.AdamW):
    """PyTorch's."""


OPTIMIZERS: dict[type, type[torch.optim.Adam]] = {AdamConfig: Adam, AdamWConfig: AdamW}


def make_optimizer(policy: AnyPolicy) -> torch.optim.Adam:
    """Adam or AdamW over the trainable parameters of `policy`, with the values of its configuration.

    The mathematics are those of LeRobot's preset. Parameters must be float32: a step of usual size is lost in
    the rounding of bfloat16, so frozen parts may be bfloat16 and trained ones may not.

    Raises:
        UserError: the preset is another optimizer.
    """
    groups = trained_groups(policy)
    parameters = [parameter for group in groups for parameter in group["params"]]
    rounded = {parameter.dtype for parameter in parameters} - {torch.float32}
    if rounded:
        raise ValueError(f"trainable parameters must be float32, not {rounded}")
    preset = policy.config.get_optimizer_preset()
    if type(preset) not in OPTIMIZERS:
        raise UserError(
            f"policies of type {policy.config.type} are trained with {preset.type}, which DePi has not: "
            "use lerobot-train"
        )
    settings = {name: value for name, value in asdict(preset).items() if name != "grad_clip_norm"}
    fused = all(parameter.device.type in FUSED_DEVICES for parameter in parameters)
    return OPTIMIZERS[type(preset)](groups, fused=fused, **settings)


def clipped_step(optimizer: torch.optim.Adam, norm: Tensor, limit: float, bad: Tensor) -> None:
    """Take a step with clipped gradients, or none at all; on a GPU of NVIDIA's nothing waits for the device.

    The fused kernel divides each gradient where it reads it, which saves a pass over all of them.

    Args:
        optimizer: of `make_optimizer`; its parameters have gradients.
        norm: of all gradients together, float32 [].
        limit: above which the norm is scaled down to it, as `torch.nn.utils.clip_grad_norm_` does; 0 is none.
        bad: 1.0 where the step is to be left out, else 0.0, float32 [].
    """
    if norm.device.type in HEEDING_DEVICES:
        optimizer.grad_scale = ((norm + 1e-6) / limit).clamp(min=1.0) if limit else None
        optimizer.found_inf = bad
    elif bad.item():
        return
    elif limit:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)
    optimizer.step()


def trained_groups(policy: AnyPolicy) -> list[dict[str, Any]]:
    """The policy's parameter groups, without what is frozen, and without groups that are then empty."""
    given = list(policy.get_optim_params())
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    trained = [
        {**group, "params": [parameter for parameter in group["params"] if parameter.requires_grad]}
        for group in groups
    ]
    return [group for group in trained if group["params"]]


def make_scheduler(policy: AnyPolicy, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """The schedule of the policy's preset; without one the learning rates stay as they are."""
    preset = policy.config.get_scheduler_preset()
    return LambdaLR(optimizer, _constant) if preset is None else preset.build(optimizer, steps)


def _constant(step: int) -> float:
    return 1.0
