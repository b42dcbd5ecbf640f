"""`depi.training.gpu.child` on a GPU with a fault.

python faulty_checks.py FAULT GROUP DEVICE NAME ...

No kernel computes anything here: all numbers are taken for right, but for those that the fault makes wrong,
and with `nothing` they are taken as they are.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depi.training.gpu import child, kernels, networks

# Short ones, for which the processor computes what is expected in a moment; widths decide which kernels fit.
kernels.Sizes = partial(kernels.Sizes, lengths=(40, 21), patches=16, width=256, mlp_dim=512)

LISTS, ATTENTION = kernels.list_attention, kernels.attention


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Infinite where all numbers are NaN, which the host has written; else 0."""
    assert found.shape == expected.shape
    return float("inf") if found.detach().cpu().isnan().all() else 0.0


def take_numbers_for_right() -> None:
    """Replace what looks at numbers."""
    kernels.relative_error = networks.relative_error = relative_error
    networks.real_loss = lambda loss: 1.0
    torch.equal = lambda one, other: one.shape == other.shape


def write_nan(*args: Any) -> Tensor:
    """Attention over lists whose result is NaN, as the host writes it."""
    out = LISTS(*args)
    out.data.copy_(torch.full(out.shape, torch.nan, dtype=out.dtype))
    return out


def refuse(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, backends: tuple[str, ...]) -> Tensor:
    """Attention whose memory-efficient kernel raises."""
    if "efficient" in backends:
        raise RuntimeError("CUDA error: invalid argument")
    return ATTENTION(q, k, v, bias, backends)


def need_too_much(*args: Any) -> Tensor:
    """Attention over lists on a GPU whose memory others have."""
    return torch.empty(200 * 10**9, dtype=torch.uint8, device="cuda")


def lack_float8(*args: Any, **kwargs: Any) -> Tensor:
    """Products in float8 that cuBLAS refuses."""
    raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED")


def die(*args: Any) -> Tensor:
    """Attention over lists that ends the process."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


FAULTS: dict[str, dict[str, Callable[..., Any]]] = {
    "none": {},
    "nan": {"list_attention": write_nan},
    "raises": {"attention": refuse},
    "memory": {"list_attention": need_too_much},
    "dies": {"list_attention": die},
    "compile": {},
    "float8": {"_scaled_mm": lack_float8},
    "old": {"takes_float8": lambda device: False},
}


def break_compiler() -> None:
    """Let ptxas fail in this process, where nothing is compiled yet."""
    folder = tempfile.mkdtemp()
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
    ptxas = Path(folder, "ptxas")
    ptxas.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "release 12.9, V12.9.86" && exit\nexit 1\n')
    ptxas.chmod(0o755)
    os.environ["TRITON_PTXAS_PATH"] = str(ptxas)


def main(fault: str, *args: str) -> int:
    """Make a group of checks with the fault."""
    if fault == "compile":
        break_compiler()
    if fault != "nothing":
        take_numbers_for_right()
        for name, function in FAULTS[fault].items():
            setattr(torch if name == "_scaled_mm" else kernels, name, function)
    return child.main(list(args))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
