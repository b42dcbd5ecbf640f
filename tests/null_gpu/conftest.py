"""A GPU in name only, and programs that run on it.

`device/` stands in front of CUDA's runtime, cuBLAS and driver: PyTorch believes in one H200, whose kernels
do nothing. Real are PyTorch's dispatch, autograd, the allocator, Inductor down to ptxas, the capture of CUDA
graphs, and FSDP2 over a fake process group: devices, dtypes, waits, launches, graphs, memory and traffic can
be checked. Not real are numbers in tensors and times of kernels; cuDNN and NCCL are absent.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

type Program = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def null_gpu(tmp_path_factory) -> dict[str, str]:
    """The environment of a process that sees the null GPU."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("the null GPU is built with gcc, on Linux")
    packages = Path(find_spec("torch").origin).parents[1]
    headers = [packages / "nvidia/cu13/include", packages / "triton/backends/nvidia/include"]
    if not all(folder.is_dir() for folder in headers):
        pytest.skip("the null GPU needs PyTorch with CUDA 13, whose functions it replaces")
    folder = tmp_path_factory.mktemp("null-gpu")
    include = [f"-I{folder}" for folder in headers]
    compile_shared(folder / "libnull_gpu.so", "runtime.c", "nothing.c", *include)
    compile_shared(folder / "libcuda.so.1", "driver.c", "-Wl,-soname,libcuda.so.1")
    return os.environ | {
        "LD_PRELOAD": str(folder / "libnull_gpu.so"),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            map(str, (HERE / "device", HERE / "programs", REPOSITORY / "benchmarks"))
        ),
    }


def compile_shared(target: Path, *arguments: str) -> None:
    """Compile sources of `device/` into a shared library."""
    command = ["gcc", "-shared", "-fPIC", "-O1", *arguments, "-o", str(target)]
    subprocess.run(command, cwd=HERE / "device", check=True)


@pytest.fixture(scope="session")
def on_null_gpu(null_gpu) -> Program:
    """Runs `programs/NAME.py` with flags, once for all tests that ask for the same; returns its findings."""

    @cache
    def run(name: str, *flags: str) -> dict[str, Any]:
        command = [sys.executable, str(HERE / "programs" / f"{name}.py"), *flags]
        done = subprocess.run(command, env=null_gpu, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
