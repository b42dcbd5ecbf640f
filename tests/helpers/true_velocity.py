"""LeRobot's pi0 and pi0.5 with what DePi's sampling knows: see `depi.models.sampling`."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def true_velocity_behind(policy: torch.nn.Module, noise: torch.Tensor, size: int = 6) -> Iterator[None]:
    """Inside, LeRobot's network knows that beyond the numbers of an action there is nothing but noise.

    A policy of DePi's stays as it is. `noise` is what sampling starts from, [B, H, A].
    """
    networks = [module for module in policy.modules() if hasattr(type(module), "denoise_step")]
    for network in networks:
        network.denoise_step = _knowing(network.denoise_step, noise[..., size:])
    try:
        yield
    finally:
        for network in networks:
            del network.denoise_step


def _knowing(predict, behind):
    def denoise_step(*args, **kwargs):
        velocity = predict(*args, **kwargs)
        return torch.cat((velocity[..., : -behind.shape[-1]], behind), dim=-1)

    return denoise_step
