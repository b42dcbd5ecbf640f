"""Sharding with PyTorch's FSDP2: each process holds a part of weights, gradients and optimizer state.

Parameters become DTensors whose parts are gathered layer by layer, in float32, where a layer computes; so the
numbers are those of DDP. Checkpoints hold whole tensors, and know nothing of how they were sharded.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from depi.errors import UserError
from depi.policies.factory import AnyPolicy


def shard(policy: AnyPolicy, accelerator: Accelerator, sharding: str) -> None:
    """Shard the network of `policy` in place.

    Args:
        policy: with the same weights in every process, on the accelerator's device.
        accelerator: of this process.
        sharding: `full`, over all processes; or `hybrid`, over those of each machine, with a replica on each.

    Raises:
        UserError: machines have different numbers of processes.
    """
    mesh = _mesh(accelerator, sharding)
    model = policy.model
    for part in (*model.blocks(), model.token_embedding):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _mesh(accelerator: Accelerator, sharding: str) -> DeviceMesh:
    processes, device = accelerator.num_processes, accelerator.device.type
    if sharding == "full":
        return init_device_mesh(device, (processes,), mesh_dim_names=("shard",))
    local = int(accelerator.gather(torch.tensor([accelerator.local_process_index], device=device)).max()) + 1
    if processes % local:
        raise UserError(
            f"--sharding=hybrid needs as many processes on each machine, not {processes} by {local}"
        )
    return init_device_mesh(device, (processes // local, local), mesh_dim_names=("replicate", "shard"))


def synchronize_gradients(model: torch.nn.Module, wanted: bool) -> None:
    """Whether the next backward pass of a sharded network adds gradients up over the processes."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def distribute(
    state: dict[int, dict[str, Any]], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Any]]:
    """The `state` of an optimizer's state dict, with each tensor sharded as its parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        number: {name: shard_like(value, parameters[number]) for name, value in values.items()}
        for number, values in state.items()
    }


def shard_like(value: Any, parameter: torch.Tensor) -> Any:
    """Shard a whole tensor as `parameter` is sharded; values of other shapes are returned unchanged."""
    if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
        return value
    value = value.to(parameter.device)
    # Every process has read the whole tensor: nothing needs to be sent.
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
