"""The published size of pi0 in DePi's own training step, with all the trainer's parts but the data's."""

import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from lerobot.configs.default import PeftConfig
from lerobot_pi0 import SIZES, make_batch, make_depi
from measure_steps import draw_samples

from depi.policies.adapters import add_adapters
from depi.policies.batches import pack_batch
from depi.training.bad_steps import BadSteps
from depi.training.config import EmaConfig, TrainConfig
from depi.training.loop import Monitors, train_step
from depi.training.meter import Meter
from depi.training.profiling import StepProfiler
from depi.training.run import make_trainable


def make_run(
    accelerator: Accelerator,
    lora: bool = False,
    ema: bool = False,
    attention_backends: str | None = None,
    float8: bool = False,
    **flags: Any,
) -> Any:
    """A run of pi0 with random weights that has not taken a step; `flags` are those of `TrainConfig`."""
    policy = make_depi(SIZES["full"], "cuda", dtype="bfloat16")
    if attention_backends is not None:
        policy.allow_attention(attention_backends)
    if float8:
        policy.config.float8 = True
        policy.model.use_float8()
    if lora:
        add_adapters(policy.model, PeftConfig())
    config = TrainConfig(policy=policy.config, ema=EmaConfig(0.999 if ema else None), **flags)
    config.output_dir = Path(tempfile.gettempdir())  # nothing is written there
    model, average, optimizer, scheduler = make_trainable(config, policy, accelerator)
    return SimpleNamespace(
        config=config,
        accelerator=accelerator,
        policy=policy,
        model=model,
        average=average,
        optimizer=optimizer,
        scheduler=scheduler,
        step=0,
    )


def make_monitors(run: Any) -> Monitors:
    """What the trainer measures and judges steps with."""
    device = run.accelerator.device
    bad_steps = BadSteps(run.config, run.accelerator, ["alice/pick", "bob/place"])
    profiler = StepProfiler(run.config, device, 0, wanted=False)
    return Monitors(Meter(run), bad_steps, profiler, saver=None, skipped=0)


def make_batches(run: Any, mix: str, count: int = 4) -> list[dict[str, Any]]:
    """So many packed batches as a loader hands them over, with the cameras of `mix`."""
    generator = torch.Generator().manual_seed(1)
    size = run.config.batch_size
    batches = []
    for cameras, words in zip(*draw_samples(mix, size, count), strict=True):
        batch = make_batch(SIZES["full"], cameras, words, "cpu", generator)
        batch |= {"dataset_index": torch.arange(size) % 2, "index": torch.arange(size)}
        batches.append(pack_batch(run.policy.config, batch))
    return batches


def take_step(run: Any, batches: list[dict[str, Any]], monitors: Monitors) -> list[str]:
    """Take a step of the trainer's; returns where in the code the host had to wait for the device."""
    count = run.config.gradient_accumulation_steps
    first = run.step * count
    stream = iter([batches[(first + number) % len(batches)] for number in range(count)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        train_step(run, stream, monitors)
        torch.cuda.set_sync_debug_mode("default")
    return [
        f"{each.filename}:{each.lineno}" for each in caught if "called a synchronizing" in str(each.message)
    ]
