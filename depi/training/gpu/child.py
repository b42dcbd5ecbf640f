"""`python -m depi.training.gpu.child GROUP DEVICE NAME ...` makes checks of a group, each a line of JSON."""

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch

from depi.policies.gpus import Check

GROUPS = {
    "kernels": ("depi.training.gpu.kernels", "check_kernels"),
    "compile": ("depi.training.gpu.networks", "check_compile"),
    "graph": ("depi.training.gpu.networks", "check_graph"),
    "whole": ("depi.training.gpu.networks", "check_whole"),
}
READY = "ready"


def main(args: list[str]) -> int:
    """Print `ready` once the device answers, then the checks."""
    logging.disable(logging.WARNING)
    group, name, *wanted = args
    device = torch.device(name)
    torch.zeros(1, device=device).cpu()
    print(json.dumps(READY), flush=True)
    module, function = GROUPS[group]
    checks: Callable[..., Iterator[Check]] = getattr(importlib.import_module(module), function)
    for each in checks(device, wanted=wanted):
        print(json.dumps(asdict(each)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
