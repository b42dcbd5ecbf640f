"""What `train_step.py` runs in a process of its own: training steps of one implementation, timed."""

import gc
import math
import os
import resource
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from accelerate.utils import send_to_device
from bounds import Bounds
from lerobot_flops import lerobot_flops
from lerobot_pi0 import CAMERAS, FAMILIES, Stock, for_lerobot, make_batch, make_depi, make_lerobot
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from depi.models.flops import sample_flops
from depi.policies.batches import pack_batch
from depi.training.loop import gradient_norm
from depi.training.optimizer import clipped_step, make_optimizer
from depi.training.utilisation import card_of

# How many samples have 1, 2 and 3 cameras.
MIXES = {
    "1": (1.0, 0.0, 0.0),
    "2": (0.0, 1.0, 0.0),
    "3": (0.0, 0.0, 1.0),
    "community": (0.40, 0.45, 0.15),
}
PROMPT_TOKENS = (6, 24)
# Different batches in turn, as in training: a mix then has several packed sizes.
BATCHES = 4
# Shares of the layers to compute twice, tried in turn where memory does not suffice.
RECOMPUTE = {"depi": (0.0, 0.25, 0.5, 0.75, 1.0), "lerobot": (0.0, 1.0)}


@dataclass
class Plan:
    """One row: which implementation, in which size, on what."""

    family: str  # pi0 or pi05
    implementation: str  # depi, lerobot_eager and others; see train_step.py
    size: str  # of SIZES
    device: str
    dtype: str  # bfloat16 or float32
    batch_size: int
    mix: str
    steps: int
    warmup: int
    recompute: float  # the smallest share of DePi's layers to compute twice
    profile: Path | None  # folder for tables of kernels

    @property
    def maker(self) -> str:
        """depi or lerobot."""
        return self.implementation.partition("_")[0]

    @property
    def stock(self) -> Stock:
        """The family as LeRobot has it."""
        return FAMILIES[self.family]


@dataclass
class Subject:
    """A policy in training. `stock` reads loss and norm back at every step, as LeRobot's script does."""

    policy: Any
    optimizer: torch.optim.Optimizer
    batches: list[dict[str, Any]]
    device: str
    dtype: str
    stock: bool

    def autocast(self) -> AbstractContextManager:
        """bfloat16 compute where asked for; both train scripts have it."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def forward(self, number: int) -> Tensor:
        """Loss of batch `number`, counted round."""
        with self.autocast():
            loss: Tensor = self.policy.forward(self.batches[number % len(self.batches)])[0]
        return loss

    def update(self, loss: Tensor) -> None:
        """Clip, step, drop the gradients, as the train script of either does."""
        if self.stock:
            norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
            self.optimizer.step()
            loss.item(), norm.item()
        else:
            norm = gradient_norm(self.policy)
            clipped_step(self.optimizer, norm, 1.0, bad=torch.zeros_like(norm))
        self.optimizer.zero_grad()

    def step(self, number: int) -> Tensor:
        """One training step."""
        loss = self.forward(number)
        loss.backward()
        self.update(loss)
        return loss.detach()


def measure(plan: Plan) -> dict[str, Any]:
    """Figures of one row, computing as few layers twice as memory allows.

    Raises:
        torch.OutOfMemoryError: memory does not suffice with every layer computed twice.
    """
    least = plan.recompute if plan.maker == "depi" else 0.0
    shares = [share for share in RECOMPUTE[plan.maker] if share >= least]
    for share in shares:
        try:
            return _measure_once(plan, share)
        except torch.OutOfMemoryError:
            if share == shares[-1]:
                raise
        # Outside the handler, whose traceback keeps everything alive.
        torch._dynamo.reset()
        _free_memory()
    raise ValueError(f"no share of layers to compute twice is at least {plan.recompute}")


def _measure_once(plan: Plan, recompute: float) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = True  # as LeRobot's train script
    torch.backends.cudnn.benchmark = True
    if plan.device == "cpu":
        torch.set_num_threads(1)  # threads that wait for one another burn processor time
    cameras, tokens = draw_samples(plan.mix, plan.batch_size)
    tokens = tokens + plan.stock.said_tokens
    subject = make_subject(plan, cameras, tokens, recompute)
    if plan.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = mark(plan.device)
    for number in range(max(plan.warmup, BATCHES)):
        loss = subject.step(number)
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"the loss is {loss.item()}")
    warmup_s = seconds(started, mark(plan.device))
    graphs = counters["stats"]["unique_graphs"]
    step = time_steps(subject, plan.steps)
    split = time_phases(subject, plan.steps)
    figures = {
        "recompute": recompute,
        "samples_per_s": plan.batch_size / step,
        "step_ms": step * 1e3,
        **{f"{name}_ms": value * 1e3 for name, value in split.items()},
        **rates(plan, cameras, tokens, step),
        "peak_mem_gb": peak_memory(plan.device) / 1e9,
        **step_bounds(subject),
        "warmup_s": warmup_s,
        "recompiled": counters["stats"]["unique_graphs"] - graphs,
        "loss": loss.item(),
        "attention": profile_step(subject, plan),
        "load": os.getloadavg()[0],
    }
    return {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in figures.items()}


def draw_samples(mix: str, batch_size: int, batches: int = BATCHES) -> tuple[Tensor, Tensor]:
    """Cameras and prompt lengths of all samples, int64 [batches, B]; cameras in exactly the mix's shares."""
    generator = torch.Generator().manual_seed(0)
    count = batches * batch_size
    quantiles = (torch.arange(count) + 0.5) / count
    bounds = torch.tensor(MIXES[mix]).cumsum(0)[:-1]
    cameras = 1 + torch.bucketize(quantiles, bounds)[torch.randperm(count, generator=generator)]
    low, high = PROMPT_TOKENS
    tokens = torch.randint(low, high + 1, (count,), generator=generator)
    return cameras.view(batches, -1), tokens.view(batches, -1)


