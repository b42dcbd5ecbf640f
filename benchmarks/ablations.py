"""What each optimization of pi0's training step gains by itself: without and with it, in turns.

    python benchmarks/ablations.py                        # reduced size, on the processor
    python benchmarks/ablations.py --device=cuda          # layers of the published size, in bfloat16

Prints a table and, last, one JSON line: for each optimization the milliseconds without and with it and their
ratio. The predictions are for the published size; `benchmarks/README.md` keeps what was measured.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from lerobot_pi0 import SIZES
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from depi.errors import UserError
from depi.flags import parse_flags
from depi.models.attention import attention, attention_bias
from depi.models.gemma import GemmaLayer, GemmaPrefix, rotary_table
from depi.models.packing import pack, pad, to_list
from depi.models.pi0 import Pi0, Pi0Dimensions
from depi.models.scene import Observation
from depi.models.siglip import SiglipTower

Work = Callable[[], object]


@dataclass
class AblationConfig:
    """Time each optimization of the training step with and without it."""

    device: str = "cpu"
    size: str = "reduced"  # of the whole network; on a GPU single parts have the published size
    batch_size: int = 4
    rounds: int = 7
    # Only those whose name contains this.
    only: str = ""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UserError(f"--size={self.size} is none of {', '.join(SIZES)}")
        if min(self.batch_size, self.rounds) < 1:
            raise UserError("--batch_size and --rounds must be at least 1")


@dataclass(frozen=True)
class Ablation:
    """The same result computed without and with an optimization."""

    name: str
    predicted: str
    without: Work
    with_it: Work


class Parts:
    """What the ablations are made of: sizes, device, and the type that is computed in."""

    def __init__(self, config: AblationConfig) -> None:
        self.cuda = config.device.startswith("cuda")
        self.whole = SIZES[config.size]
        self.part = SIZES["full"] if self.cuda else self.whole
        self.batch = config.batch_size
        self.device = torch.device(config.device)
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.generator = torch.Generator().manual_seed(0)

    def randn(self, *shape: int, grad: bool = True) -> Tensor:
        """Standard normal numbers that may want a gradient."""
        values = torch.randn(*shape, generator=self.generator).to(self.device, self.dtype)
        return values.requires_grad_(grad)

    def masks(self) -> tuple[Tensor, Tensor]:
        """Cameras of a community mix, 1: 40%, 2: 45%, 3: 15%, and prompts of 6 to 23 of 48 words."""
        shares = torch.tensor([0.40, 0.45, 0.15])
        cameras = torch.multinomial(shares, self.batch, True, generator=self.generator) + 1
        words = torch.randint(6, 24, (self.batch, 1), generator=self.generator)
        return torch.arange(3) < cameras[:, None], torch.arange(48) < words

    def network(self, d: Pi0Dimensions) -> Pi0:
        """A network with random weights, float32."""
        with torch.device(self.device):
            model = Pi0(d)
        model.init_weights()
        return model


def backward(result: Tensor) -> None:
    """Compute gradients, and forget those of earlier calls by adding to them."""
    result.float().square().mean().backward()


def padding_left_out(parts: Parts) -> Ablation:
    """A training step of the whole network on a community mix, padded and packed."""
    d, (image_mask, token_mask) = parts.whole, parts.masks()
    model = parts.network(d)
    images = torch.randint(0, 256, (parts.batch, 3, 3, d.image_size, d.image_size), dtype=torch.uint8)
    tokens = torch.randint(0, d.vocab_size, token_mask.shape)
    state, actions = (
        torch.randn(parts.batch, d.state_dim),
        torch.randn(parts.batch, d.chunk_size, d.action_dim),
    )
    noise, moment = torch.randn_like(actions), torch.rand(parts.batch)
    on = [tensor.to(parts.device) for tensor in (actions, noise, moment)]

    def step(packed: bool) -> None:
        packing = (pack if packed else pad)(image_mask, token_mask, d.patches)
        seen = Observation(*(x.to(parts.device) for x in (images, image_mask, tokens, token_mask, state)))
        seen = seen._replace(packing=send_to_device(packing, parts.device))
        with torch.autocast(parts.device.type, torch.bfloat16, enabled=parts.cuda):
            errors = model(seen, *on)
        backward(errors)

    return Ablation("padding left out", "1.7 on the mix", lambda: step(False), lambda: step(True))


def cameras_in_one_call(parts: Parts) -> Ablation:
    """SigLIP over all cameras at once, against a call for each; two layers of it."""
    d = parts.part
    with torch.device(parts.device):
        tower = SiglipTower(
            image_size=d.image_size, patch_size=d.patch_size, width=d.vision_width, depth=2,
            num_heads=d.vision_heads, mlp_dim=d.vision_mlp_dim,
        ).to(parts.dtype)  # fmt: skip
    images = parts.randn(3, parts.batch, 3, d.image_size, d.image_size, grad=False)
    return Ablation(
        "one SigLIP call for all cameras",
        "1.0 to 1.1 by larger products",
        lambda: backward(torch.cat([tower(camera) for camera in images])),
        lambda: backward(tower(images.flatten(0, 1))),
    )


def _attention_inputs(parts: Parts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d, places = parts.part, 3 * parts.part.patches + 48
    q = parts.randn(parts.batch, places, d.num_heads, d.head_dim)
    k, v = (parts.randn(parts.batch, places, d.num_kv_heads, d.head_dim) for _ in range(2))
    visible = (torch.arange(places) < places - 30).expand(parts.batch, 1, -1).to(parts.device)
    return q, k, v, visible


def heads_folded(parts: Parts) -> Ablation:
    """Query heads as rows of the one key head, against grouped queries with a boolean mask."""
    q, k, v, visible = _attention_inputs(parts)
    bias = attention_bias(visible, q.shape[2] // k.shape[2], parts.dtype)

    def grouped() -> None:
        query, key, value = (tensor.transpose(1, 2) for tensor in (q, k, v))
        mask = visible[:, None]
        backward(F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True))

    return Ablation(
        "heads folded into rows",
        "3 or more of attention on CUDA, where mask and groups together have no fused kernel",
        grouped,
        lambda: backward(attention(q, k, v, bias)),
    )


def keys_not_repeated(parts: Parts) -> Ablation:
    """The same against keys and values repeated for every query head, as LeRobot does."""
    q, k, v, visible = _attention_inputs(parts)
    bias = attention_bias(visible, q.shape[2] // k.shape[2], parts.dtype)

    def repeated() -> None:
        times = q.shape[2] // k.shape[2]
        keys, values = (tensor.repeat_interleave(times, dim=2).transpose(1, 2) for tensor in (k, v))
        scores = q.transpose(1, 2) @ keys.transpose(2, 3) * q.shape[3] ** -0.5
        weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(dim=-1, dtype=torch.float32)
        backward(weights.to(values.dtype) @ values)

    return Ablation(
        "fused attention",
        "3 of attention, 1.1 of a step",
        repeated,
        lambda: backward(attention(q, k, v, bias)),
    )


def no_unused_tail(parts: Parts) -> Ablation:
    """The last prefix layer cut to its keys and values: of a stack of three."""
    d = parts.part
    sizes = {
        "width": d.width, "depth": 3, "mlp_dim": d.mlp_dim, "num_heads": d.num_heads,
        "num_kv_heads": d.num_kv_heads, "head_dim": d.head_dim,
    }  # fmt: skip
    with torch.device(parts.device):
        stack = GemmaPrefix(**sizes).to(parts.dtype)
        tail = GemmaLayer(d.width, d.mlp_dim, d.num_heads, d.num_kv_heads, d.head_dim).to(parts.dtype)
    x = parts.randn(parts.batch, 3 * d.patches + 48, d.width)
    rotation = rotary_table(torch.arange(x.shape[1], device=parts.device)[None], d.head_dim)
    visible = torch.ones(parts.batch, 1, x.shape[1], dtype=torch.bool, device=parts.device)
    bias = attention_bias(visible, d.num_heads // d.num_kv_heads, parts.dtype)

    def whole() -> None:
        hidden, keys_values = x, []
        for layer in (*stack.layers, tail):
            hidden, own = layer(hidden, rotation, None, bias)
            keys_values.append(own)
        # As in LeRobot, whose last layer's result is computed and dropped.
        backward(torch.cat([part.flatten() for pair in keys_values for part in pair]))

    def lean() -> None:
        keys_values = stack(x, rotation, None, bias)
        backward(torch.cat([part.flatten() for pair in keys_values for part in pair]))

    return Ablation("no unused prefix tail", "1.02 of a step (1 of 18 layers, forward)", whole, lean)


def gradients_gathered(parts: Parts) -> Ablation:
    """Moving tokens out of rows with a gathered gradient, against one that is added up."""
    d = parts.part
    rows = send_to_device(pack(*parts.masks(), d.patches).rows, parts.device)
    tokens = parts.randn(*rows.source.shape, d.num_heads * d.head_dim)
    return Ablation(
        "gradients gathered, not added up",
        "3 of the moves on CUDA (atomics in bfloat16), and the same bits every time",
        lambda: backward(tokens.flatten(0, 1)[rows.place]),
        lambda: backward(to_list(tokens, rows)),
    )


def fused_adamw(parts: Parts) -> Ablation:
    """One kernel for AdamW over a Gemma layer, against LeRobot's preset without a choice."""
    d = parts.part

    def stepper(**options: bool) -> Work:
        with torch.device(parts.device):
            layer = GemmaLayer(d.width, d.mlp_dim, d.num_heads, d.num_kv_heads, d.head_dim)
        for parameter in layer.parameters():
            parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW(layer.parameters(), lr=2.5e-5, weight_decay=0.01, **options).step

    return Ablation("fused AdamW", "1.5 of the optimizer on CUDA", stepper(), stepper(fused=True))


