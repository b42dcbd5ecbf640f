"""Linear layers that multiply in float8 in training, at twice bfloat16's rate by the vendor's datasheet.

Each factor of a product is rounded to eight bits after a multiplication by a scale of its own, which brings
its largest number close to the format's largest one: e4m3, with three bits behind the binary point, for
tokens and weights; e5m2, with two, but a wider range, for gradients (Micikevicius et al., FP8 Formats for
Deep Learning, 2022, sections 3 and 4). Scales are made anew from the numbers at every step, stay on the
device, and are powers of two, so that scaling itself rounds nothing. Sums are accumulated in float32. Weights
stay what they are, and their gradients have their dtype.

`torch._scaled_mm` is cuBLAS on a GPU; on a processor it takes the same factors and multiplies in float32.
torchao's `Float8Linear` makes the same products, but follows autocast on a GPU alone, and would be one more
dependency, whose versions must fit PyTorch's, for what is written here in a few lines.

Letters in shapes:
    T tokens   I inputs   O outputs
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# cuBLAS takes matrices of weights, and sizes that are summed over, in multiples of it.
MULTIPLE = 16
# Compute capability of the first GPUs with such products.
LEAST_CAPABILITY = (8, 9)
# A tensor of zeros has a finite scale too.
SMALLEST = 1e-12
_EXPONENT = 0x7F800000  # sign and fraction of a float32 removed


class Float8Linear(nn.Linear):
    """A linear layer without bias that multiplies in float8 in training mode, otherwise as `nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O], in the dtype of autocast or else of the input."""
        if not self.training:
            return F.linear(x, self.weight)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        tokens = x.flatten(0, -2)
        length = tokens.shape[0]
        missing = (length + MULTIPLE - 1) // MULTIPLE * MULTIPLE - length
        # Compiled code must not depend on the length, and pads in the kernel that rounds.
        if torch.compiler.is_compiling() or missing:
            out = _Product.apply(F.pad(tokens, (0, 0, 0, missing)), self.weight)[:length]
        else:
            out = _Product.apply(tokens, self.weight)
        return out.unflatten(0, x.shape[:-1])


class _Product(torch.autograd.Function):
    """Tokens [T, I] by a matrix [O, I] -> [T, O], all of them multiples of `MULTIPLE`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_unit = to_float8(x, torch.float8_e4m3fn)
        weight8, weight_unit = to_float8(weight, torch.float8_e4m3fn)
        passes, trained = ctx.needs_input_grad
        ctx.save_for_backward(x8 if trained else None, x_unit, weight8 if passes else None, weight_unit)
        ctx.dtypes = x.dtype, weight.dtype
        return torch._scaled_mm(x8, weight8.t(), x_unit, weight_unit, out_dtype=x.dtype, use_fast_accum=True)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x8, x_unit, weight8, weight_unit = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        of_x = of_weight = None
        gradient8, unit = to_float8(gradient, torch.float8_e5m2)
        if ctx.needs_input_grad[0]:
            columns = weight8.t().contiguous().t()
            of_x = torch._scaled_mm(gradient8, columns, unit, weight_unit, out_dtype=x_dtype)
        if ctx.needs_input_grad[1]:
            across, columns = gradient8.t().contiguous(), x8.t().contiguous().t()
            of_weight = torch._scaled_mm(across, columns, unit, x_unit, out_dtype=weight_dtype)
        return of_x, of_weight


def to_float8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` in units of a power of two, rounded to a float8 `dtype`, and the unit, float32 [].

    Nothing overflows: the unit is the smallest one in which the largest number fits. What is not finite stays
    so, and is seen in the loss.
    """
    largest = torch.linalg.vector_norm(x, torch.inf, dtype=torch.float32).clamp(min=SMALLEST)
    scale = ((torch.finfo(dtype).max / largest).view(torch.int32) & _EXPONENT).view(torch.float32)
    return (x * scale).to(dtype), scale.reciprocal()


def takes_float8(device: torch.device) -> bool:
    """Whether such products are computed on a device."""
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
    return device.type == "cpu"


def use_float8(part: nn.Module) -> None:
    """Replace the linear layers without bias in `part` by `Float8Linear`s of the same weights and names.

    Raises:
        ValueError: a layer's sizes are no multiples of 16; nothing is changed then.
    """
    found = [
        (parent, name, child)
        for parent in part.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.bias is None
    ]
    for _, name, layer in found:
        if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
            raise ValueError(
                f"{name} has {layer.in_features} inputs and {layer.out_features} outputs, and float8 takes "
                f"multiples of {MULTIPLE}"
            )
    for parent, name, layer in found:
        replacement = Float8Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        replacement.weight = layer.weight
        setattr(parent, name, replacement)
