"""The optimizer: LeRobot's preset, computed in one pass over the parameters."""

import torch

from depi.policies.factory import AnyPolicy

# Where PyTorch has AdamW as one kernel.
FUSED_DEVICES = ("cuda", "cpu", "mps", "xpu")


def make_optimizer(policy: AnyPolicy) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `policy`, with the values of its configuration.

    The mathematics are those of LeRobot's preset. Parameters must be float32: a step of usual size is lost in
    the rounding of bfloat16, so frozen parts may be bfloat16 and trained ones may not.
    """
    parameters = policy.get_optim_params()
    rounded = {parameter.dtype for parameter in parameters} - {torch.float32}
    if rounded:
        raise ValueError(f"trainable parameters must be float32, not {rounded}")
    preset = policy.config.get_optimizer_preset()
    return torch.optim.AdamW(
        parameters,
        lr=preset.lr,
        betas=preset.betas,
        eps=preset.eps,
        weight_decay=preset.weight_decay,
        fused=all(parameter.device.type in FUSED_DEVICES for parameter in parameters),
    )