def compiled_layers(parts: Parts) -> Ablation:
    """Three compiled Gemma layers against the same ones eager."""
    d = parts.part

    def stack(compiled: bool) -> Work:
        with torch.device(parts.device):
            layers = nn.ModuleList(
                GemmaLayer(d.width, d.mlp_dim, d.num_heads, d.num_kv_heads, d.head_dim) for _ in range(3)
            )
        if compiled:
            for layer in layers:
                layer.compile(fullgraph=True)
        x = torch.randn(parts.batch, 3 * d.patches + 48, d.width, device=parts.device, dtype=parts.dtype)
        rotation = rotary_table(torch.arange(x.shape[1], device=parts.device)[None], d.head_dim)
        visible = torch.ones(parts.batch, 1, x.shape[1], dtype=torch.bool, device=parts.device)
        bias = attention_bias(visible, d.num_heads // d.num_kv_heads, parts.dtype)

        def run() -> None:
            hidden = x
            with torch.autocast(parts.device.type, torch.bfloat16, enabled=parts.cuda):
                for layer in layers:
                    hidden, _ = layer(hidden, rotation, None, bias)
            backward(hidden)

        return run

    return Ablation("layers compiled", "1.2 to 1.3 of a step on CUDA", stack(False), stack(True))


ABLATIONS: Sequence[Callable[[Parts], Ablation]] = (
    padding_left_out,
    cameras_in_one_call,
    heads_folded,
    keys_not_repeated,
    no_unused_tail,
    gradients_gathered,
    fused_adamw,
    compiled_layers,
)


def measure(ablation: Ablation, rounds: int, device: torch.device) -> tuple[float, float]:
    """Median milliseconds without and with it, measured in turns after two rounds of warm-up."""

    def timed(work: Work) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - started)

    seen = [(timed(ablation.without), timed(ablation.with_it)) for _ in range(rounds + 2)][2:]
    without, with_it = zip(*seen, strict=True)
    return median(without), median(with_it)


def main(args: list[str]) -> int:
    """Run the ablations and print what they gained."""
    config = parse_flags(AblationConfig, args, "benchmarks/ablations.py")
    parts = Parts(config)
    table = Table("optimization", "predicted", "without, ms", "with, ms", "ratio", title=f"on {parts.device}")
    results = {}
    for make in ABLATIONS:
        if config.only not in make.__name__:
            continue
        ablation = make(parts)
        without, with_it = measure(ablation, config.rounds, parts.device)
        ratio = without / with_it
        table.add_row(ablation.name, ablation.predicted, f"{without:.2f}", f"{with_it:.2f}", f"{ratio:.2f}")
        results[make.__name__] = {
            "without_ms": round(without, 3),
            "with_ms": round(with_it, 3),
            "ratio": round(ratio, 3),
        }
    Console().print(table)
    print(json.dumps({"device": str(parts.device), "threads": torch.get_num_threads(), **results}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
