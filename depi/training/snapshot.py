"""The state of a run between two steps, in host memory that training does not touch."""

import copy
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds of one step.

    Tensors are whole and on the CPU, but for frozen ones, which may be the policy's own.
    """

    step: int
    global_batch: int
    # The policy's state dict, and the same with the moving average in place of what is trained.
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    report: dict[str, Any]


class HostMemory:
    """Buffers that receive copies of a run's tensors, and are used again for the next ones.

    On CUDA they are page-locked and the copies are queued behind the steps taken so far, so that neither the
    host waits for them nor a later step can change what they receive.
    """

    def __init__(self, device: torch.device, main_process: bool) -> None:
        self._cuda = self._pin = device.type == "cuda"
        self._main_process = main_process
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy(self, state: Any, name: str, shared: Collection[str] = ()) -> Any:
        """A nested state with copies on the CPU for all tensors in it; whole ones for sharded tensors.

        With sharded tensors every process must call this; only the main process gets the copies.

        Args:
            state: mappings, lists and values.
            name: buffers of another call under this name are written again.
            shared: keys of the outermost mapping whose tensors never change: they are not copied.
        """
        result = self._copy(state, (name,), shared)
        if self._cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()
        return result

    def wait(self) -> None:
        """Wait until the copies are complete; for the thread that reads them."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, state: Any, path: tuple[Any, ...], shared: Collection[str] = ()) -> Any:
        if isinstance(state, Mapping):
            return {
                key: value.detach()
                if key in shared and not isinstance(value, DTensor)
                else self._copy(value, (*path, key))
                for key, value in state.items()
            }
        if not isinstance(state, Tensor):
            return copy.deepcopy(state)
        whole = state.detach()
        if isinstance(whole, DTensor):
            whole = whole.full_tensor()  # a collective
        if not self._main_process:
            return torch.empty(0)
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != whole.shape or buffer.dtype != whole.dtype:
            buffer = self._buffers[path] = self._allocate(whole)
        return buffer.copy_(whole, non_blocking=self._cuda)

    def _allocate(self, like: Tensor) -> Tensor:
        if self._pin:
            try:
                return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
            except RuntimeError:
                self._pin = False
                logger.warning("no more memory can be page-locked: training pauses longer at each checkpoint")
        return torch.empty(like.shape, dtype=like.dtype)
