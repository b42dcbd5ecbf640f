"""Sharding with PyTorch's FSDP2: each process holds a part of weights, gradients and optimizer state.

Parameters become float32 DTensors, whose parts are gathered where a layer computes: of a policy that computes
in bfloat16 rounded to it, which halves what is sent. What is gathered so for the forward pass is kept for the
backward pass, in place of the copies that autocast would keep; where layers are computed again, for lack of
memory, it is gathered again. Gradients are added up in float32, or in what is asked for.

Checkpoints hold whole tensors, and know nothing of how they were sharded.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from depi.errors import UserError
from depi.policies.base import OwnPolicy

# Sending many small layers one by one costs more time of the host than their first one waits for the others.
GATHERED = 200_000_000


def shard(
    policy: OwnPolicy, accelerator: Accelerator, sharding: str, reduce_dtype: torch.dtype = torch.float32
) -> None:
    """Shard the network of `policy` in place.

    Args:
        policy: with the same weights in every process, on the accelerator's device.
        accelerator: of this process.
        sharding: `full`, over all processes; or `hybrid`, over those of each machine, with a replica on each.
        reduce_dtype: in which gradients are added up over the processes.

    Raises:
        UserError: machines have different numbers of processes.
    """
    mesh = _mesh(accelerator, sharding)
    model = policy.model
    precise = MixedPrecisionPolicy(reduce_dtype=reduce_dtype)
    mixed, kept = precise, False
    if policy.config.dtype == "bfloat16":
        # Rotary tables stay in float32; what else is to be rounded autocast rounds, as without sharding.
        mixed = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype, cast_forward_inputs=False)
        kept = not any(stack.recompute for stack in model.stacks())
    # Of layers that are computed again each comes alone: PyTorch would wait for the others of its group.
    groups = _together(model.blocks()) if kept else [[block] for block in model.blocks()]
    for group in ([model.token_embedding], *groups):
        fully_shard(group, mesh=mesh, mp_policy=mixed, reshard_after_forward=not kept)
        for block in group[1:]:
            block.register_forward_pre_hook(_as_views)
    fully_shard(model, mesh=mesh, mp_policy=precise)


def _together(blocks: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """Layers that follow each other in one stack, as many as have GATHERED parameters or just more."""
    groups: list[list[nn.Module]] = []
    for _, stack in groupby(blocks, type):
        size = GATHERED
        for block in stack:
            if size >= GATHERED:
                groups.append([])
                size = 0
            groups[-1].append(block)
            size += sum(parameter.numel() for parameter in block.parameters())
    return groups


@torch.compiler.disable
def _as_views(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Inputs as views, as FSDP gives them to the first layer of a group: so one compiled code takes both."""
    return tree_map_only(torch.Tensor, lambda x: x.view_as(x) if x.requires_grad else x, inputs)


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


def reshard(model: nn.Module) -> None:
    """Drop what a sharded network has gathered without a backward pass, before its weights change."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def part_of(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor; others are returned unchanged."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def whole_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of all tensors together, a scalar tensor, the same in every process; sharded ones are whole.

    PyTorch's `get_total_norm` of DTensors gives the same, and takes 30 ms of the host's time for pi0's.
    """
    norm = torch.nn.utils.get_total_norm([part_of(tensor) for tensor in tensors])
    if isinstance(tensors[0], DTensor):
        norm = norm.square()
        dist.all_reduce(norm, group=tensors[0].device_mesh.get_group("shard"))
        norm = norm.sqrt()
    return norm


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
