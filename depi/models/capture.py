"""One CUDA graph per shape, which launches thousands of kernels with a single call."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

WARMUP = 3  # runs before a capture: compilation, autotuning and workspaces belong outside the graph
MOST_GRAPHS = 8  # then the least recently used one is dropped


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: Tensor


class Captured:
    """Wraps a function of CUDA tensors that has static shapes, no synchronisation and no random numbers.

    It is captured at its first call with tensors of new shapes or another `variant`, and replayed afterwards.
    Its weights must stay where they are: `clear` after they have moved.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self._function = function
        self._graphs: dict[tuple, _Graph] = {}

    def clear(self) -> None:
        """Drop all graphs."""
        self._graphs.clear()

    def __call__(self, *inputs: Tensor, variant: Hashable) -> Tensor:
        """`function(*inputs, variant)`; the tensors lie on one device."""
        # Streams and captures are of the current device, which need not be theirs.
        with torch.cuda.device_of(inputs[0]):
            return self._replay(inputs, variant)

    def _replay(self, inputs: tuple[Tensor, ...], variant: Hashable) -> Tensor:
        key = (variant, *((tensor.shape, tensor.dtype) for tensor in inputs))
        found = self._graphs.pop(key, None)
        if found is None:
            while len(self._graphs) >= MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            found = self._capture(inputs, variant)
        self._graphs[key] = found
        for buffer, tensor in zip(found.inputs, inputs, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        found.graph.replay()
        return found.output.clone()

    # In a caller's inference mode the buffers could not be written to outside of it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _capture(self, inputs: tuple[Tensor, ...], variant: Hashable) -> _Graph:
        buffers = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                self._function(*buffers, variant)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as a robot's, may go on using the device.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = self._function(*buffers, variant)
        return _Graph(graph, buffers, output)
