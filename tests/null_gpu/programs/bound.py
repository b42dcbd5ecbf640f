"""What `benchmarks/bounds.py` counts of single operations: (operations, bytes, in products)."""

from collections.abc import Callable

import torch
from bounds import Bounds
from device import report

from depi.training.utilisation import card_of

HALF = {"device": "cuda", "dtype": torch.bfloat16}
weight, x = torch.zeros(4096, 1024, **HALF), torch.zeros(64, 1024, **HALF)
row, table = torch.zeros(1, 1024, **HALF), torch.zeros(100_000, 1024, **HALF)
rounded = [tensor.to(torch.float8_e4m3fn) for tensor in (x, weight)]
unit = torch.ones((), device="cuda")
numbers = torch.zeros(64, dtype=torch.int64, device="cuda")
parameter = torch.nn.Parameter(torch.zeros(1000, device="cuda"))
parameter.grad = torch.zeros_like(parameter)
adam = torch.optim.AdamW([parameter], fused=True)
adam.step()


def count(call: Callable[[], object]) -> tuple[float, float, bool]:
    with Bounds(card_of("NVIDIA H200")) as account:
        call()
    return account.operations, account.traffic, account.products == account.all


report(
    {
        "product": count(lambda: x @ weight.T),
        "product in float8": count(
            lambda: torch._scaled_mm(rounded[0], rounded[1].T, unit, unit, out_dtype=torch.bfloat16)
        ),
        "sum": count(lambda: x + x),
        "broadcast": count(lambda: x + row.expand(64, 1024)),
        "in place": count(lambda: x.mul_(2)),
        "view": count(lambda: x.view(-1)[10:]),
        "cast": count(lambda: x.float()),
        "rows": count(lambda: torch.nn.functional.embedding(numbers, table)),
        "adam": count(adam.step),
        "milliseconds": Bounds(card_of("NVIDIA H200")).milliseconds(),
    }
)