def make_subject(plan: Plan, cameras: Tensor, tokens: Tensor, recompute: float) -> Subject:
    """Policy, optimiser and batches of either implementation, with the settings that it is meant to have."""
    torch.manual_seed(0)
    d, generator = plan.stock.sizes[plan.size], torch.Generator().manual_seed(1)
    batches: list[dict[str, Any]] = [
        make_batch(d, *sample, "cpu", generator) for sample in zip(cameras, tokens, strict=True)
    ]
    variant = plan.implementation.partition("_")[2]
    if plan.maker == "depi":
        policy = make_depi(d, plan.device, dtype=plan.dtype)
        policy.model.set_recompute(recompute)
        if variant.startswith("float8"):
            policy.model.use_float8()
        if not variant.endswith("eager"):
            policy.model.compile_layers()
        batches = [pack_batch(policy.config, batch) for batch in batches]
        optimizer = make_optimizer(policy)
    else:
        settings: dict[str, Any] = {"compile_model": variant.startswith("compiled")}
        mode = variant.removeprefix("compiled").removeprefix("_")
        settings |= {"compile_mode": mode.replace("_", "-")} if mode and settings["compile_model"] else {}
        checkpointing = {"gradient_checkpointing": recompute > 0}
        policy = make_lerobot(d, plan.device, dtype=plan.dtype, **settings, **checkpointing)
        batches = [for_lerobot(batch) for batch in batches]
        optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    batches = [send_to_device(batch, plan.device) for batch in batches]
    return Subject(policy, optimizer, batches, plan.device, plan.dtype, stock=plan.maker == "lerobot")


def time_steps(subject: Subject, steps: int) -> float:
    """Seconds per step: the median for each batch, and the mean of those."""
    marks = [mark(subject.device)]
    for number in range(steps):
        subject.step(number)
        marks.append(mark(subject.device))
    return _typical([seconds(*pair) for pair in pairwise(marks)])


def time_phases(subject: Subject, steps: int) -> dict[str, float]:
    """Seconds of forward, backward and optimizer, as `time_steps` gives them for whole steps."""
    rows = []
    for number in range(steps):
        start = mark(subject.device)
        loss = subject.forward(number)
        forward = mark(subject.device)
        loss.backward()
        backward = mark(subject.device)
        subject.update(loss)
        rows.append((start, forward, backward, mark(subject.device)))
    names = ("forward", "backward", "optimizer")
    return {name: _typical([seconds(row[i], row[i + 1]) for row in rows]) for i, name in enumerate(names)}


def _typical(times: Sequence[float]) -> float:
    return mean(median(times[batch::BATCHES]) for batch in range(min(BATCHES, len(times))))


def mark(device: str) -> Any:
    """A moment: on the GPU when it has done all work so far, without waiting; else in processor time."""
    if device != "cuda":
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(start: Any, end: Any) -> float:
    """Time between two moments."""
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def rates(plan: Plan, cameras: Tensor, tokens: Tensor, step: float) -> dict[str, float | None]:
    """Operations of a step, by what the mathematics asks for, and per second.

    `mfu` is their share of the card's bfloat16 peak: nothing recomputed, padded or thrown away counts.
    """
    d = plan.stock.sizes[plan.size]
    pairs = zip(cameras.flatten().tolist(), tokens.flatten().tolist(), strict=True)
    model = sum(sample_flops(d, *pair).training() for pair in pairs) / BATCHES
    theirs = lerobot_flops(d, len(CAMERAS), plan.stock.padded_tokens).training() * plan.batch_size
    card = card_of(device_name(plan.device)) if plan.dtype == "bfloat16" else None
    return {
        "model_tflop": model / 1e12,
        "lerobot_tflop": theirs / 1e12,
        "tflop_per_s": model / step / 1e12,
        "mfu": model / step / card.operations if card else None,
    }


def device_name(device: str) -> str:
    """What it calls itself."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def step_bounds(subject: Subject) -> dict[str, float]:
    """The least time that a step can take on this card, where its figures are known; see `bounds.py`."""
    card = card_of(device_name(subject.device))
    if card is None or card.bytes is None:
        return {}
    account = Bounds(card)
    with account, torch.autograd.set_multithreading_enabled(False):
        subject.step(0)
    return account.milliseconds()


def peak_memory(device: str) -> int:
    """Most bytes of the GPU's memory that tensors had; on a processor, of the whole process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def profile_step(subject: Subject, plan: Plan) -> str:
    """How often a step calls which fused attention; with `plan.profile`, a table of 25 kernels goes there."""
    kernels = plan.profile is not None and plan.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if kernels else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        subject.step(0).item()
    events = profiler.key_averages()
    if plan.profile is not None:
        key = "self_device_time_total" if kernels else "self_cpu_time_total"
        name = f"{plan.implementation}_{plan.batch_size}_{plan.mix}.txt"
        plan.profile.mkdir(parents=True, exist_ok=True)
        (plan.profile / name).write_text(events.table(sort_by=key, row_limit=25, max_name_column_width=90))
    prefix = "aten::_scaled_dot_product_"
    counts = {event.key: event.count for event in events if "backward" not in event.key}
    fused = {key.removeprefix(prefix): count for key, count in counts.items() if key.startswith(prefix)}
    # Of these operators some are calls of their own, over lists, the others inside of those above.
    lists = counts.get("aten::_flash_attention_forward", 0) - fused.get("flash_attention", 0)
    fused |= {"flash_attention over lists": lists} if lists else {}
    return ", ".join(f"{count} {name}" for name, count in sorted(fused.items())) or "none"


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
